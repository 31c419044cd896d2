"""Says how OpenMP's threads wait for one another, before torch loads OpenMP and reads it.

By default they spin for a long time, which takes the cores from whoever else needs them: beside
other work one batch took minutes instead of a second. Asleep at once, they cost half of the speed
on a machine that is free. So they spin for some microseconds first (figures: docs/engine.md).
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
