"""Models on disk: our `student.safetensors`, which describes itself, and the released files of other projects."""

from __future__ import annotations

import importlib.resources
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from distill.errors import CheckpointError, DistillError
from distill.files import hash_file, write_whole
from distill.models.devices import usable_device
from distill.models.foreign_checkpoint import is_dense, listed, read_tensors, read_torch_file
from distill.models.sam import ModelSpec, PromptableModel, build_from_spec, build_model, spec_for
from distill.models.spec_header import SPEC_KEY, check_widths, describe, parse_spec
from distill.outside import parse_yaml
from distill.students import check_student_name
from distill.students.finite import check_finite_weights
from distill.students.fuse import fuse, is_fused

STUDENT_FILE = "student.safetensors"  # in a run directory
QUICKSTART = "quickstart"
QUICKSTART_FILE = "quickstart_teacher.safetensors"  # in distill/quickstart/weights
QUICKSTART_SHA256 = "8a7c29ee78e8cb9a4e5214c0c3ee73ec8bb306b1fa3441aaad4c9032317dbcdd"
RECIPE_KEY = "recipe"  # in the same metadata: the recipe of the training that made the model, as YAML
TRAINING_SUFFIX = ".ckpt"  # of a checkpoint of a training, which holds the spec under SPEC_KEY too
STUDENT_PREFIX = "model."  # of the student's tensors in it
ENCODER_PREFIX, DECODER_PARTS = "image_encoder.", ("prompt_encoder", "mask_decoder")


def save_model(
    model: PromptableModel, path: str | Path, *, metadata: Mapping[str, str] | None = None, half: bool = False
) -> None:
    """Write a model and its spec to one safetensors file, complete or not at all.

    Args:
        metadata: further text for the file's header.
        half: True to store matrices and kernels as fp16, which halves the file. Vectors, such as the statistics of
            norms, stay as they are. `load_model` reads both as float32.
    Raises:
        CheckpointError: the model is fused, a weight is too large for fp16, or the disk is full or not writable; then
            no file is left behind.
    """
    _refuse_fused(model)
    spec = json.dumps(describe(model.spec))
    tensors = _tensors(model)
    if half:
        tensors = {name: _to_half(name, tensor) for name, tensor in tensors.items()}
    _write(Path(path), safetensors.torch.save(tensors, {**(metadata or {}), SPEC_KEY: spec}))


def save_published(model: PromptableModel, path: str | Path) -> None:
    """Write a .pt or .pth file that the student's own repository can load, with its tensor names and its container.

    Raises:
        CheckpointError: no other project published this student, its published decoder is not SAM's, or its sizes
            differ from the published ones, which that repository's code could not load. Or the model is fused, or
            the disk is full or not writable.
    """
    _refuse_fused(model)
    name = model.spec.encoder
    entry = check_student_name(name)
    if not entry.published:
        raise CheckpointError(f"{name} was published by no other project; only our own format holds it")
    if entry.own_decoder:
        raise CheckpointError(f"{name}: its repository has a decoder of its own, and could not read this one's")
    ours, theirs = asdict(model.spec), asdict(spec_for(name))
    if differences := [f"{key} {ours[key]}, not {theirs[key]}" for key in ours if ours[key] != theirs[key]]:
        raise CheckpointError(
            f"{name}: the code of its repository cannot hold this model: {'; '.join(differences)}. It loads "
            "students of a teacher of SAM's shape, trained at the published image_size"
        )
    tensors = _tensors(model.image_encoder if entry.encoder_only else model)
    buffer = io.BytesIO()
    torch.save({entry.container: tensors} if entry.container else tensors, buffer)
    _write(Path(path), buffer.getvalue())


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}


def _to_half(name: str, tensor: Tensor) -> Tensor:
    """Return a matrix or kernel as fp16, and any other tensor as it is."""
    if tensor.dim() < 2 or not tensor.is_floating_point():
        return tensor
    halved = tensor.half()
    if not halved.isfinite().all():
        raise CheckpointError(f"{name}: holds values that fp16 cannot; save the model with half=False")
    return halved


def _refuse_fused(model: PromptableModel) -> None:
    if is_fused(model):
        raise CheckpointError(
            "a fused model cannot be saved: its tensors are no longer those of its format. Save the model itself; "
            "load_for_inference fuses it again"
        )


def _write(path: Path, content: bytes) -> None:
    write_whole(path, content, raises=CheckpointError, note=f"the file takes {len(content):,} bytes")


