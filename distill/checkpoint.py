"""Models on disk: our `student.safetensors`, which needs nothing else, and the released files of others."""

from __future__ import annotations

import errno
import hashlib
import importlib.resources
import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from distill.errors import CheckpointError, DistillError
from distill.sam import ModelSpec, PromptableModel, build_from_spec, build_model
from distill.students import STUDENTS

STUDENT_FILE = "student.safetensors"  # in a run directory
QUICKSTART = "quickstart"
QUICKSTART_FILE = "quickstart_teacher.safetensors"  # in distill/weights
SPEC_KEY = "distill"  # of the safetensors metadata: {"format": 1, "spec": {...}}
SPEC_FORMAT = 1
CONTAINER_KEYS = ("state_dict", "model")  # released files hold the tensors at the top or under one of these
MAX_LISTED = 10  # tensors that a report names of each sort
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
HASH_BLOCK = 1 << 20


def save_model(model: PromptableModel, path: str | Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a model and its spec to one safetensors file, whole or not at all.

    Args:
        metadata: further text to keep in the file's header.
    Raises:
        CheckpointError: a disk that is full or cannot be written; nothing is left behind.
    """
    spec = json.dumps({"format": SPEC_FORMAT, "spec": asdict(model.spec)})
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    payload = safetensors.torch.save(tensors, {**(metadata or {}), SPEC_KEY: spec})
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if error.errno in FULL_DISK:
            message = f"{path}: the disk is full. The file takes {len(payload):,} bytes: free some, or save elsewhere"
        else:
            message = f"{path}: cannot be written: {error.strerror}"
        raise CheckpointError(message) from error
    finally:
        partial.unlink(missing_ok=True)


def load_model(path_or_name: str | Path, *, name: str | None = None) -> PromptableModel:
    """Read a promptable model, on the CPU in eval mode.

    Args:
        path_or_name: a student.safetensors, a run directory that holds one, 'quickstart' (the model that ships with
            the package), or a released .pt/.pth file of another project.
        name: which model a released file holds (students.STUDENTS); our own files say it themselves.
    Raises:
        CheckpointError: a file that is missing, damaged, of another model, or that would run code when read.
    """
    path = find_weights(path_or_name)
    if path.suffix == ".safetensors":
        return _load_safetensors(path, name)
    if name is None:
        raise CheckpointError(
            f"{path}: a released checkpoint does not say which model it is: give its name, as 'efficientvit_sam_l0'"
        )
    model = build_model(name)
    if STUDENTS[name].own_decoder:
        raise CheckpointError(
            f"{path}: the released files of {name} hold a decoder that is not SAM's, which is not supported; "
            f"only the encoder is, to be trained with SAM's decoder: student.name={name}"
        )
    load_state_dict_strict(model, read_state_dict(path), source=f"{path} as {name}")
    return model


def find_weights(path_or_name: str | Path) -> Path:
    """The existing file that `load_model` reads for a path or a name. Raises CheckpointError."""
    if str(path_or_name) == QUICKSTART:
        packaged = Path(str(importlib.resources.files("distill") / "weights" / QUICKSTART_FILE))
        if not packaged.is_file():
            raise CheckpointError(f"'{QUICKSTART}': this installation lacks {packaged}; install the package again")
        return packaged
    path = Path(path_or_name)
    if path.is_dir():
        if not (path / STUDENT_FILE).is_file():
            raise CheckpointError(f"{path}: no {STUDENT_FILE} in this directory; a run writes it when it ends")
        return path / STUDENT_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file. A model is a {STUDENT_FILE}, a run directory that holds one, '{QUICKSTART}', "
            "or a released .pt/.pth file"
        )
    return path


def read_metadata(path: str | Path) -> dict[str, str]:
    """The text in a safetensors file's header. Raises CheckpointError if the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); copy or write it again") from error


def _load_safetensors(path: Path, name: str | None) -> PromptableModel:
    metadata = read_metadata(path)
    if SPEC_KEY in metadata:
        spec = _parse_spec(metadata[SPEC_KEY], path)
        if name not in (None, spec.encoder):
            raise CheckpointError(f"{path}: holds {spec.encoder}, not {name}")
        try:
            model = build_from_spec(spec)
        except DistillError as error:
            raise CheckpointError(f"{path}: {error}") from error
    elif name is not None:
        model = build_model(name)
    else:
        raise CheckpointError(
            f"{path}: not written by distill (no '{SPEC_KEY}' in its metadata): give the model's name"
        )
    load_state_dict_strict(model, safetensors.torch.load_file(path), source=f"{path} as {model.spec.encoder}")
    return model


def _parse_spec(text: str, path: Path) -> ModelSpec:
    try:
        content = json.loads(text)
        if content["format"] != SPEC_FORMAT:
            raise ValueError(f"format {content['format']}, this version reads {SPEC_FORMAT}")
        return ModelSpec(**content["spec"])
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: its '{SPEC_KEY}' metadata is of another version of distill: {error}") from error


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a released .pt/.pth file: at the top, or under 'state_dict' or 'model'. No code in it is run.

    Raises:
        CheckpointError: a file that is damaged, no checkpoint, or more than tensors.
    """
    content = _read_torch_file(Path(path))
    container = content
    if isinstance(content, dict):
        container = next((content[key] for key in CONTAINER_KEYS if isinstance(content.get(key), dict)), content)
    if not isinstance(container, dict) or not container:
        raise CheckpointError(f"{path}: holds {_describe(container)}, not named tensors")
    if others := [str(key) for key, value in container.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(
            f"{path}: expected tensors at the top, or under {' or '.join(map(repr, CONTAINER_KEYS))}; "
            f"found other values: {_listed(others)}"
        )
    return container


def _describe(content: Any) -> str:
    return "nothing" if content == {} else f"a {type(content).__name__}"


def _read_torch_file(path: Path) -> Any:
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
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise CheckpointError(
            f"{path}: holds Python objects{what}, which could run code and are never read; where you trust it, write "
            "its tensors alone again: torch.save(model.state_dict(), FILE)"
        ) from error
    except (RuntimeError, EOFError, LookupError, OSError, struct.error) as error:
        raise CheckpointError(damaged) from error


def load_state_dict_strict(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load tensors, every one of them and no other.

    Args:
        source: where they come from, for the message.
    Raises:
        CheckpointError: lists the tensors that are missing, unexpected, or of another shape; nothing is loaded.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    misshapen = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if missing or unexpected or misshapen:
        lines = [f"{source}: the tensors do not fit; the file is of another model or variant"]
        for sort, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen)):
            if names:
                lines.append(f"  {len(names)} {sort} (of {len(own)}): {_listed(names)}")
        raise CheckpointError("\n".join(lines))
    module.load_state_dict(state)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def sha256_file(path: str | Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()
