"""One thread a process: what unit tests compute is small, and threads of several workers only wait for each other."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
