"""Checkpoints of other projects: .pt, .pth and safetensors files. Code in them is never run."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from distill.errors import CheckpointError

CONTAINER_KEYS = ("state_dict", "model")  # files hold the tensors at the top or under one of these
WRAPPERS = ("module.", "_orig_mod.")  # prefixes that DistributedDataParallel and torch.compile add to every name
# Classes in training files beside the tensors, which are read as plain mappings: EdgeSAM's configuration.
READ_AS_MAPPING = ("yacs.config.CfgNode",)
# Types of numbers that weights, counters and tables of indices have.
NUMBERS = frozenset(
    {torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool}
)
MAX_LISTED = 10  # tensors of each sort that an error names


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the named tensors of a file, on the CPU, without the prefixes that training wrappers add to the names.

    Raises:
        CheckpointError: the file is damaged, is no checkpoint, or holds objects that could run code.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        try:
            tensors = safetensors.torch.load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError) as error:  # a type of numbers that torch lacks
            raise CheckpointError(f"{path}: not a whole safetensors file ({error}); copy or write it again") from error
    else:
        tensors = _read_state_dict(path)
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    return tensors


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    content = read_torch_file(path)
    container = content
    if isinstance(content, dict):
        container = next((content[key] for key in CONTAINER_KEYS if isinstance(content.get(key), dict)), content)
    if not isinstance(container, dict) or not container:
        raise CheckpointError(f"{path}: holds {_describe(container)}, not named tensors")
    if others := [str(key) for key, value in container.items() if not (isinstance(key, str) and is_dense(value))]:
        raise CheckpointError(
            f"{path}: expected tensors at the top, or under {' or '.join(map(repr, CONTAINER_KEYS))}; "
            f"found other values: {listed(others)}"
        )
    return dict(container)


def _describe(content: Any) -> str:
    return "nothing" if content == {} else f"a {type(content).__name__}"


def read_torch_file(path: Path, *, mmap: bool = False) -> Any:
    """Read what `torch.save` wrote, on the CPU, if it holds no objects that could run code.

    Args:
        mmap: whether tensors stay on the disk until they are used.
    Raises:
        CheckpointError: the file is damaged, is no checkpoint, or holds such objects.
    """
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    is_zip = start == b"PK"
    if not is_zip and start[:1] != pickle.PROTO:
        raise CheckpointError(f"{path}: not a PyTorch checkpoint{'' if start else ': the file is empty'}")
    damaged = f"{path}: the file is cut short or damaged; copy or download it again"
    if is_zip and not zipfile.is_zipfile(path):
        raise CheckpointError(damaged)
    try:
        with torch.serialization.safe_globals([(OrderedDict, name) for name in READ_AS_MAPPING]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and is_zip)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise CheckpointError(
            f"{path}: holds Python objects{what}, which could run code and are never read; if you trust the file, "
            "save only its tensors: torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:
        raise CheckpointError(damaged) from error


def is_dense(value: object) -> bool:
    """Return whether a value is a tensor of real numbers, neither sparse nor quantised, as weights are."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.dtype in NUMBERS


def listed(names: Iterable[str]) -> str:
    """List up to ten names and say how many more there are."""
    names = list(names)
    more = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
