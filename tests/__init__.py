"""Several tests run at once, more than there are cores: threads of OpenMP that wait for one another
must not spin meanwhile. Set here, since torch reads it when it is imported."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
