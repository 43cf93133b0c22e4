"""The device that models run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill.errors import RunError
from distill.memory import keep_freed_memory

if TYPE_CHECKING:
    import torch


def usable_device(name: str | torch.device | None) -> torch.device:
    """Return the device to run models on: the one asked for, else a GPU if there is one, else the CPU.

    On the CPU this process then keeps the memory that it frees (see memory.keep_freed_memory).

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
    """Return the device that a lone process takes on this machine, whatever cluster it is part of."""
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import LightningEnvironment

    return Fabric(accelerator="auto", devices=1, plugins=LightningEnvironment()).device