def load_model(
    path_or_name: str | Path,
    *,
    name: str | None = None,
    decoder: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> PromptableModel:
    """Load a promptable model, in eval mode.

    Args:
        path_or_name: a student.safetensors, a run directory that holds one, a .ckpt of a run's checkpoints (the
            averaged weights where there are some), 'quickstart' (the model that ships with the package), or a
            released .pt/.pth file of another project.
        name: the student (students.STUDENTS) that a released file holds. Our own files contain this name.
        decoder: a model file whose prompt encoder and mask decoder complete a released file of only an encoder.
        device: where the model goes; None leaves it on the CPU.
        dtype: of its weights, as torch.bfloat16; None leaves float32. Prompts are placed in float32 in any case.
    Raises:
        CheckpointError: the file is missing, damaged, of another model, or would run code when read; or `dtype` is no
            floating-point format.
        RunError: the device is not usable on this machine.
    """
    _check_dtype(dtype)
    device = None if device is None else usable_device(device)
    return _load(find_weights(path_or_name), name, decoder).to(device, dtype)


def _check_dtype(dtype: torch.dtype | None) -> None:
    if dtype is not None and not dtype.is_floating_point:
        raise CheckpointError(f"dtype={dtype}: a model's weights are floating-point numbers; give torch.bfloat16")


def _load(path: Path, name: str | None, decoder: str | Path | None) -> PromptableModel:
    if path.suffix == TRAINING_SUFFIX and (training := _read_training(path)) is not None:
        return _load_training(path, training, name)
    if path.suffix == ".safetensors" and (SPEC_KEY in read_metadata(path) or name is None):
        if decoder is not None:
            raise CheckpointError(f"{path}: holds a decoder of its own; leave the other one out")
        return _load_own(path, name)
    if name is None:
        raise CheckpointError(
            f"{path}: a released checkpoint does not say which model it is: give its name, as 'efficientvit_sam_l0'"
        )
    model = build_model(name)
    if check_student_name(name).own_decoder:
        raise CheckpointError(
            f"{path}: the released files of {name} hold a decoder that is not SAM's, which is not supported; only the "
            f"encoder is, to be trained with SAM's decoder: student.name={name} student.init_from={path}"
        )
    _load_released(model, path, decoder)
    return model


def load_for_inference(
    path_or_name: str | Path,
    *,
    name: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> PromptableModel:
    """Load a model as `load_model` does and fuse it, in float32: the same answers from fewer steps.

    A fused model can be neither saved nor trained further.
    """
    _check_dtype(dtype)
    fused = fuse(load_model(path_or_name, name=name, device=device))
    assert isinstance(fused, PromptableModel)
    return fused.to(dtype=dtype)


def _load_released(model: PromptableModel, path: Path, decoder: str | Path | None) -> None:
    name = model.spec.encoder
    state = read_tensors(path)
    if any(tensor_name.startswith(DECODER_PARTS) for tensor_name in state):
        if decoder is not None:
            raise CheckpointError(f"{path}: holds a decoder of its own; leave {decoder} out")
        load_state_dict_strict(model, state, source=f"{path} as {name}")
        return
    load_state_dict_strict(model.image_encoder, without_prefix(state), source=f"{path} as the encoder of {name}")
    if decoder is None:
        raise CheckpointError(
            f"{path}: holds the encoder of {name} alone. Give a file with the decoder that it was trained for: "
            f"`distill convert {path} --name {name} --decoder FILE`; or train on from it: student.init_from={path}"
        )
    load_decoder(model, decoder)


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix `image_encoder.` from the names that have it; encoder files come with it or without."""
    return {name.removeprefix(ENCODER_PREFIX): tensor for name, tensor in state.items()}


def load_decoder(model: PromptableModel, source: str | Path) -> None:
    """Load the prompt encoder and mask decoder of a file into a model. The file may hold any encoder.

    Raises:
        CheckpointError: the file lacks them, or has them in another shape.
    """
    path = find_weights(source)
    state = read_tensors(path)
    for part in DECODER_PARTS:
        prefix = f"{part}."
        own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        load_state_dict_strict(getattr(model, part), own, source=f"{path}, its {part}")


def is_packaged(path_or_name: str | Path) -> bool:
    """Tell whether this names the packaged model, which has priority over a file or directory of the same name."""
    return str(path_or_name) == QUICKSTART


def find_weights(path_or_name: str | Path) -> Path:
    """Return the existing file that `load_model` reads for a path or a name.

    Raises:
        CheckpointError: there is no such file.
    """
    if is_packaged(path_or_name):
        return _packaged_weights()
    path = Path(path_or_name)
    if path.is_dir():
        if not (path / STUDENT_FILE).is_file():
            raise CheckpointError(f"{path}: no {STUDENT_FILE} in this directory; a run writes it when it ends")
        return path / STUDENT_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file. A model is a {STUDENT_FILE}, a run directory that holds one, a .ckpt of a run, "
            f"'{QUICKSTART}', or a released .pt/.pth file"
        )
    return path


def _packaged_weights() -> Path:
    """Return the file of the packaged model. Raises CheckpointError when it is absent or damaged."""
    packaged = Path(str(importlib.resources.files("distill") / "quickstart" / "weights" / QUICKSTART_FILE))
    if not packaged.is_file():
        raise CheckpointError(f"'{QUICKSTART}': this installation lacks {packaged}; install the package again")
    if (digest := sha256_file(packaged)) != QUICKSTART_SHA256:
        raise CheckpointError(
            f"'{QUICKSTART}': {packaged} is damaged (its sha256 is {digest}, not {QUICKSTART_SHA256}); "
            "install the package again"
        )
    return packaged


def is_own(path: Path) -> bool:
    """Return whether a file was written by distill and says which model it holds.

    Raises:
        CheckpointError: the file is damaged.
    """
    if path.suffix == TRAINING_SUFFIX:
        return _read_training(path) is not None
    return path.suffix == ".safetensors" and SPEC_KEY in read_metadata(path)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the text in the header of a safetensors file.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); copy or write it again") from error


def read_recipe(path: Path) -> dict[str, Any]:
    """Read the recipe in the header of a model. Return an empty one if the file has none.

    Raises:
        CheckpointError: the file is damaged, or its recipe is not YAML.
    """
    text = read_metadata(path).get(RECIPE_KEY, "")
    tree = parse_yaml(text, f"{path}, its recipe", "copy or write the file again", raises=CheckpointError)
    return tree if isinstance(tree, dict) else {}


def _load_own(path: Path, name: str | None) -> PromptableModel:
    metadata = read_metadata(path)
    if SPEC_KEY not in metadata:
        raise CheckpointError(
            f"{path}: not written by distill (no '{SPEC_KEY}' in its metadata): give the model's name"
        )
    return _build(parse_spec(metadata[SPEC_KEY], path), read_tensors(path), path, name)


def _build(spec: ModelSpec, tensors: Mapping[str, Tensor], path: Path, name: str | None) -> PromptableModel:
    if name not in (None, spec.encoder):
        raise CheckpointError(f"{path}: holds {spec.encoder}, not {name}")
    try:
        check_student_name(spec.encoder)
        check_widths(spec, tensors, path)
        model = build_from_spec(spec)
    except DistillError as error:
        raise CheckpointError(f"{path}: {error}") from error
    load_state_dict_strict(model, tensors, source=f"{path} as {spec.encoder}")
    return model


def _read_training(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint of a training. Return None if another project wrote the file."""
    content = read_torch_file(path, mmap=True)
    is_training = isinstance(content, dict) and {"loops", "state_dict"} <= content.keys()
    return content if is_training and isinstance(content["state_dict"], dict) else None


def _load_training(path: Path, training: Mapping[str, Any], name: str | None) -> PromptableModel:
    """Build the student of a training's checkpoint. Those of earlier versions do not say which one it is."""
    described = training.get(SPEC_KEY)
    if described is None:
        student = path.parent.parent / STUDENT_FILE
        if not student.is_file():
            raise CheckpointError(
                f"{path}: an earlier version of distill wrote it, and only {student} would say which model it holds; "
                "go on with the run (resume=true), which writes it"
            )
        described = read_metadata(student).get(SPEC_KEY, "")
    held = training["state_dict"]
    tensors = {
        key.removeprefix(STUDENT_PREFIX): value for key, value in held.items() if str(key).startswith(STUDENT_PREFIX)
    }
    return _build(parse_spec(described, path), tensors, path, name)


def load_state_dict_strict(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load tensors into a module if their names and shapes are exactly the module's, and all numbers are finite.

    Args:
        source: where the tensors come from, for the error.
    Raises:
        CheckpointError: some tensors are missing, unexpected, of another shape or not finite. The error lists them,
            and nothing is loaded.
    """
    if strange := [str(name) for name, value in state.items() if not (isinstance(name, str) and is_dense(value))]:
        raise CheckpointError(f"{source}: holds other things than named tensors of numbers: {listed(strange)}")
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
                lines.append(f"  {len(names)} {sort} (of {len(own)}): {listed(names)}")
        raise CheckpointError("\n".join(lines))
    check_finite_weights(state, source)
    module.load_state_dict(state)


def sha256_file(path: str | Path) -> str:
    """Compute the sha256 of a file, in hexadecimal."""
    return hash_file(Path(path))
