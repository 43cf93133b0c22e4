"""What this machine has, found without importing torch."""

from __future__ import annotations

import ctypes
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

NVML = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"  # NVIDIA's library of the driver
AMD_DRIVER = Path("/dev/kfd")
NVML_SUCCESS = 0


def count_gpus() -> int | None:
    """Return how many GPUs torch can use here, as CUDA_VISIBLE_DEVICES limits them. Return None if it is not known.

    It asks NVIDIA's driver and starts nothing on a GPU, so processes may be forked after it. AMD's are not counted.
    """
    try:
        if "+cpu" in version("torch"):
            return 0
    except PackageNotFoundError:
        return None
    if AMD_DRIVER.exists():
        return None
    found = _count_by_nvml()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not found:
        return found
    names = [name.strip() for name in visible.split(",")]
    if "-1" in names:  # CUDA sees the devices before it
        names = names[: names.index("-1")]
    return min(found, len([name for name in names if name]))


def _count_by_nvml() -> int:
    try:
        driver = ctypes.CDLL(NVML)
    except OSError:
        return 0
    count = ctypes.c_uint(0)
    if driver.nvmlInit_v2() != NVML_SUCCESS:
        return 0
    driver.nvmlDeviceGetCount_v2(ctypes.byref(count))
    driver.nvmlShutdown()
    return count.value
