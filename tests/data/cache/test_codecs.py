"""Codecs: what is lost, what is stored, and what is refused."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load, save

from distill.data.cache.codecs import CODECS, decode_embedding, encode_embedding, read_entry_header
from distill.data.shards.tar import TAR_BLOCK
from distill.errors import CacheError
from distill.geometry import valid_grid_hw

# Largest relative L2 error: half a unit in the last place of 11 and of 8 bits; 1.5 % for int8.
LARGEST_ERROR = {"fp16": 2**-11, "bf16": 2**-8, "int8": 0.015}
SQUARE, WIDE = (1000, 1000), (1000, 1500)


def embeddings() -> dict[str, torch.Tensor]:
    """Return maps of SAM's shape: normal values, channels of several means and widths, heavy tails."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(256, 64, 64, generator=generator)
    channels = normal * torch.rand(256, 1, 1, generator=generator) + torch.randn(256, 1, 1, generator=generator)
    chi_squared = torch.randn(4, 256, 64, 64, generator=generator).square().sum(0)
    heavy = normal * (4 / chi_squared).sqrt()  # Student-t of 4 degrees of freedom
    return {"normal": normal, "channels": channels, "heavy": heavy}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("hw", [SQUARE, WIDE, (1500, 1000), (3, 1000)])
def test_round_trip(codec: str, hw: tuple[int, int]):
    rows, cols = valid_grid_hw(hw, 64)
    for name, embedding in embeddings().items():
        decoded = decode_embedding(encode_embedding(embedding, hw, codec))
        assert decoded.dtype == torch.float32 and decoded.shape == embedding.shape
        exact = embedding[:, :rows, :cols]
        error = (decoded[:, :rows, :cols] - exact).norm() / exact.norm()
        assert error <= LARGEST_ERROR[codec], name


@pytest.mark.parametrize(("width", "grid"), [(256, 64), (128, 48), (128, 40), (128, 32)])
def test_int8_bytes(width: int, grid: int):
    """Count the bytes in the tar: an entry, its header, and the padding of its last block."""
    embedding = torch.randn(width, grid, grid)
    full = len(encode_embedding(embedding, SQUARE, "fp16"))
    assert len(encode_embedding(embedding, SQUARE, "int8")) <= 0.52 * full
    for hw in (WIDE, WIDE[::-1]):
        entry = len(encode_embedding(embedding, hw, "int8", key="sa_10000000"))
        assert TAR_BLOCK + entry + -entry % TAR_BLOCK <= 0.36 * 2 * embedding.numel()
    assert len(encode_embedding(embedding, WIDE, "int8")) <= 0.52 * len(encode_embedding(embedding, WIDE, "fp16"))


def test_int8_of_flat_channels():
    """Restore a channel of one value exactly, including zero."""
    embedding = torch.tensor([0.0, 3.25, -1e4])[:, None, None].expand(3, 8, 8)
    assert torch.equal(decode_embedding(encode_embedding(embedding, SQUARE, "int8")), embedding)


@pytest.mark.parametrize("codec", CODECS)
def test_the_entry_describes_itself(codec: str):
    blob = encode_embedding(torch.randn(32, 8, 8), (30, 64), codec, key="sa_1")
    header = read_entry_header(blob)
    assert (header.key, header.view, header.codec, header.layout) == ("sa_1", "identity", codec, "C,block+padding")
    assert (header.original_hw, header.valid_hw, header.grid) == ((30, 64), (4, 8), 8)
    assert header.dtype == {"fp16": "float16", "bf16": "bfloat16", "int8": "int8"}[codec]
    values = load(blob)["values"]  # any safetensors reader
    assert values.shape == (32, 4 * 8 + 4 + 1) and str(values.dtype) == f"torch.{header.dtype}"


