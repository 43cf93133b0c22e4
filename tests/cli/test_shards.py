from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.cli.shards import add_parser
from distill.data.shards.index import INDEX_NAME, ShardIndex
from distill.errors import DataError


def run(*arguments: str | Path) -> int:
    import argparse

    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    parsed = parser.parse_args(["shards", *map(str, arguments)])
    return parsed.run(parsed)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return folder


def test_folder_then_index(tmp_path: Path, photos: Path, capsys) -> None:
    out = tmp_path / "out"
    assert run("build", "folder", "--images", photos, "--out", out, "--samples-per-shard", "2", "--max-side", "20") == 0
    assert "5 photos with 0 masks" in capsys.readouterr().out
    assert ShardIndex.open(out).shard_sizes == [2, 2, 1]
    index = (out / INDEX_NAME).read_bytes()
    (out / INDEX_NAME).unlink()
    assert run("index", out) == 0
    assert (out / INDEX_NAME).read_bytes() == index
    assert "5 photos in 3 shards, without annotations" in capsys.readouterr().out


def test_remote_shards_are_indexed(tmp_path: Path, photos: Path, monkeypatch, capsys) -> None:
    import fsspec

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    out = tmp_path / "out"
    assert run("build", "folder", "--images", photos, "--out", out, "--samples-per-shard", "2") == 0
    memory = fsspec.filesystem("memory")
    for path in out.glob("*.tar"):
        memory.pipe_file(f"/command/{path.name}", path.read_bytes())
    assert run("index", "memory://command") == 0
    assert f"5 photos in 3 shards, without annotations; index: memory://command/{INDEX_NAME}" in capsys.readouterr().out
    assert memory.cat_file(f"/command/{INDEX_NAME}") == (out / INDEX_NAME).read_bytes()
    memory.rm("/command", recursive=True)


def test_what_is_left_out_is_said(tmp_path: Path, photos: Path, capsys) -> None:
    (photos / "2.jpg").write_bytes(b"no photo")
    run("build", "folder", "--images", photos, "--out", tmp_path / "out", "--max-bad-share", "0.2")
    assert "2.jpg: cannot be decoded" in capsys.readouterr().out


def test_a_non_empty_directory_is_refused(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(DataError, match="not empty; empty it, or give another directory"):
        run("build", "folder", "--images", photos, "--out", photos)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--samples-per-shard", "0", "not a whole number above 0"),
        ("--max-side", "-3", "not a whole number above 0"),
        ("--max-bad-share", "2", "not a share from 0 to 1"),
        ("--max-bad-share", "few", "not a share from 0 to 1"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path: Path, capsys, option: str, value: str, words: str) -> None:
    with pytest.raises(SystemExit) as stop:
        run("build", "folder", "--images", tmp_path, "--out", tmp_path / "out", f"{option}={value}")
    assert stop.value.code == 2 and words in capsys.readouterr().err


def test_the_command_loads_nothing_heavy() -> None:
    code = "import sys; import distill.cli.shards; sys.exit('numpy' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
