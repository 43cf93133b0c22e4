"""Tars from elsewhere: each header is checked, and what it says stays within the file."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from distill.data.shards.index import ShardIndex
from distill.data.shards.tar import TAR_BLOCK, list_members, parse_header
from distill.errors import DataError

END = bytes(2 * TAR_BLOCK)
HUGE = b"\x80" + (1 << 60).to_bytes(11, "big")
LIMITED_INDEX = """\
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
from distill.cli.main import main
print([main(["shards", "index", directory]) for directory in sys.argv[1:]])
"""


def header(name: bytes, size: int | bytes = 0, kind: bytes = b"0") -> bytes:
    """Return a header block with these bytes in its fields, and the right checksum."""
    block = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    block[:100] = name[:100].ljust(100, b"\0")
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: bytes, content: bytes = b"", kind: bytes = b"0") -> bytes:
    return header(name, len(content), kind) + content + bytes(-len(content) % TAR_BLOCK)


def pax(kind: bytes = b"x", **records: bytes) -> bytes:
    content = b""
    for key, value in records.items():
        body = b" " + key.replace("_", ".").encode() + b"=" + value + b"\n"
        length = len(body) + 1
        while len(str(length)) + len(body) > length:
            length += 1
        content += str(length).encode() + body
    return member(b"pax", content, kind)


PHOTO = member(b"a.jpg", b"photo")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (header(b"a.jpg", (256**12 - 512).to_bytes(12, "big")) + END, "negative size"),
        (header(b"a.jpg", b"-0000001000\0") + END, "is no number"),
        (header(b"a.jpg", b"00000000999\0") + END, "is no number"),
        (header(b"a.jpg", b"\x80" + b"\x7f" * 11) + END, "cut off, or damaged: member 1 has 154,135,"),
        (header(b"x", HUGE, b"K") + END, "cut off, or damaged"),
        (header(b"x", HUGE, b"L") + END, "cut off, or damaged"),
        (header(b"x", HUGE, b"x") + END, "cut off, or damaged"),
        (member(b"x", bytes(2 << 20), b"L") + PHOTO + END, "an extended header of 2,097,152 bytes"),
        (member(b"x", bytes(2 << 20), b"x") + PHOTO + END, "an extended header of 2,097,152 bytes"),
        (pax(size=b"-512") + PHOTO + END, "b'-512' is no number"),
        (pax(size=b"1" * 15) + PHOTO + END, "cut off, or damaged"),
        (member(b"x", b"8 path=a\n", b"x") + PHOTO + END, "without its form"),
        (member(b"x", b"0 path=a\n", b"x") + PHOTO + END, "without its form"),
        (member(b"x", b"999999 path=a\n", b"x") + PHOTO + END, "without its form"),
        (member(b"x", b"1" * 5000 + b" path=a\n", b"x") + PHOTO + END, "without its form"),
        (pax(b"g", path=b"b.jpg") + PHOTO + END, "one name or size for all"),
        (PHOTO + member(b"x", b"b.jpg\0", b"L") + END, "without the member that it extends"),
        (member(b"a.jpg", b"photo", b"S") + END, "'a.jpg' is stored in parts; pack the shard again, not sparse"),
        (pax(GNU_sparse_major=b"1") + PHOTO + END, "'a.jpg' is stored in parts"),
        (PHOTO.replace(b"a.jpg", b"b.jpg") + END, "checksum of a header is wrong"),
        (PHOTO + bytes(100), "cut off after 1 members"),
        (b"", "no tar, it is too short"),
    ],
)
def test_headers_that_cannot_be_true(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(DataError, match=rf"x\.tar: .*{words}"):
        ShardIndex.open(tmp_path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (member(b"\xe9t\xe9.jpg", b"photo"), r"the name '\\udce9t\\udce9.jpg' is no UTF-8; rename it"),
        (member(b"a\nb.jpg", b"photo"), r"the name 'a\\nb.jpg' has control characters"),
        (member(b"\x1b[2Ja.jpg", b"photo"), r"the name '\\x1b\[2Ja.jpg' has control characters"),
        (pax(path=b"a\0b.jpg") + PHOTO, r"the name 'a\\x00b.jpg' has control characters"),
        (member(b"x", b"x" * 5000 + b".jpg\0", b"L") + PHOTO, "a name of 5,004 bytes is too long"),
        (PHOTO + PHOTO, "'a.jpg' occurs twice"),
        (PHOTO + member(b"other/a.png", b"photo"), "'a.png' occurs twice"),
        (PHOTO + header(b"b.jpg", 0, b"1"), "'b.jpg' is a link, .*--dereference"),
        (PHOTO + header(b"a.json", 0, b"2"), "'a.json' is a link"),
    ],
)
def test_photos_that_cannot_be_used_are_named(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "x.tar").write_bytes(data + END)
    with pytest.raises(DataError, match=rf"x\.tar: {words}"):
        ShardIndex.open(tmp_path)


@pytest.mark.parametrize(
    "extra",
    [
        member(b"\xe9\x1b.txt", b"words"),
        header(b"words.txt", 0, b"2"),
        header(b"folder/", 1000, b"5"),  # a folder has no content, whatever its header says
        header(b"old_folder/", 0, b"\0"),
        header(b"device", 0, b"3"),
        pax(b"g", comment=b"of git archive"),
        member(b"._a.jpg", b"of macOS"),
        member(b"?", b"of a tar to come", b"~"),
    ],
)
def test_what_is_no_photo_is_skipped(tmp_path: Path, extra: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(extra + PHOTO + extra + END)
    index = ShardIndex.open(tmp_path)
    assert list(index.keys()) == ["a"] and index.read_image_bytes(index.member(0)) == b"photo"


def test_thousands_of_extended_headers_before_one_member(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(member(b"x", b"b.jpg\0", b"L") * 3000 + PHOTO + END)
    assert [found.name for found in list_members(lambda: (tmp_path / "x.tar").open("rb"), "x")] == ["b.jpg"]


def test_folders_of_members_are_not_believed(tmp_path: Path) -> None:
    """Take the key from the last part of a name alone, so that no name leaves a folder."""
    names = (b"/etc/a.jpg", b"../../b.jpg", b"folder/c.jpg", b"x" * 90 + b"/d.jpg")
    (tmp_path / "x.tar").write_bytes(b"".join(member(name, name) for name in names) + END)
    index = ShardIndex.open(tmp_path)
    assert list(index.keys()) == ["a", "b", "c", "d"]
    assert [index.read_image_bytes(index.member(i)) for i in range(4)] == list(names)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_are_those_of_the_standard_library(tmp_path: Path, format: int) -> None:
    path, rng = tmp_path / "x.tar", random.Random(0)
    lengths = (5, 99, 100, 101, 140, 154, 155, 200) if format == tarfile.USTAR_FORMAT else (1, 99, 100, 101, 255, 3000)
    with tarfile.open(path, "w", format=format) as tar:
        for number in range(60):
            length = rng.choice(lengths)
            folders = "/".join(["d" * 49] * (length // 50))
            name = f"{folders}/{number}é{'x' * (length % 50)}.jpg"
            info = tarfile.TarInfo(name.lstrip("/"))
            info.size, info.mtime = rng.choice((0, 1, 511, 512, 513, 5000)), rng.choice((0, 1.5))
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    with tarfile.open(path) as tar:
        expected = [(info.name, info.offset_data, info.size) for info in tar]
    assert [member[:3] for member in list_members(lambda: path.open("rb"), "x")] == expected


def test_old_and_large_numbers() -> None:
    block = bytearray(header(b"\xff" * 99, b"\x80" + (9 << 30).to_bytes(11, "big")))
    assert parse_header(block).size == 9 << 30
    unsigned = sum(block) - sum(block[148:156]) + 256
    block[148:156] = b"%06o\0 " % (unsigned - 256 * sum(byte >= 128 for byte in block[:148] + block[156:]))
    assert parse_header(block).name == b"\xff" * 99  # old tars summed signed bytes


def test_what_is_named_tar_must_be_a_file(tmp_path: Path) -> None:
    def refusal() -> str:
        started = time.monotonic()
        with pytest.raises(DataError) as refused:
            ShardIndex.open(tmp_path)
        assert time.monotonic() - started < 5
        return str(refused.value)

    path = tmp_path / "x.tar"
    os.mkfifo(path)
    assert refusal() == f"{path}: a shard must be a file, and this is none; remove or rename it"
    path.unlink()
    path.mkdir()
    assert "a shard must be a file" in refusal()
    path.rmdir()
    path.symlink_to("nowhere")
    assert "'x.tar' cannot be read" in refusal()
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "a shard must be a file" in refusal()


def test_a_pipe_in_place_of_an_indexed_shard(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(PHOTO + END)
    index = ShardIndex.open(tmp_path)
    (tmp_path / "x.tar").unlink()
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(DataError, match=r"x\.tar: cannot be read \(this is a pipe or a device"):
        index.read_image_bytes(index.member(0))


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory")
def test_the_command_survives_what_cannot_be_true(tmp_path: Path) -> None:
    """Run the command in a child of little memory and time: each tar is refused in one line."""
    damaged = {
        "negative": header(b"a.jpg", (256**12 - 512).to_bytes(12, "big")),
        "long_link": header(b"x", HUGE, b"K"),
        "long_name": header(b"x", HUGE, b"L"),
        "extended": header(b"x", HUGE, b"x"),
        "latin": member(b"\xe9.jpg", b"photo"),
    }
    for name, data in damaged.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.tar").write_bytes(data + END)
    directories = [str(tmp_path / name) for name in damaged]
    command = [sys.executable, "-c", LIMITED_INDEX, *directories]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.stdout == f"{[2] * len(damaged)}\n", ran.stderr
    assert ran.stderr.count("\n") == len(damaged)
