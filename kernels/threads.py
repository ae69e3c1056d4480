"""What threads of Python that use numba at once must keep to."""

import threading

__all__ = ["ONE_AT_A_TIME"]

# numba's threading layer "workqueue" ends the process when two threads are in parallel functions at once
ONE_AT_A_TIME = threading.Lock()
