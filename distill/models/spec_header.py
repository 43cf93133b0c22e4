"""What a file of a model says about it: its `ModelSpec` as JSON, read with bounds before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from distill.errors import CheckpointError
from distill.models.sam import ModelSpec
from distill.outside import Name, convert, parse_json

SPEC_KEY = "distill"  # in the safetensors metadata; its value is the JSON text {"format": 1, "spec": {...}}
SPEC_FORMAT = 1
DECODER_MLP = "mask_decoder.transformer.layers.0.mlp.lin1.weight"
MOST_SIDE, MOST_CHANNELS, MOST_CELLS = 8192, 1 << 14, 512  # SAM: 1024 pixels, 256 and 2048 channels, 64 cells a side


class _Version(msgspec.Struct):
    """The format of what a file says about its model."""

    format: int


class _Spec(msgspec.Struct, forbid_unknown_fields=True):
    """A `ModelSpec` in a file. Larger sizes than any model has are refused before memory is taken for them."""

    encoder: Name
    image_size: Annotated[int, Meta(ge=1, le=MOST_SIDE)]
    embedding_dim: Annotated[int, Meta(ge=1, le=MOST_CHANNELS)] = ModelSpec.embedding_dim
    embedding_size: Annotated[int, Meta(ge=1, le=MOST_CELLS)] = ModelSpec.embedding_size
    decoder_mlp_dim: Annotated[int, Meta(ge=1, le=MOST_CHANNELS)] = ModelSpec.decoder_mlp_dim
    norm_eps: Annotated[float, Meta(gt=0, lt=1)] | None = ModelSpec.norm_eps
    paint_prompts: bool = ModelSpec.paint_prompts


class _Described(msgspec.Struct):
    """What a file says about its model: the content of the metadata under SPEC_KEY."""

    spec: _Spec


def describe(spec: ModelSpec) -> dict[str, Any]:
    """Return what a file of a model says about it under SPEC_KEY."""
    return {"format": SPEC_FORMAT, "spec": asdict(spec)}


def parse_spec(described: object, path: Path) -> ModelSpec:
    """Return the spec of what a file says about its model: JSON text, or an object of dicts.

    Raises:
        CheckpointError: another version wrote it, a field is unknown, or a number is out of its range.
    """
    origin, mend = f"{path}: its '{SPEC_KEY}' metadata is of another version of distill", "write or copy the file again"
    if isinstance(described, str):
        described = parse_json(
            described.encode("utf-8", "surrogatepass"), dict[str, Any], origin, mend, raises=CheckpointError
        )
    version = convert(described, _Version, origin, mend, raises=CheckpointError).format
    if version != SPEC_FORMAT:
        raise CheckpointError(f"{origin}: format {version}, this version reads {SPEC_FORMAT}")
    spec = convert(described, _Described, origin, mend, raises=CheckpointError).spec
    return ModelSpec(**msgspec.structs.asdict(spec))


def check_widths(spec: ModelSpec, tensors: Mapping[str, Any], path: Path) -> None:
    """Check the widths that a file claims against its tensors, before memory is taken for a model of these widths."""
    claimed = (spec.decoder_mlp_dim, spec.embedding_dim)
    held = getattr(tensors.get(DECODER_MLP), "shape", None)
    if held != claimed:
        found = "none" if held is None else tuple(held)
        raise CheckpointError(
            f"{path} as {spec.encoder}: the tensors do not fit; the file is of another model or variant\n"
            f"  {DECODER_MLP} {found} for {claimed}"
        )
