"""Codecs: one teacher embedding as bytes. An entry is a safetensors blob that describes itself.

Only the block of cells that the photo touches is stored, and one mean vector of the padding: losses never see the
padding, but a mask decoder does. With zeros there, masks of a small trained teacher on 3:2 photos kept a mean IoU of
0.95 with those from the whole embedding; with the mean vector, 0.99.

The header's metadata has the single key `distill`, a JSON object: safetensors writes several keys in random order, and
equal work gives equal bytes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from distill.errors import CacheError, did_you_mean
from distill.geometry import HW, valid_grid_hw

FLOAT_CODECS = {"fp16": torch.float16, "bf16": torch.bfloat16}
CODECS = (*FLOAT_CODECS, "int8")
LAYOUT = "CHW"
METADATA_KEY = "distill"
VERIFY_HINT = "'distill cache verify DIR' names every damaged shard"
HEADER_LENGTH_BYTES = 8  # safetensors: a little-endian uint64, then that many bytes of JSON

# int8 scales a channel in bands of rows of about this many values. One scale per channel is as good on normal values
# (0.8 % relative L2) but suffers from outliers: 2.1 % on Student-t(4) values, 1.2 % in bands, for 1.6 % more bytes.
INT8_BAND_VALUES = 512
INT8_LEVELS = 255


@dataclass(frozen=True)
class EntryHeader:
    """What an entry says of itself.

    key: the sample. codec, layout, dtype: how `values` (C, rows, cols) is stored. original_hw: the photo's pixels.
    grid: E. valid_hw: rows and cols of the stored block, at the top left of the (E, E) map. band_rows: rows that share
    one scale and one offset (int8), else 0.
    """

    key: str
    codec: str
    layout: str
    dtype: str
    original_hw: HW
    grid: int
    valid_hw: HW
    band_rows: int = 0


def check_codec(codec: str) -> None:
    """Raise CacheError on an unknown codec."""
    if codec not in CODECS:
        raise CacheError(f"unknown codec '{codec}'. {did_you_mean(codec, CODECS)}")


def encode_embedding(embedding: Tensor, original_hw: HW, codec: str, *, key: str = "") -> bytes:
    """The valid region of an embedding as one entry; the same values always give the same bytes.

    Args:
        embedding: (C, E, E), any float dtype, on any device. original_hw: height and width of the photo.
        codec: fp16, bf16 or int8. key: the sample's key, kept in the header.
    Raises:
        CacheError: an unknown codec, or a value that is NaN, infinite or beyond fp16's range.
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
    block = embedding[:, :rows, :cols].contiguous()  # (C, rows, cols)
    band_rows = 0
    if codec == "int8":
        band_rows = max(1, INT8_BAND_VALUES // cols)
        tensors = quantize(block, band_rows)
    else:
        tensors = {"values": block.to(FLOAT_CODECS[codec])}
        if codec == "fp16" and not torch.isfinite(tensors["values"]).all():
            largest = float(block.abs().max())
            raise CacheError(f"sample '{key}': a value of {largest:.3g} is beyond fp16's range; set cache.codec=bf16")
    padding = torch.ones(grid, grid, dtype=torch.bool)
    padding[:rows, :cols] = False
    if padding.any():
        tensors["padding"] = embedding[:, padding].mean(1)  # (C,)
    header = EntryHeader(
        key=key,
        codec=codec,
        layout=LAYOUT,
        dtype=str(tensors["values"].dtype).removeprefix("torch."),
        original_hw=(int(original_hw[0]), int(original_hw[1])),
        grid=grid,
        valid_hw=(rows, cols),
        band_rows=band_rows,
    )
    return save(tensors, metadata={METADATA_KEY: json.dumps(asdict(header), sort_keys=True)})


def decode_embedding(blob: bytes, *, fill_padding: bool = False, origin: str = "embedding entry") -> Tensor:
    """An entry back as a map.

    Args:
        fill_padding: put the mean vector of the padding there, as is right for a mask decoder; else zeros.
        origin: names the entry in errors.
    Returns:
        float32 (C, E, E).
    Raises:
        CacheError: a damaged entry.
    """
    header = read_entry_header(blob, origin=origin)
    try:
        tensors = load(blob)
        values = tensors["values"]  # (C, rows, cols)
        rows, cols = header.valid_hw
        embedding = torch.zeros(values.shape[0], header.grid, header.grid)  # (C, E, E)
        if fill_padding and "padding" in tensors:
            embedding += tensors["padding"][:, None, None]
        block = embedding[:, :rows, :cols]
        block.copy_(values)
        if header.codec == "int8":
            dequantize(block, tensors["scale"], tensors["offset"], header.band_rows)
    except (SafetensorError, KeyError, IndexError, RuntimeError) as error:
        raise CacheError(f"{origin}: damaged entry ({error}); {VERIFY_HINT}") from error
    return embedding


def read_entry_header(blob: bytes, *, origin: str = "embedding entry") -> EntryHeader:
    """The header of an entry, without its tensors. Raises CacheError when it is damaged or of a newer layout."""
    try:
        length = int.from_bytes(blob[:HEADER_LENGTH_BYTES], "little")
        metadata = json.loads(blob[HEADER_LENGTH_BYTES : HEADER_LENGTH_BYTES + length])["__metadata__"]
        fields = json.loads(metadata[METADATA_KEY])
        fields["original_hw"], fields["valid_hw"] = tuple(fields["original_hw"]), tuple(fields["valid_hw"])
        header = EntryHeader(**fields)
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{origin}: damaged entry header; {VERIFY_HINT}") from error
    if header.codec not in CODECS or header.layout != LAYOUT:
        raise CacheError(f"{origin}: codec '{header.codec}' is of a newer distill; update it")
    return header


def quantize(block: Tensor, band_rows: int, levels: int = INT8_LEVELS) -> dict[str, Tensor]:
    """8-bit affine values of (C, rows, cols), with one scale and one offset per channel and band of rows.

    Args:
        levels: steps from the smallest value of a band to the largest; fewer than INT8_LEVELS use fewer of the 8 bits.
    Returns:
        values int8 (C, rows, cols), scale and offset float32 (C, bands): x is about values * scale + offset.
    """
    bands = block.split(band_rows, 1)
    low = torch.stack([band.amin((1, 2)) for band in bands], 1)  # (C, bands)
    high = torch.stack([band.amax((1, 2)) for band in bands], 1)
    scale = (high - low) / levels
    half = (levels + 1) // 2
    offset = low + half * scale
    rows = block.shape[1]
    step = scale.clamp_min(torch.finfo(torch.float32).tiny).repeat_interleave(band_rows, 1)[:, :rows, None]
    zero = offset.repeat_interleave(band_rows, 1)[:, :rows, None]  # (C, rows, 1)
    values = ((block - zero) / step).round().clamp(-half, half - 1).to(torch.int8)
    return {"values": values, "scale": scale, "offset": offset}


def dequantize(block: Tensor, scale: Tensor, offset: Tensor, band_rows: int) -> None:
    """Turn quantized values, floats (C, rows, cols), into what they stand for, in place; scale, offset (C, bands)."""
    rows = block.shape[1]
    for of_bands, operation in ((scale, block.mul_), (offset, block.add_)):
        operation(of_bands.repeat_interleave(band_rows, 1)[:, :rows, None])  # (C, rows, 1)
