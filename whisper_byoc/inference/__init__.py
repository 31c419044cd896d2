"""Says how OpenMP's threads wait for one another, before torch loads OpenMP and reads it.

Threads that spin take the cores from whoever else needs them, and wait for one that somebody else
has: beside other work one batch took minutes instead of a second (docs/engine.md).
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
