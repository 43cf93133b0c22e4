"""Ways to store an embedding: our codecs, and others that were tried.

A trial is compared with others by its bytes and its error. A bound is not a codec: its bytes are the entropy of single
values by channel, and no coder of single values (Huffman, zstd's, ANS) needs fewer.
"""

from __future__ import annotations

import importlib
import importlib.util
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from distill.data.cache.codecs import (
    CODECS,
    HEADER_LENGTH_BYTES,
    band_of,
    decode_embedding,
    dequantize,
    encode_embedding,
    quantize,
)

BITS_PER_BYTE = 8
FEWER_BITS = (7, 6, 5, 4)
# Steps for all channels, as shares of the root mean square. Uniform rounding has an error of step / sqrt(12): the first
# one gives about the relative error of int8, and the second one the 1.5 % that is allowed.
STEP_SHARES = (0.028, 0.05)
FASTEST, HUFFMAN_ONLY = 1, zlib.Z_HUFFMAN_ONLY
FAST_ZLIB = partial(zlib.compress, level=FASTEST)


@dataclass(frozen=True)
class Trial:
    """A way to store an embedding (C, E, E) of a square photo: functions to bytes and back."""

    name: str
    encode: Callable[[Tensor], bytes]
    decode: Callable[[bytes], Tensor]


@dataclass(frozen=True)
class Bound:
    """A lower bound of bytes. `measure` returns the bytes of an embedding, and the embedding with its coding error."""

    name: str
    measure: Callable[[Tensor], tuple[float, Tensor]]


def trials() -> list[Trial]:
    """Return our codecs, then entropy coding of their bytes, then coarser values."""
    found = [_codec(name) for name in CODECS]
    for name in ("fp16", "int8"):
        found.append(_compressed(name, "zlib, Huffman", _huffman, lambda data: zlib.decompress(data, -zlib.MAX_WBITS)))
        found.append(_compressed(name, "zlib", FAST_ZLIB, zlib.decompress))
    found.append(_compressed("int8", "lzma", lambda data: lzma.compress(data, preset=0), lzma.decompress))
    found += [_one_step(share) for share in STEP_SHARES]
    return found + _with_zstd() + _with_blosc2()


def _with_zstd() -> list[Trial]:
    """Return the trials of the package zstandard, which only this bench uses. Return none without the package."""
    if importlib.util.find_spec("zstandard") is None:
        return []
    zstandard = importlib.import_module("zstandard")
    compress, decompress = zstandard.ZstdCompressor(level=FASTEST).compress, zstandard.ZstdDecompressor().decompress
    of_int8 = _compressed("int8", "zstd", compress, decompress)
    return [of_int8, *(_one_step(share, "zstd", compress, decompress) for share in STEP_SHARES)]


def _with_blosc2() -> list[Trial]:
    """Return the trials of the package blosc2, which only this bench uses. Return none without the package."""
    if importlib.util.find_spec("blosc2") is None:
        return []
    blosc2 = importlib.import_module("blosc2")
    options = {"typesize": 1, "clevel": FASTEST, "filters": [blosc2.Filter.BITSHUFFLE], "nthreads": 1}
    return [
        _compressed(
            "int8", f"blosc2, {codec.name}", partial(blosc2.compress2, codec=codec, **options), blosc2.decompress2
        )
        for codec in (blosc2.Codec.LZ4, blosc2.Codec.ZSTD)
    ]


def bounds() -> list[Bound]:
    """Return the bounds of codes of single values: for int8, for fewer bits, and for one step in all channels."""
    found = [Bound("int8, bound", lambda embedding: _banded_bound(embedding, BITS_PER_BYTE, packed=False))]
    for bits in FEWER_BITS:
        found.append(Bound(f"{bits} bits, packed", partial(_banded_bound, bits=bits, packed=True)))
    for share in STEP_SHARES:
        found.append(Bound(f"one step of {share} rms, bound", partial(_one_step_bound, share=share)))
    return found


def _square(embedding: Tensor) -> tuple[int, int]:
    return embedding.shape[1], embedding.shape[2]


