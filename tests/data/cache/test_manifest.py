"""A checksum says that nobody changed a file, not who wrote it: what a cache's files say is checked as well."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.cli.main import main
from distill.config.schema import CacheConfig
from distill.data.cache.checksummed_json import CHECKSUM_KEY, DamagedFileError, checksummed_bytes, parse_checksummed
from distill.data.cache.job import CacheJob, build_cache
from distill.data.cache.manifest import MANIFEST, Manifest, Sidecar, finished_sidecar, sidecar_name
from distill.data.cache.repair import find_damage, repair_cache
from distill.data.cache.verify import verify_cache
from distill.data.shards.index import ShardIndex
from distill.errors import CacheError

SHARD = "sa_000000.tar"
Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def cache_dir(tiny_teacher, photo_shards, tmp_path: Path) -> Path:
    """Build a cache of two shards, with three and two samples."""
    build_cache(tiny_teacher, photo_shards(5), CacheConfig(dir=str(tmp_path / "cache")))
    return tmp_path / "cache"


def rewrite(path: Path, change: Change) -> None:
    """Change the content of a checksummed file, and give it the right checksum."""
    content = parse_checksummed(path.read_bytes(), dict[str, Any], str(path))
    change(content)
    path.write_bytes(checksummed_bytes(content))


def put(*places: str | int, value: Any) -> Change:
    """Return a change that puts a value at a place."""

    def change(content: Any) -> None:
        for place in places[:-1]:
            content = content[place]
        content[places[-1]] = value

    return change


def without(name: str) -> Change:
    return lambda content: content.pop(name)


@pytest.mark.parametrize(
    "change",
    [
        put("fingerprint", value=[]),
        put("fingerprint", "views", value="identity"),
        put("fingerprint", "views", value=["hflip"]),
        put("fingerprint", "views", value=[["identity"]]),
        put("fingerprint", "image_size", value="64"),
        put("fingerprint", "image_size", value=0),
        put("fingerprint", "embedding_size", value=10**12),
        put("fingerprint", "embedding_dim", value=-1),
        put("fingerprint", "codec", value="zip"),
        put("fingerprint", "teacher", value="\x1b[2Jtiny"),
        put("fidelity", "cosine", value=float("nan")),
        put("fidelity", "relative_l2", value=float("inf")),
        put("fidelity", "relative_l2", value=1e300),
        put("fidelity", "bytes_per_image", value=1e300),
        put("fidelity", "mask_iou", value=7.0),
        put("fidelity", "bytes_per_image", value=None),
        put("shards", value={}),
        put("shards", 0, "name", value="../../other.tar"),
        put("shards", 0, "name", value="/etc/other.tar"),
        put("shards", 0, "name", value="no_tar"),
        put("shards", 0, "name", value="manifest.tar"),
        put("shards", 0, "name", value="sa_000001.tar"),
        put("shards", 0, "num_samples", value=1.5),
        put("shards", 0, "num_samples", value=10**30),
        put("totals", "samples", value="many"),
        put("totals", value=[]),
        put("format", value="2"),
        without("fingerprint"),
        without("format"),
    ],
)
def test_manifests_that_cannot_be_true(cache_dir: Path, change: Change, capsys: pytest.CaptureFixture[str]):
    rewrite(cache_dir / MANIFEST, change)
    with pytest.raises(DamagedFileError, match=r"manifest\.json: .*delete it and run the same 'distill cache build'"):
        Manifest.read(cache_dir)
    assert main(["cache", "stats", str(cache_dir)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "regex" not in said


@pytest.mark.parametrize("name", ["manifest.tar", "a\nb.tar"])
def test_a_shard_whose_embeddings_could_not_have_its_name(tiny_teacher, photo_shards, tmp_path: Path, name: str):
    """The sidecar of manifest.tar would be written over the manifest."""
    index = photo_shards(3)
    index.directory.joinpath("index.json").unlink()
    index.directory.joinpath(SHARD).rename(index.directory / name)
    with pytest.raises(CacheError, match=r"Expected a name like NAME\.tar, other than manifest\.tar; rename the tar"):
        build_cache(tiny_teacher, ShardIndex.open(index.directory), CacheConfig(dir=str(tmp_path / "cache")))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "change",
    [
        put("members", value={}),
        put("members", 0, value=[]),
        put("members", 0, value="abcde"),
        put("members", 0, 0, value=7),
        put("members", 0, 2, value=-512),
        put("members", 0, 2, value=1 << 60),
        put("members", 0, 3, value=1 << 40),
        put("members", 0, 3, value=0),
        put("members", 0, 4, value=1 << 32),
        put("members", 0, 4, value=1.5),
        lambda content: content["members"].append(content["members"][0]),
        lambda content: content["members"].pop(),
        put("samples", value=10**9),
        put("bytes", value="4"),
        put("bytes", value=0),
        put("bad", value="abc"),
        put("bad", value=[["key"]]),
        put("cache", value=None),
        without("sha256"),
    ],
)
def test_sidecars_that_cannot_be_true(cache_dir: Path, change: Change):
    """Take the shard for damaged, and write it again."""
    path = cache_dir / sidecar_name(SHARD)
    rewrite(path, change)
    with pytest.raises(DamagedFileError, match=r"sa_000000\.json: "):
        Sidecar.read(cache_dir, SHARD)
    manifest = Manifest.read(cache_dir)
    assert finished_sidecar(cache_dir, manifest.shards[0], manifest.fingerprint.digest) is None
    (problem,) = verify_cache(cache_dir)
    assert problem.file == path.name and problem.what.startswith("damaged") and problem.shard == SHARD


def test_repair_mends_what_cannot_be_true(tiny_teacher, photo_shards, tmp_path: Path):
    config = CacheConfig(dir=str(tmp_path / "cache"))
    index, directory = photo_shards(5), tmp_path / "cache"
    build_cache(tiny_teacher, index, config)
    before = (directory / sidecar_name(SHARD)).read_bytes()
    rewrite(directory / sidecar_name(SHARD), put("members", 0, 3, value=1 << 40))
    rewrite(directory / MANIFEST, put("shards", 0, "name", value="../../other.tar"))
    outside = tmp_path.parent / "other.json"
    outside.write_text("{}")
    job = CacheJob(tiny_teacher, index, config)
    assert repair_cache(job, find_damage(job)) == []
    assert (directory / sidecar_name(SHARD)).read_bytes() == before and not verify_cache(directory)
    assert outside.exists()


def test_nested_too_deeply(cache_dir: Path):
    deep = b'{"format": 2, "fingerprint": ' + b"[" * 200_000 + b"]" * 200_000
    checksum = hashlib.sha256(deep + b"\n}").hexdigest()
    (cache_dir / MANIFEST).write_bytes(deep + f',\n "{CHECKSUM_KEY}": "{checksum}"\n}}\n'.encode())
    with pytest.raises(CacheError, match=r"manifest\.json: .*nested too deeply"):
        Manifest.read(cache_dir)


@pytest.mark.parametrize("name", [MANIFEST, "sa_000000.json"])
def test_pipes_and_endless_files(cache_dir: Path, name: str):
    path = cache_dir / name
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path), _make_huge):
        path.unlink() if path.is_file() or path.is_symlink() or path.is_fifo() else path.rmdir()
        make(path)
        started = time.monotonic()
        with pytest.raises(CacheError, match=rf"{name}: "):
            Manifest.read(cache_dir) if name == MANIFEST else Sidecar.read(cache_dir, SHARD)
        assert time.monotonic() - started < 5


def _make_huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)  # takes no space
