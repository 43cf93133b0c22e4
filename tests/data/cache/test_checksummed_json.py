"""Checksummed JSON: every changed bit is found, and a file is never written in part."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from distill.data.cache.checksummed_json import disk_errors, parse_checksummed, write_checksummed
from distill.errors import CacheError

CONTENT = {"name": "a", "values": [1, 2.5, None, "é"], "nested": {"b": [["k", 1]]}}


def test_round_trip(tmp_path: Path):
    path = tmp_path / "a.json"
    write_checksummed(path, CONTENT)
    assert parse_checksummed(path.read_bytes(), dict, str(path)) == CONTENT
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]


def test_every_flipped_bit_is_found(tmp_path: Path):
    path = tmp_path / "a.json"
    write_checksummed(path, CONTENT)
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CacheError, match="damaged"):
            parse_checksummed(bytes(flipped), dict, str(path))


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"null", b'{"seal": null}'])
def test_other_json_is_damaged(data: bytes):
    with pytest.raises(CacheError, match="damaged"):
        parse_checksummed(data, dict, "a.json")


def test_disk_errors_name_the_mend(tmp_path: Path):
    for number, mend in (
        (errno.ENOSPC, "full .*; free some"),
        (errno.EROFS, "not writable"),
        (errno.EIO, "file system"),
    ):
        with pytest.raises(CacheError, match=mend), disk_errors(tmp_path / "a"):
            raise OSError(number, "words")
