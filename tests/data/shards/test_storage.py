"""Shards on remote storage: fsspec's memory file system, and a server on the loopback interface."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import fsspec
import pytest
import torch

from distill.data.loading.loader import EpochLoader, EpochSampler
from distill.data.loading.samples import PhotoBatches
from distill.data.shards import storage
from distill.data.shards.index import INDEX_NAME, ShardIndex
from distill.errors import DataError


@pytest.fixture(autouse=True)
def in_a_home_of_its_own(cache_home: Path) -> None:
    """Let each test here keep its own indices."""


def shuffled_tar(path: Path, jpeg, num_samples: int, *, photo_hw: tuple[int, int] = (30, 40)) -> None:
    """Write a tar like those of SA-1B: members in any order, a folder before them, and no index."""
    members = []
    for i in range(num_samples):
        annotation = {"image": {"height": photo_hw[0], "width": photo_hw[1]}, "annotations": []}
        members.append((f"./{path.stem}_{i}.json", json.dumps(annotation).encode()))
        members.append((f"./{path.stem}_{i}.jpg", jpeg(photo_hw, seed=i)))
    order = torch.randperm(len(members), generator=torch.Generator().manual_seed(0))
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("./")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for place in order.tolist():
            info = tarfile.TarInfo(members[place][0])
            info.size = len(members[place][1])
            tar.addfile(info, io.BytesIO(members[place][1]))


def samples(index: ShardIndex) -> list[tuple[str, bytes, bytes | None]]:
    members = [index.member(i) for i in range(len(index))]
    return [(member.key, index.read_image_bytes(member), index.read_annotation(member)) for member in members]


def test_remote_shards_are_the_local_ones(tmp_path: Path, make_shards, memory: str, upload) -> None:
    directory = make_shards(tmp_path / "out", 9)
    (directory / INDEX_NAME).unlink()
    upload(directory, memory)
    local, remote = ShardIndex.open(directory), ShardIndex.open(memory)
    assert remote.fingerprint == local.fingerprint and remote.shards == local.shards
    assert samples(remote) == samples(local) == samples(pickle.loads(pickle.dumps(remote)))
    assert remote.origin(remote.member(0)) == "memory://bucket/sa1b/sa_000000.tar: sample 'photo_000'"


def test_the_index_is_kept_here_and_saved_there(
    tmp_path: Path, make_shards, memory: str, cache_home: Path, upload
) -> None:
    directory = make_shards(tmp_path / "out", 9)
    (directory / INDEX_NAME).unlink()
    upload(directory, memory)
    first = ShardIndex.open(memory)
    kept = list(cache_home.rglob(INDEX_NAME))
    assert len(kept) == 1 and first.is_saved
    assert not fsspec.filesystem("memory").exists(f"{memory}/{INDEX_NAME}")  # reading writes nothing there
    assert ShardIndex.build(memory).save() == f"{memory}/{INDEX_NAME}"
    kept[0].unlink()
    assert ShardIndex.open(memory).shards == first.shards and not kept[0].exists()
    fsspec.filesystem("memory").pipe_file(f"{memory}/other.tar", (directory / "sa_000000.tar").read_bytes())
    with pytest.raises(DataError, match="occurs twice"):  # neither saved index matches
        ShardIndex.open(memory)


def test_only_headers_and_what_is_read_go_over_the_net(server, jpeg, tmp_path: Path, cache_home: Path) -> None:
    for number in range(2):
        shuffled_tar(tmp_path / "served" / f"sa_{number:06d}.tar", jpeg, 6, photo_hw=(300, 400))
    num_bytes = sum(path.stat().st_size for path in (tmp_path / "served").iterdir())
    index = ShardIndex.open(server.url)
    assert len(index) == 12 and num_bytes > 1_000_000
    assert server.num_bytes < 0.4 * num_bytes  # 16 KiB around a header beside photos of 100 kB
    indexed = server.num_bytes
    member = index.member(7)
    assert index.read_image_bytes(member) and index.read_annotation(member)
    assert server.num_bytes - indexed == member.image_size + member.annotation_size + 2 * 512
    assert samples(index) == samples(ShardIndex.open(tmp_path / "served"))
    before = server.num_bytes
    assert samples(ShardIndex.open(server.url)) and server.num_bytes - before < num_bytes  # the headers are known
    assert len(list(cache_home.rglob(INDEX_NAME))) == 1
    assert Path(index.save()).is_relative_to(cache_home)  # this server takes no files


@pytest.mark.parametrize(("num_workers", "context"), [(0, None), (2, "fork"), (2, "spawn")])
def test_batches_from_a_server(server, tmp_path: Path, make_shards, num_workers: int, context: str | None) -> None:
    make_shards(tmp_path / "made", 7, samples_per_shard=3)
    for path in (tmp_path / "made").glob("*.tar"):
        path.rename(tmp_path / "served" / path.name)

    def batches(directory: str | Path, **options) -> list:
        index = ShardIndex.open(directory)
        photos = PhotoBatches(index, image_size=32, embedding_size=4, seed=3, max_instances=2)
        sampler = EpochSampler(index.shard_sizes, seed=3, batch_size=2, shuffle=True)
        loader = EpochLoader(photos, sampler, max_bad_share=0.0, **options)
        read = list(loader)
        loader.close()
        return read

    remote = batches(server.url, num_workers=num_workers, multiprocessing_context=context)
    for a, b in zip(remote, batches(tmp_path / "served", num_workers=0), strict=True):
        assert a.keys == b.keys and torch.equal(a.pixels, b.pixels) and torch.equal(a.masks, b.masks)


def test_a_dropped_request_is_tried_again(server, tmp_path: Path, jpeg) -> None:
    shuffled_tar(tmp_path / "served" / "sa_000000.tar", jpeg, 2)
    index = ShardIndex.open(server.url)
    server.num_failures = storage.NUM_TRIES - 1
    assert index.read_image_bytes(index.member(0))
    server.num_failures = storage.NUM_TRIES
    with pytest.raises(DataError, match=r"sa_000000\.tar: cannot be read \(.*503.*start again"):
        index.read_image_bytes(index.member(0))


def test_a_remote_shard_that_is_gone_or_another_is_named(tmp_path: Path, make_shards, memory: str, upload) -> None:
    upload(make_shards(tmp_path / "out", 4, samples_per_shard=2), memory)
    index = ShardIndex.open(memory)
    filesystem = fsspec.filesystem("memory")
    filesystem.rm(f"{memory}/sa_000000.tar")
    filesystem.pipe_file(f"{memory}/sa_000001.tar", bytes(1000))
    with pytest.raises(DataError, match=r"sa_000000\.tar: cannot be read"):
        index.read_image_bytes(index.member(0))
    with pytest.raises(DataError, match=r"sa_000001\.tar: has changed.*distill shards index memory://"):
        index.read_image_bytes(index.member(2))


def test_a_server_without_ranges_is_named(server, tmp_path: Path, jpeg) -> None:
    shuffled_tar(tmp_path / "served" / "sa_000000.tar", jpeg, 8, photo_hw=(60, 80))
    server.has_ranges = False
    with pytest.raises(DataError, match="does not answer ranges of bytes; copy the shards"):
        ShardIndex.open(server.url)


def test_places_that_are_not_there_are_named(server, memory: str) -> None:
    with pytest.raises(DataError, match="cannot be listed.*check the address"):
        ShardIndex.open("memory://nowhere")
    with pytest.raises(DataError, match="no image shard"):
        ShardIndex.open(server.url)
    with pytest.raises(DataError, match="cannot be listed.*check the address"):
        ShardIndex.open(server.url + "/nowhere")
    with pytest.raises(DataError, match="nosuch://x: cannot be opened"):
        ShardIndex.open("nosuch://x")


def test_a_cut_remote_tar_is_found(tmp_path: Path, make_shards, memory: str) -> None:
    directory = make_shards(tmp_path / "out", 3)
    whole = (directory / "sa_000000.tar").read_bytes()
    for cut in (100, 700, len(whole) // 2):
        fsspec.filesystem("memory").pipe_file(f"{memory}/sa_000000.tar", whole[:cut])
        with pytest.raises(DataError, match=r"memory://bucket/sa1b/sa_000000\.tar: (no tar|cut off)"):
            ShardIndex.open(memory)
