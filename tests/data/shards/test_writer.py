"""The writer of shards refuses what tars cannot hold, and leaves nothing behind on an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill.data.shards.writer import ShardWriter
from distill.errors import DataError


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "a\nb", "\x1b[2J", "x" * 1100, "\udce9"])
def test_keys_that_tars_cannot_hold_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(DataError, match="rename the photo"), ShardWriter(tmp_path / "out") as writer:
        writer.add(key, b"1", None)


def test_a_duplicate_key_is_refused_and_nothing_stays(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'a' occurs twice"), ShardWriter(tmp_path / "out", 1) as writer:
        writer.add("a", b"1", None)
        writer.add("a", b"2", None)
    assert contents(tmp_path / "out") == {}


def test_a_directory_in_use_is_refused(tmp_path: Path, make_shards) -> None:
    directory = make_shards(tmp_path / "out", 2)
    before = contents(directory)
    with pytest.raises(DataError, match="not empty; empty it, or give another directory"):
        ShardWriter(directory)
    assert contents(directory) == before


def test_no_sample_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sample to write"), ShardWriter(tmp_path / "out"):
        pass


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "out", 2) as writer:
        for key in "abc":
            writer.add(key, b"1", None)
        raise KeyboardInterrupt
    assert contents(tmp_path / "out") == {}


FULL_DISK = """
import resource, sys
from distill.data.shards.writer import ShardWriter
from distill.errors import DataError
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))  # files cannot grow beyond: EFBIG, as a quota gives
try:
    with ShardWriter(sys.argv[1], int(sys.argv[2])) as writer:
        for i in range(60):
            writer.add(f"k{i}", bytes(10_000 if i > 10 else 100), {})
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize("samples_per_shard", [20, 1000])  # with one finished shard before, and with none
def test_a_full_disk_is_said_and_nothing_stays(tmp_path: Path, samples_per_shard: int) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", FULL_DISK, str(out), str(samples_per_shard)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "the disk is full" in done.stdout and "free some space" in done.stdout
    assert contents(out) == {}


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written.*another place"):
        ShardWriter(tmp_path / "file" / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_directory_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="cannot be written.*another place"):
        ShardWriter(tmp_path / "out")
