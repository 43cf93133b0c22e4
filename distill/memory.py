"""Memory of this process: its peak, and a setting that keeps freed memory for the next tensors."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

# malloc.h of the GNU C library
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = 2**31 - 1  # free bytes at the end of the heap before it shrinks: the largest int


def keep_freed_memory() -> None:
    """Keep the memory of freed tensors on the CPU for the next ones, where the C library is GNU's.

    By default every large tensor is new memory, which the system clears page by page as it is first written. A model's
    forward pass allocates the same tensors every time, and spends up to half of its time on that. After this call the
    process holds the most memory that it has needed so far. Other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, NEVER)


def peak_memory() -> int:
    """Return the most bytes that this process has held.

    On Linux the source is VmHWM, because the ru_maxrss of a child process begins at its parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) << 10
    unit = 1 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
