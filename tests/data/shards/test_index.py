from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

from distill.data.shards.index import INDEX_NAME, ShardIndex
from distill.data.shards.writer import ShardWriter
from distill.errors import DataError


def write_tar(path: Path, members: list[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1.5  # a fraction makes PAX write an extra header
            tar.addfile(info, io.BytesIO(content))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    samples = {
        f"k{i}": (f"photo {i}".encode() * (i + 1), {"image": {"number": i}} if i % 2 else None) for i in range(7)
    }
    with ShardWriter(tmp_path / "out", 3) as writer:
        for key, (image, annotation) in samples.items():
            writer.add(key, image, annotation)
    index = ShardIndex.open(tmp_path / "out")
    assert [(shard.name, shard.num_samples) for shard in index.shards] == [
        ("sa_000000.tar", 3),
        ("sa_000001.tar", 3),
        ("sa_000002.tar", 1),
    ]
    assert len(index) == 7 and index.shard_sizes == [3, 3, 1] and list(index.keys()) == list(samples)
    assert [member.key for shard in index.shards for member in index.members(shard.name)] == list(samples)
    for position, (key, (image, annotation)) in enumerate(samples.items()):
        member = index.member(position)
        assert (member.key, index.read_image_bytes(member)) == (key, image)
        read = index.read_annotation(member)
        assert (None if read is None else json.loads(read)) == annotation
    index.close()


def test_other_tar_readers_agree(tmp_path: Path) -> None:
    import webdataset

    with ShardWriter(tmp_path / "out", 10) as writer:
        writer.add("a", b"photo a", {"n": 1})
        writer.add("b", b"photo b", {"n": 2})
    url = str(tmp_path / "out" / "sa_000000.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False))
    assert [(s["__key__"], s["jpg"], json.loads(s["json"])["n"]) for s in samples] == [
        ("a", b"photo a", 1),
        ("b", b"photo b", 2),
    ]


def test_equal_samples_give_equal_bytes(tmp_path: Path, make_shards) -> None:
    first, second = make_shards(tmp_path / "a", 9), make_shards(tmp_path / "b", 9)
    assert contents(first) == contents(second)
    assert ShardIndex.open(first).fingerprint == ShardIndex.open(second).fingerprint
    assert ShardIndex.open(make_shards(tmp_path / "c", 8)).fingerprint != ShardIndex.open(first).fingerprint


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_tars_from_elsewhere_in_any_order(tmp_path: Path, format: int) -> None:
    long_key = "x" * 150 if format != tarfile.USTAR_FORMAT else "x" * 90
    members = [
        ("./sa_2.json", b'{"n": 2}'),
        ("./sa_1.jpg", b"photo 1"),
        ("LICENSE.txt", b"words"),
        ("./sa_2.jpg", b"photo 2"),
        (f"folder/{long_key}.JPG", b"photo 3"),
        ("./sa_1.json", b'{"n": 1}'),
        ("./été.png", b"photo 4"),
    ]
    write_tar(tmp_path / "sa_000020.tar", members, format)
    index = ShardIndex.open(tmp_path)
    found = [
        (member.key, index.read_image_bytes(member), index.read_annotation(member))
        for member in index.members("sa_000020.tar")
    ]
    assert found == [
        ("sa_1", b"photo 1", b'{"n": 1}'),
        ("sa_2", b"photo 2", b'{"n": 2}'),
        (long_key, b"photo 3", None),
        ("été", b"photo 4", None),
    ]


def test_photos_alone_are_allowed(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("1.jpg", b"1")])
    assert not ShardIndex.open(tmp_path).has_annotations
    write_tar(tmp_path / "b.tar", [("2.jpg", b"2"), ("2.json", b"{}")])
    assert ShardIndex.open(tmp_path).has_annotations


def test_a_stale_or_damaged_index_is_not_believed(tmp_path: Path, make_shards) -> None:
    directory = make_shards(tmp_path / "out", 8)
    make_shards(tmp_path / "more", 4)
    whole = (directory / INDEX_NAME).read_text()
    shutil.copy(tmp_path / "more" / "sa_000000.tar", directory / "sa_000000.tar")
    (directory / "sa_000001.tar").rename(directory / "other.tar")
    assert [shard.name for shard in ShardIndex.open(directory).shards] == ["other.tar", "sa_000000.tar"]
    (directory / "other.tar").rename(directory / "sa_000001.tar")
    fingerprint = ShardIndex.open(directory).fingerprint
    for text in ("", "{", "[]", whole[: len(whole) // 2], whole.replace('"version": 1', '"version": 0')):
        (directory / INDEX_NAME).write_text(text)
        assert ShardIndex.open(directory).fingerprint == fingerprint


def with_ranges(row: dict, place: int, value: int) -> dict:
    """Return a row of index.json, in which one number of the first sample is another."""
    ranges = np.frombuffer(base64.b64decode(row["ranges"]), "<i8").copy()
    ranges[place] = value
    return {**row, "ranges": base64.b64encode(ranges.tobytes()).decode()}


def with_keys(row: dict, keys: list[str]) -> dict:
    """Return a row of index.json with other keys, and the right hash of them."""
    joined = "\n".join(keys)
    return {**row, "keys": joined, "keys_hash": hashlib.sha256(joined.encode()).hexdigest()}


@pytest.mark.parametrize(
    "change",
    [
        lambda row: {**row, "num_samples": 10**9},
        lambda row: {**row, "num_samples": "4"},
        lambda row: {**row, "num_samples": -4},
        lambda row: {**row, "num_bytes": 1.5},
        lambda row: {**row, "name": 7},
        lambda row: {**row, "keys": ["photo_000"]},
        lambda row: {**row, "ranges": "no base 64"},
        lambda row: {**row, "ranges": ""},
        lambda row: {key: value for key, value in row.items() if key != "keys_hash"},
        lambda row: with_ranges(row, 0, -512),
        lambda row: with_ranges(row, 0, 1 << 62),
        lambda row: with_ranges(row, 1, 1 << 33),
        lambda row: with_ranges(row, 1, -(1 << 63)),
        lambda row: with_ranges(row, 2, -2),
        lambda row: with_ranges(row, 3, 1 << 62),
        lambda row: with_keys(row, ["photo_000"] * 4),
        lambda row: with_keys(row, ["../../x", "b", "c", "d"]),
        lambda row: with_keys(row, ["\x1b[2J", "b", "c", "d"]),
        lambda row: with_keys(row, ["x" * 5000, "b", "c", "d"]),
        lambda row: with_keys(row, ["", "b", "c", "d"]),
    ],
)
def test_an_index_that_cannot_be_true_is_not_believed(tmp_path: Path, make_shards, caplog, change) -> None:
    """Read the headers of the tars instead, and say that the file is not used."""
    directory = make_shards(tmp_path / "out", 4)
    expected = ShardIndex.open(directory)
    content = json.loads((directory / INDEX_NAME).read_text())
    content["shards"][0] = change(content["shards"][0])
    (directory / INDEX_NAME).write_text(json.dumps(content))
    index = ShardIndex.open(directory)
    assert not index.is_saved and index.fingerprint == expected.fingerprint
    assert [index.member(i) for i in range(len(index))] == [expected.member(i) for i in range(4)]
    (warning,) = caplog.messages
    assert warning.startswith(f"{directory / INDEX_NAME}: ") and "'distill shards index' writes it again" in warning


def test_an_index_that_is_no_file_or_too_large_is_not_read(tmp_path: Path, make_shards) -> None:
    directory = make_shards(tmp_path / "out", 4)
    (directory / INDEX_NAME).unlink()
    (directory / INDEX_NAME).touch()
    os.truncate(directory / INDEX_NAME, 1 << 40)  # takes no space
    assert not ShardIndex.open(directory).is_saved
    (directory / INDEX_NAME).unlink()
    os.mkfifo(directory / INDEX_NAME)
    index = ShardIndex.open(directory)
    assert len(index) == 4 and not index.is_saved
    index.save()
    assert ShardIndex.open(directory).is_saved


def test_a_key_or_a_size_that_is_not_the_tars_is_noticed(tmp_path: Path, make_shards) -> None:
    """Compare each header again before its content is believed."""
    directory = make_shards(tmp_path / "out", 4)
    content = json.loads((directory / INDEX_NAME).read_text())
    for change in (lambda row: with_ranges(row, 1, 100), lambda row: with_keys(row, ["a", "b", "c", "d"])):
        changed = {**content, "shards": [change(content["shards"][0])]}
        (directory / INDEX_NAME).write_text(json.dumps(changed))
        index = ShardIndex.open(directory)
        assert index.is_saved
        with pytest.raises(DataError, match="has changed since it was indexed"):
            index.read_image_bytes(index.member(0))


def test_a_saved_index_is_what_the_headers_say(tmp_path: Path, make_shards) -> None:
    directory = make_shards(tmp_path / "out", 9)
    opened, built = ShardIndex.open(directory), ShardIndex.build(directory)
    assert [opened.member(i) for i in range(9)] == [built.member(i) for i in range(9)]
    assert opened.shards == built.shards


def test_a_shard_replaced_after_indexing_is_noticed(tmp_path: Path, make_shards) -> None:
    directory = make_shards(tmp_path / "out", 4)
    index = ShardIndex.open(directory)
    size = (directory / "sa_000000.tar").stat().st_size
    write_tar(directory / "sa_000000.tar", [("other.jpg", bytes(size - 10240))], tarfile.GNU_FORMAT)
    with pytest.raises(DataError, match="changed since it was indexed.*distill shards index"):
        index.read_image_bytes(index.member(0))


def test_a_shard_deleted_or_cut_while_reading_is_named(tmp_path: Path, make_shards) -> None:
    directory = make_shards(tmp_path / "out", 4, samples_per_shard=2)
    index = ShardIndex.open(directory)
    (directory / "sa_000000.tar").unlink()
    with pytest.raises(DataError, match=r"sa_000000\.tar: cannot be read"):
        index.read_image_bytes(index.member(0))
    os.truncate(directory / "sa_000001.tar", 1000)
    with pytest.raises(DataError, match=r"sa_000001\.tar: has changed"):
        index.read_image_bytes(index.member(2))


def test_cut_tars_are_found_wherever_the_cut_is(tmp_path: Path, make_shards) -> None:
    directory = make_shards(tmp_path / "out", 3)
    tar = directory / "sa_000000.tar"
    whole = tar.read_bytes()
    with tarfile.open(tar) as opened:
        boundaries = [info.offset for info in opened] + [opened.offset]
    (directory / INDEX_NAME).unlink()
    for cut in {*boundaries, *(place + 700 for place in boundaries[:-1]), 100}:
        tar.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"sa_000000\.tar"):
            ShardIndex.open(directory)


def test_something_else_named_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"not a tar" * 1000)
    with pytest.raises(DataError, match=r"a\.tar: no tar"):
        ShardIndex.open(tmp_path)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("1.jpg", b"1"), ("x/1.jpg", b"2")], "'1.jpg' occurs twice"),
        ([("1.jpg", b"1"), ("2.json", b"2")], "'2' has annotations but no photo"),
        ([("words.txt", b"1")], "no photo in it"),
    ],
)
def test_tars_that_do_not_fit_are_refused(tmp_path: Path, members, words: str) -> None:
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=words):
        ShardIndex.open(tmp_path)


def test_a_key_in_two_shards_is_refused(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        write_tar(tmp_path / name, [("1.jpg", b"1")])
    with pytest.raises(DataError, match=r"key '1' occurs twice \(a\.tar, b\.tar\)"):
        ShardIndex.open(tmp_path)


def test_directories_without_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image shard.*distill shards build"):
        ShardIndex.open(tmp_path)
    with pytest.raises(DataError, match="no such directory"):
        ShardIndex.open(tmp_path / "nowhere")
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(DataError, match=r"(cannot be listed|no such directory).*give"):
            ShardIndex.open(tmp_path / name)


def test_an_index_goes_to_other_threads_and_processes(tmp_path: Path, make_shards) -> None:
    index = ShardIndex.open(make_shards(tmp_path / "out", 12))
    expected = [index.read_image_bytes(index.member(i)) for i in range(12)]
    copy = pickle.loads(pickle.dumps(index))
    assert [copy.read_image_bytes(copy.member(i)) for i in range(12)] == expected
    wrong: list[int] = []

    def read_all() -> None:
        wrong.extend(i for _ in range(30) for i in range(12) if index.read_image_bytes(index.member(i)) != expected[i])

    threads = [threading.Thread(target=read_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
