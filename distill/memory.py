"""Memory of this process: freed memory is kept for the next tensors, and the peak can be told."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

# malloc.h of the GNU C library
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = 2**31 - 1  # bytes at the heap's end that are not given back: the largest int


def keep_freed_memory() -> None:
    """Where the C library is GNU's, large tensors on the CPU are no longer mapped afresh one by one.

    By default each of them is new memory, which the system clears page by page as it is first written. A model's
    forward, whose tensors are the same every time, spends up to half of its time on that. The process then holds the
    most that it has needed so far. Other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, NEVER)


def peak_memory() -> int:
    """Return the most bytes that this process has held.

    On Linux the source is VmHWM: a child's ru_maxrss begins at its parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) << 10
    unit = 1 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