@pytest.mark.parametrize("codec", CODECS)
def test_same_values_same_bytes(codec: str):
    """Encode again and in other memory layouts: safetensors shuffles metadata keys."""
    embedding = torch.randn(32, 8, 8)
    channels_last = embedding.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    blobs = {encode_embedding(item, (48, 64), codec, key="a") for item in [embedding, channels_last] * 5}
    assert len(blobs) == 1


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("hw", [(1000, 1500), (1500, 1000)])
def test_the_padding_comes_back_by_its_means(codec: str, hw: tuple[int, int]):
    """Restore values that are the sum of one for the line and one that varies slowly along it, but for the codec."""
    rows, cols = valid_grid_hw(hw, 64)
    y, x = torch.arange(64.0)[:, None], torch.arange(64.0)
    offsets = torch.randn(8, 1, 1, generator=torch.Generator().manual_seed(0))
    embedding = offsets + torch.exp(-y / 9) + torch.exp(-x / 9)  # (8, 64, 64)
    smooth = (y if rows < 64 else x) / 40
    embedding = torch.where((y >= rows) | (x >= cols), torch.exp(-smooth) + (x if rows < 64 else y) / 64, embedding)
    decoded = decode_embedding(encode_embedding(embedding, hw, codec))
    torch.testing.assert_close(decoded, embedding, rtol=0.02, atol=0.06)


def test_refuses_what_cannot_be_stored():
    embedding = torch.zeros(2, 8, 8)
    with pytest.raises(CacheError, match="unknown codec 'fp61'. Did you mean 'fp16'"):
        encode_embedding(embedding, SQUARE, "fp61")
    embedding[1, 2, 3] = float("nan")
    for codec in CODECS:
        with pytest.raises(CacheError, match="sample 'sa_1': .* 1 values that are NaN or infinite"):
            encode_embedding(embedding, SQUARE, codec, key="sa_1")
    embedding[1, 2, 3] = 1e5
    with pytest.raises(CacheError, match="beyond fp16's range; set cache.codec=bf16"):
        encode_embedding(embedding, SQUARE, "fp16")
    assert decode_embedding(encode_embedding(embedding, SQUARE, "bf16"))[1, 2, 3] == pytest.approx(1e5, rel=2**-8)


@pytest.mark.parametrize("codec", CODECS)
def test_damaged_entries(codec: str):
    blob = encode_embedding(torch.randn(4, 8, 8), SQUARE, codec)
    for damaged in (b"", blob[:100], blob[:-1], b"\xff" * len(blob), blob[: len(blob) // 2]):
        with pytest.raises(CacheError, match="origin: damaged entry"):
            decode_embedding(damaged, origin="origin")


def rewritten(blob: bytes, *, fields: dict | None = None, tensors: dict | None = None) -> bytes:
    """Return an entry with other fields in its header or other tensors; None leaves a field or a tensor out."""
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    described = json.loads(header["__metadata__"]["distill"]) | (fields or {})
    described = {name: value for name, value in described.items() if value is not None}
    kept = {name: tensor for name, tensor in (load(blob) | (tensors or {})).items() if tensor is not None}
    return save(kept, metadata={"distill": json.dumps(described)})


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"grid": "8"}, "Expected `int`"),
        ({"grid": 0}, "Expected `int` >= 1"),
        ({"grid": 9}, "a photo touches every row or column"),
        ({"grid": 1 << 16, "valid_hw": [1 << 16, 1]}, "values of shape"),
        ({"grid": 10**12}, "Expected `int` <="),
        ({"valid_hw": [8]}, "Expected `array` of length 2"),
        ({"valid_hw": [8, 0]}, "Expected `int` >= 1"),
        ({"valid_hw": [8, 7]}, "values of shape"),
        ({"valid_hw": "8"}, "Expected `array`"),
        ({"original_hw": [0, 4]}, "Expected `int` >= 1"),
        ({"key": 7}, "Expected `str`"),
        ({"key": "\x1b[2J"}, "Expected text without control characters"),
        ({"codec": ["fp16"]}, "Expected `str`"),
        ({"band": -1}, "Expected `int` >= 0"),
        ({"view": None}, "missing required field `view`"),
    ],
)
def test_headers_that_cannot_be_true(codec: str, fields: dict, words: str):
    blob = encode_embedding(torch.randn(4, 8, 8), SQUARE, codec)
    with pytest.raises(CacheError, match=f"origin: damaged entry .*{re.escape(words)}"):
        decode_embedding(rewritten(blob, fields=fields), origin="origin")


