"""The device on which models run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill.errors import RunError
from distill.memory import keep_freed_memory

if TYPE_CHECKING:
    import torch


def usable_device(name: str | torch.device | None) -> torch.device:
    """Return the device for models: the given one, otherwise a GPU if there is one, otherwise the CPU.

    If it is the CPU, this process keeps freed memory from now on (see memory.keep_freed_memory).

    Raises:
        RunError: the device is not usable on this machine.
    """
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a backend that torch was built without
        reason = str(error).splitlines()[0]
        raise RunError(f"--device {name}: not usable on this machine ({reason}); try --device cpu") from error
    if device.type == "cpu":
        keep_freed_memory()
    return device


def one_device() -> torch.device:
    """Return the device that Lightning gives to a single process on this machine, even inside a cluster job."""
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment

    return Fabric(accelerator="auto", devices=1, plugins=LightningEnvironment()).device
