"""Codecs: one teacher embedding as bytes. An entry is a safetensors blob that describes itself.

The tensor `values` (C, N) of an entry holds two parts of each channel: the block of cells that the photo touches, row
by row, and a summary of the padding (distill.data.cache.padding).

The header's metadata has the single key `distill`, a JSON object. Safetensors writes several keys in random order, but
equal work must give equal bytes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated

import msgspec
import torch
from msgspec import Meta
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from distill.config.names import IDENTITY
from distill.data.cache.padding import restore_padding, summarize_padding, summary_size
from distill.errors import CacheError, did_you_mean
from distill.geometry import HW, valid_grid_hw
from distill.outside import Line, parse_json

FLOAT_CODECS = {"fp16": torch.float16, "bf16": torch.bfloat16}
CODECS = (*FLOAT_CODECS, "int8")
LAYOUT = "C,block+padding"
METADATA_KEY = "distill"
VERIFY_HINT = "'distill cache verify DIR' names every damaged shard"
DTYPES = {"fp16": "float16", "bf16": "bfloat16", "int8": "int8"}  # of `values`
MOST_GRID = 1 << 16
MOST_VALUES = 1 << 28  # of a decoded embedding: 1 GiB as float32, and SAM's have 2 ** 20
HEADER_LENGTH_BYTES = 8  # safetensors: a little-endian uint64, then that many bytes of JSON

# int8 scales a channel in bands of about this many values. With one scale for a channel of 64 x 64, outliers make the
# other values coarse: the relative L2 error on Student-t(4) values is 2.2 %, against 1.4 % in bands.
INT8_BAND_VALUES = 768
INT8_LEVELS = 255


Cells = Annotated[int, Meta(ge=1, le=MOST_GRID)]
Pixels = Annotated[int, Meta(ge=1, le=1 << 31)]


@dataclass(frozen=True)
class EntryHeader:
    """The description of an entry, in its header.

    Attributes:
        key: the sample.
        view: the view of the photo that the teacher saw.
        codec, layout, dtype: how `values` (C, N) is stored.
        original_hw: height and width of the photo in pixels.
        grid: E.
        valid_hw: rows and columns of the stored block, at the top left of the (E, E) map.
        band: the number of values of a channel that share one scale and one offset (int8), else 0.
    """

    key: Line
    view: Line
    codec: Line
    layout: Line
    dtype: Line
    original_hw: tuple[Pixels, Pixels]
    grid: Cells
    valid_hw: tuple[Cells, Cells]
    band: Annotated[int, Meta(ge=0, le=1 << 32)] = 0


class _Metadata(msgspec.Struct):
    distill: str  # METADATA_KEY


class _Safetensors(msgspec.Struct):
    """The header of a safetensors blob, of which `load` reads the rest."""

    metadata: _Metadata = msgspec.field(name="__metadata__")


def full_map_bytes(embedding_dim: int, embedding_size: int) -> int:
    """Return the bytes of a complete embedding (C, E, E) in fp16, padding included."""
    return 2 * embedding_dim * embedding_size**2


def check_codec(codec: str) -> None:
    """Raise CacheError on an unknown codec."""
    if codec not in CODECS:
        raise CacheError(f"unknown codec '{codec}'. {did_you_mean(codec, CODECS)}")


def encode_embedding(embedding: Tensor, original_hw: HW, codec: str, *, key: str = "", view: str = IDENTITY) -> bytes:
    """Encode an embedding as one entry. The same values always give the same bytes.

    Args:
        embedding: (C, E, E), any float dtype, on any device.
        original_hw: height and width of the photo.
        codec: fp16, bf16 or int8.
        key: the sample, for the header.
        view: the view of the photo, for the header.

    Raises:
        CacheError: the codec is unknown, or a value is NaN, infinite or beyond fp16's range.
    """
    check_codec(codec)
    grid = embedding.shape[-1]
    rows, cols = valid_grid_hw(original_hw, grid)
    embedding = embedding.detach().float().cpu()
    num_broken = int((~torch.isfinite(embedding)).sum())
    if num_broken:
        raise CacheError(
            f"sample '{key}': the teacher's embedding has {num_broken} values that are NaN or infinite; check the "
            "teacher's checkpoint, and try cache.precision=fp32"
        )
    block = embedding[:, :rows, :cols].flatten(1)
    values = torch.cat([block, summarize_padding(embedding, (rows, cols))], 1)  # (C, N)
    band = 0
    if codec == "int8":
        band = band_of(values.shape[1])
        tensors = quantize(values, band)
    else:
        tensors = {"values": values.to(FLOAT_CODECS[codec])}
        if codec == "fp16" and not torch.isfinite(tensors["values"]).all():
            largest = float(values.abs().max())
            raise CacheError(f"sample '{key}': a value of {largest:.3g} is beyond fp16's range; set cache.codec=bf16")
    header = EntryHeader(
        key=key,
        view=view,
        codec=codec,
        layout=LAYOUT,
        dtype=str(tensors["values"].dtype).removeprefix("torch."),
        original_hw=(int(original_hw[0]), int(original_hw[1])),
        grid=grid,
        valid_hw=(rows, cols),
        band=band,
    )
    return save(tensors, metadata={METADATA_KEY: json.dumps(asdict(header), sort_keys=True)})


def decode_embedding(blob: bytes, *, origin: str = "embedding entry") -> Tensor:
    """Decode an entry to an embedding, with its padding restored from the stored summary.

    Args:
        origin: names the entry in errors.

    Returns:
        float32 (C, E, E).

    Raises:
        CacheError: the entry is damaged, or of a newer layout, or a value is NaN or infinite.
    """
    header = read_entry_header(blob, origin=origin)
    rows, cols = header.valid_hw
    try:
        tensors = load(blob)
        values = tensors["values"]  # (C, N)
        mistake = _mistake(tensors, header)
        if mistake is not None:
            raise CacheError(f"{origin}: damaged entry ({mistake}); {VERIFY_HINT}")
        values = values.float()
        if header.codec == "int8":
            dequantize(values, tensors["scale"], tensors["offset"], header.band)
        block, padding = values[:, : rows * cols], values[:, rows * cols :]
        embedding = torch.zeros(len(values), header.grid, header.grid)  # (C, E, E)
        embedding[:, :rows, :cols] = block.view(-1, rows, cols)
        restore_padding(embedding, padding, header.valid_hw)
    except (SafetensorError, KeyError, IndexError, RuntimeError, ValueError, TypeError) as error:
        raise CacheError(f"{origin}: damaged entry ({error}); {VERIFY_HINT}") from error
    if not torch.stack(embedding.aminmax()).isfinite().all():  # NaN is the least and the largest value
        raise CacheError(f"{origin}: the embedding holds NaN or infinite values; build its shard again")
    return embedding


def read_entry_header(blob: bytes, *, origin: str = "embedding entry") -> EntryHeader:
    """Read the header of an entry. Raises CacheError when it is damaged or of a newer layout."""
    length = int.from_bytes(blob[:HEADER_LENGTH_BYTES], "little")
    place = f"{origin}: damaged entry header"
    content = blob[HEADER_LENGTH_BYTES : HEADER_LENGTH_BYTES + length]
    described = parse_json(content, _Safetensors, place, VERIFY_HINT, raises=CacheError).metadata.distill
    header = parse_json(described.encode(), EntryHeader, place, VERIFY_HINT, raises=CacheError)
    if header.codec not in CODECS or header.layout != LAYOUT:
        raise CacheError(f"{origin}: codec '{header.codec}' is of a newer distill; update distill")
    if max(header.valid_hw) != header.grid:
        raise CacheError(f"{place}: a photo touches every row or column of its map; {VERIFY_HINT}")
    return header


def _mistake(tensors: dict[str, Tensor], header: EntryHeader) -> str | None:
    """Return what does not fit the header in the tensors of an entry. Return None if all fits."""
    rows, cols = header.valid_hw
    num_values = rows * cols + summary_size(header.grid, header.valid_hw)
    values = tensors["values"]
    if str(values.dtype) != f"torch.{DTYPES[header.codec]}":
        return f"{values.dtype} as {header.codec}"
    if values.ndim != 2 or values.shape[1] != num_values:
        return f"values of shape {tuple(values.shape)}, and {num_values} in a channel"
    if not 0 < len(values) * header.grid**2 <= MOST_VALUES:
        return f"a map of {len(values)} x {header.grid} x {header.grid}"
    if header.codec != "int8":
        return None
    if header.band < 1:
        return f"bands of {header.band} values"
    shape = len(values), -(-num_values // header.band)
    for name in ("scale", "offset"):
        if tensors[name].shape != shape or tensors[name].dtype != torch.float32:
            return f"{name} of shape {tuple(tensors[name].shape)} and {tensors[name].dtype}, not {shape} and float32"
    return None


def band_of(num_values: int) -> int:
    """Return how many values of a channel share one scale: about INT8_BAND_VALUES, in bands of equal size."""
    num_bands = max(1, round(num_values / INT8_BAND_VALUES))
    return -(-num_values // num_bands)


def quantize(values: Tensor, band: int, levels: int = INT8_LEVELS) -> dict[str, Tensor]:
    """Quantize floats (C, N) to 8-bit affine values, with one scale and one offset per channel and band.

    Args:
        band: the number of values of a channel that share one scale (`band_of`).
        levels: steps from the smallest value of a band to the largest. Fewer than INT8_LEVELS use fewer of the 8 bits.

    Returns:
        "values" int8 (C, N), "scale" and "offset" float32 (C, bands): x is about values * scale + offset.
    """
    bands = torch.split(values, band, 1)
    low = torch.stack([part.amin(1) for part in bands], 1)  # (C, bands)
    high = torch.stack([part.amax(1) for part in bands], 1)
    scale = (high - low) / levels
    half = (levels + 1) // 2
    offset = low + half * scale
    step = scale.clamp_min(torch.finfo(torch.float32).tiny)
    whole = [((part - offset[:, i, None]) / step[:, i, None]).round() for i, part in enumerate(bands)]
    return {"values": torch.cat(whole, 1).clamp(-half, half - 1).to(torch.int8), "scale": scale, "offset": offset}


def dequantize(values: Tensor, scale: Tensor, offset: Tensor, band: int) -> None:
    """Turn quantized values (C, N), as floats, back into the original values, in place. Scale, offset: (C, bands)."""
    for i, part in enumerate(torch.split(values, band, 1)):
        part.mul_(scale[:, i, None]).add_(offset[:, i, None])