@pytest.mark.parametrize(
    ("fields", "tensors", "words"),
    [
        ({}, {"values": None}, "'values'"),
        ({}, {"values": torch.zeros(4, 64)}, r"torch\.float32 as int8"),
        ({"codec": "fp16"}, {}, r"torch\.int8 as fp16"),
        ({}, {"values": torch.zeros(4, 8, 8, dtype=torch.int8)}, r"values of shape \(4, 8, 8\), and 64"),
        ({}, {"values": torch.zeros(4, 63, dtype=torch.int8)}, r"values of shape \(4, 63\), and 64"),
        ({}, {"values": torch.zeros(0, 64, dtype=torch.int8)}, "a map of 0 x 8 x 8"),
        ({}, {"scale": None}, "'scale'"),
        ({}, {"scale": torch.ones(4, 2)}, "scale of shape"),
        ({}, {"offset": torch.ones(4)}, "offset of shape"),
        ({}, {"offset": torch.ones(4, 1, dtype=torch.int64)}, r"offset of shape \(4, 1\) and torch.int64"),
        ({"band": 0}, {}, "bands of 0 values"),
        ({"band": 1}, {}, "scale of shape"),
    ],
)
def test_tensors_that_do_not_fit_their_header(fields: dict, tensors: dict, words: str):
    blob = encode_embedding(torch.randn(4, 8, 8), SQUARE, "int8")
    with pytest.raises(CacheError, match=f"origin: damaged entry .*{words}"):
        decode_embedding(rewritten(blob, fields=fields, tensors=tensors), origin="origin")


def test_a_small_entry_of_an_immense_map():
    """Refuse 64 GiB that a few megabytes ask for."""
    grid, channels = 1 << 12, 256
    values = torch.zeros(channels, grid + grid - 1 + grid // 8, dtype=torch.int8)
    fields = {"grid": grid, "valid_hw": [grid, 1], "band": values.shape[1]}
    flat = {"values": values, "scale": torch.ones(channels, 1), "offset": torch.ones(channels, 1)}
    blob = encode_embedding(torch.randn(4, 8, 8), SQUARE, "int8")
    with pytest.raises(CacheError, match="damaged entry .*a map of 256 x 4096 x 4096"):
        decode_embedding(rewritten(blob, fields=fields, tensors=flat))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(value: float):
    for codec, name in (("fp16", "values"), ("bf16", "values"), ("int8", "scale"), ("int8", "offset")):
        blob = encode_embedding(torch.randn(4, 8, 8), (1000, 1500), codec)
        tensor = load(blob)[name]
        for place in (0, -1):  # of the photo, and of its padding
            broken = tensor.clone()
            broken[2, place] = value
            with pytest.raises(CacheError, match="origin: the embedding holds NaN or infinite values"):
                decode_embedding(rewritten(blob, tensors={name: broken}), origin="origin")


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"{}",
        b'{"__metadata__": null}',
        b'{"__metadata__": {"distill": 7}}',
        b'{"__metadata__": {"distill": "[]"}}',
        b'{"__metadata__": {"distill": "{}"}}',
        b"[" * 100_000,
        b'{"__metadata__": {"distill": "%s"}}' % (b"[" * 100_000),
        b"\xff",
    ],
)
def test_headers_of_other_json(content: bytes):
    for length in (len(content), 0, (1 << 64) - 1):
        with pytest.raises(CacheError, match="damaged entry header"):
            decode_embedding(length.to_bytes(8, "little") + content)


def test_an_entry_of_a_newer_distill():
    blob = encode_embedding(torch.randn(4, 8, 8), SQUARE, "fp16")
    newer = blob.replace(b'\\"codec\\": \\"fp16\\"', b'\\"codec\\": \\"fp99\\"')
    assert json.loads(newer[8 : 8 + int.from_bytes(newer[:8], "little")]) and newer != blob
    with pytest.raises(CacheError, match="codec 'fp99' is of a newer distill"):
        decode_embedding(newer)
