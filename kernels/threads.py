"""What threads of Python that use numba at once must keep to, and how many cores there are for them."""

import os
import threading

__all__ = ["ONE_AT_A_TIME", "cores"]

# numba's threading layer "workqueue" ends the process when two threads are in parallel functions at once
ONE_AT_A_TIME = threading.Lock()


def cores() -> int:
    """Cores that this process may use, as far as the system tells: of a shared machine not all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
