"""What the commands' parsers share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from distill.errors import RunError
from distill.memory import keep_freed_memory

if TYPE_CHECKING:
    import torch


def add_command(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    epilog: str,
    *,
    description: str = "",
) -> argparse.ArgumentParser:
    """A command or action whose help shows its examples (`epilog`) as they are written.

    Args:
        summary: its line in the list of commands, which also describes it where there is no `description`.
    """
    return subparsers.add_parser(
        name,
        help=summary,
        description=description or f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def usable_device(name: str | torch.device | None) -> torch.device:
    """A device to run models on, by default a GPU if there is one. Raises RunError when it is not there.

    Where it is the CPU, this process keeps the memory that it frees (allocator.keep_freed_memory).
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