def _codec(name: str) -> Trial:
    return Trial(name, lambda embedding: encode_embedding(embedding, _square(embedding), name), decode_embedding)


def _compressed(
    codec: str, coder: str, compress: Callable[[bytes], bytes], decompress: Callable[[bytes], bytes]
) -> Trial:
    """Return a trial that compresses the entries of one of our codecs.

    The bytes of two-byte values are separated: all low bytes come first, then all high bytes.
    """
    plain = _codec(codec)
    width = 2 if codec == "fp16" else 1

    def encode(embedding: Tensor) -> bytes:
        blob = plain.encode(embedding)
        start = HEADER_LENGTH_BYTES + int.from_bytes(blob[:HEADER_LENGTH_BYTES], "little")
        planes = np.frombuffer(blob, np.uint8, offset=start).reshape(-1, width).T
        return compress(blob[:start] + planes.tobytes())

    def decode(data: bytes) -> Tensor:
        blob = decompress(data)
        start = HEADER_LENGTH_BYTES + int.from_bytes(blob[:HEADER_LENGTH_BYTES], "little")
        planes = np.frombuffer(blob, np.uint8, offset=start).reshape(width, -1).T
        return plain.decode(blob[:start] + planes.tobytes() if width > 1 else blob)

    return Trial(f"{codec} + {coder}", encode, decode)


def _huffman(data: bytes) -> bytes:
    coder = zlib.compressobj(FASTEST, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, HUFFMAN_ONLY)
    return coder.compress(data) + coder.flush()


def _one_step(
    share: float,
    coder: str = "zlib",
    compress: Callable[[bytes], bytes] = FAST_ZLIB,
    decompress: Callable[[bytes], bytes] = zlib.decompress,
) -> Trial:
    """Return a trial that stores integer multiples of one step.

    Channels with a wide range take more bits than others, and the coder exploits that.
    """

    def encode(embedding: Tensor) -> bytes:
        step = _step(embedding, share)
        values = (embedding / step).round().clamp(-(1 << 15), (1 << 15) - 1).to(torch.int16).numpy()
        planes = values.view(np.uint8).reshape(-1, 2).T.tobytes()
        return np.array([step, *embedding.shape], "<f4").tobytes() + compress(planes)

    def decode(data: bytes) -> Tensor:
        header: list[float] = np.frombuffer(data[:16], "<f4").tolist()
        step, *shape = header
        planes = np.frombuffer(decompress(data[16:]), np.uint8).reshape(2, -1)
        values = np.ascontiguousarray(planes.T).view(np.int16).reshape([int(side) for side in shape])
        return torch.from_numpy(values).float() * step

    return Trial(f"one step of {share} rms + {coder}", encode, decode)


def _step(embedding: Tensor, share: float) -> float:
    return share * float(embedding.square().mean().sqrt())


def _banded_bound(embedding: Tensor, bits: int, *, packed: bool) -> tuple[float, Tensor]:
    """Quantize to `bits` bits with int8's bands, and return the bytes and the decoded embedding.

    Args:
        packed: count `bits` bits a value, not the entropy of each channel.
    """
    flat = embedding.flatten(1)  # (C, N)
    band = band_of(flat.shape[1])
    tensors = quantize(flat, band, (1 << bits) - 1)
    values = tensors["values"]
    decoded = values.float()
    dequantize(decoded, tensors["scale"], tensors["offset"], band)
    num_bytes = values.numel() * bits / BITS_PER_BYTE if packed else _entropy_bytes(values)
    num_bytes += 8 * tensors["scale"].numel()  # a scale and an offset, four bytes each
    return num_bytes, decoded.view_as(embedding)


def _one_step_bound(embedding: Tensor, share: float) -> tuple[float, Tensor]:
    step = _step(embedding, share)
    values = (embedding / step).round()
    return _entropy_bytes(values.long()), values * step


def _entropy_bytes(values: Tensor) -> float:
    """Return the bytes of an ideal code of single values, without the bytes of its table for each channel."""
    bits = 0.0
    for channel in values:
        counts = torch.unique(channel, return_counts=True)[1].double()
        bits -= float((counts * (counts / counts.sum()).log2()).sum())
    return bits / BITS_PER_BYTE
