"""From files on disk to image shards, over tiny files of the shipped sets' form."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from distill.data.catalogue import LocatedSplit, load_dataset, resolve_annotations, resolve_photos, resolve_shards
from distill.data.coco import CocoSet
from distill.data.lvis import LvisSet
from distill.data.prepare import prepare_splits
from distill.data.shards.index import ShardIndex
from distill.errors import DataError
from tests.fixtures.datasets import TinySets, make_zip


def prepare(sets: TinySets, name: str, *splits: str, **options) -> list[Path]:
    """Prepare splits of a set and return the folders of their shards."""
    dataset = load_dataset(name, sets.root)
    located = [LocatedSplit(sets.root, dataset, dataset.split(split)) for split in splits or dataset.splits]
    return [prepared.shards for prepared in prepare_splits(located, shown=False, **options)]


def test_coco_from_its_zips(tiny_sets):
    folder = tiny_sets.coco()
    shards = prepare(tiny_sets, "tiny_coco", verify=True)
    assert shards == [folder / "shards/train", folder / "shards/val"]
    for split in ("train", "val"):
        index = ShardIndex.open(f"tiny_coco/{split}")
        assert len(index) == 2 and index.is_saved and index.has_annotations
        coco_set = CocoSet(f"tiny_coco/{split}", f"tiny_coco/{split}")
        assert [len(photo.instances) for photo in coco_set] == [1, 1]
        assert {photo.path.parent for photo in coco_set} == {folder / f"{split}2017"}
    assert not list(folder.glob(".*")) and not list((folder / "shards").glob(".*"))


def test_one_split_needs_its_own_files_alone(tiny_sets):
    folder = tiny_sets.coco()
    (folder / "train2017.zip").unlink()
    prepare(tiny_sets, "tiny_coco", "val")
    assert resolve_shards("tiny_coco/val") == folder / "shards/val"
    assert not (folder / "train2017").exists() and not (folder / "shards/train").exists()
    with pytest.raises(DataError, match="1 file is missing or wrong:\n  .*train2017.zip: absent; download it from"):
        prepare(tiny_sets, "tiny_coco")


def test_lvis_over_the_photos_of_coco(tiny_sets):
    tiny_sets.coco()
    folder = tiny_sets.lvis()
    shards = prepare(tiny_sets, "tiny_lvis", "val")
    assert shards == [folder / "shards/val"] and len(ShardIndex.open("tiny_lvis/val")) == 4
    assert len(LvisSet("tiny_lvis/val", "tiny_lvis/val")) == 4
    assert resolve_photos("tiny_lvis/val") == tiny_sets.root / "tiny_coco"
    assert resolve_annotations("tiny_lvis/val") == folder / "lvis_v1_val.json"


def test_tars_are_indexed_where_they_lie(tiny_sets):
    folder = tiny_sets.sa1b()
    before = {path.name for path in (folder / "shards/train").iterdir()}
    assert prepare(tiny_sets, "tiny_sa1b") == [folder / "shards/train"]
    assert {path.name for path in (folder / "shards/train").iterdir()} - before == {"index.json"}
    assert len(ShardIndex.open("tiny_sa1b")) == 2


def test_tars_that_are_absent(tiny_sets):
    tiny_sets.add("tiny_sa1b", "sa1b", {})
    with pytest.raises(DataError, match=r"sa_\*.tar: no such file; get some from https://ai.meta.com"):
        prepare(tiny_sets, "tiny_sa1b")


def test_a_set_of_the_wild(tiny_sets):
    folder = tiny_sets.sginw()
    assert prepare(tiny_sets, "tiny_sginw", "Bottles/valid") == [folder / "shards/Bottles/valid"]
    assert len(ShardIndex.open("tiny_sginw/Bottles/valid")) == 2


def test_the_packaged_set(tiny_sets):
    shards = tiny_sets.root / "nuclei/shards"
    assert prepare(tiny_sets, "nuclei", "val") == [shards / "val"]
    index = ShardIndex.open("nuclei/val")
    assert len(index) == 24 and index.has_annotations
    assert resolve_shards("nuclei/val") == shards / "val"
    assert not resolve_photos("nuclei/val").is_relative_to(tiny_sets.root), "the photos stay in the package"
    assert [path.name for path in shards.parent.iterdir()] == ["shards"]


def test_finished_splits_are_left_as_they_are(tiny_sets):
    folder = tiny_sets.coco()
    (tar,) = (folder / "shards/val").glob("*.tar") if prepare(tiny_sets, "tiny_coco", "val") else ()
    for archive in folder.glob("*.zip"):
        archive.unlink()
    time = tar.stat().st_mtime_ns
    assert prepare(tiny_sets, "tiny_coco", "val", verify=True) == [folder / "shards/val"]
    assert tar.stat().st_mtime_ns == time


def test_shards_elsewhere(tiny_sets, tmp_path):
    folder = tiny_sets.coco()
    assert prepare(tiny_sets, "tiny_coco", "val", out=tmp_path / "out") == [tmp_path / "out/val"]
    assert len(ShardIndex.open(tmp_path / "out/val")) == 2 and not (folder / "shards").exists()


def test_every_missing_or_wrong_file_is_named(tiny_sets):
    folder = tiny_sets.coco()
    (folder / "train2017.zip").unlink()
    with (folder / "val2017.zip").open("ab") as file:
        file.write(b"more")
    size = (folder / "val2017.zip").stat().st_size
    content = bytearray((folder / "annotations_trainval2017.zip").read_bytes())
    content[40] ^= 1
    (folder / "annotations_trainval2017.zip").write_bytes(content)
    with pytest.raises(DataError) as error:
        prepare(tiny_sets, "tiny_coco")
    first, *lines = str(error.value).splitlines()
    assert first == "3 files are missing or wrong:" and len(lines) == 3
    assert "train2017.zip: absent; download it from http://images.cocodataset.org/zips/train2017.zip" in lines[0]
    assert "annotations_trainval2017.zip: its sha256 is " in lines[1]
    assert f"val2017.zip: has {size:,} bytes, published are {size - 4:,}; download it again" in lines[2]
    assert not (folder / "shards").exists() and not (folder / "val2017").exists()


def test_hashes_of_large_files_are_checked_on_request(tiny_sets, monkeypatch):
    folder = tiny_sets.coco()
    entry = {"url": "http://a.org/val2017.zip", "md5": "0" * 32, "unpacks_to": "val2017"}
    files = load_dataset("tiny_coco", tiny_sets.root).files
    others = {name: {"url": file.url, "unpacks_to": file.unpacks_to} for name, file in files.items()}
    tiny_sets.edit("tiny_coco", {"files": {**others, "val2017.zip": entry}})
    monkeypatch.setattr("distill.data.prepare.SMALL_FILE", 0)
    with pytest.raises(DataError, match="val2017.zip: its md5 is .*, published is 0{32}"):
        prepare(tiny_sets, "tiny_coco", "val", verify=True)
    assert prepare(tiny_sets, "tiny_coco", "val") == [folder / "shards/val"]


def test_a_damaged_archive_unpacks_to_nothing(tiny_sets):
    content = bytearray(make_zip({"seginw/Bottles/valid/a.jpg": b"a" * 100, "seginw/b": b"b" * 100}))
    content[content.index(b"b" * 100)] ^= 1
    folder = tiny_sets.add("tiny_sginw", "sginw", {"seginw.zip": bytes(content)})
    with pytest.raises(DataError, match="seginw.zip: damaged .*; download it again from https://"):
        prepare(tiny_sets, "tiny_sginw", "Bottles/valid")
    assert [path.name for path in folder.iterdir()] == ["seginw.zip"]


def test_an_archive_of_something_else(tiny_sets):
    folder = tiny_sets.add("tiny_sginw", "sginw", {"seginw.zip": make_zip({"other/a.jpg": b"a"})})
    with pytest.raises(DataError, match="seginw.zip: holds no 'seginw'; download it again"):
        prepare(tiny_sets, "tiny_sginw", "Bottles/valid")
    assert [path.name for path in folder.iterdir()] == ["seginw.zip"]


def test_what_is_unpacked_needs_no_archive(tiny_sets):
    folder = tiny_sets.coco()
    for archive in folder.glob("*.zip"):
        with zipfile.ZipFile(archive) as content:
            content.extractall(folder)
        archive.unlink()
    assert len(prepare(tiny_sets, "tiny_coco")) == 2


def test_a_build_that_fails_leaves_no_shards(tiny_sets):
    folder = tiny_sets.coco()
    prepare(tiny_sets, "tiny_coco", "train")
    with zipfile.ZipFile(folder / "val2017.zip") as content:
        content.extractall(folder)
    for photo in (folder / "val2017").iterdir():
        photo.write_bytes(b"no photo")
    with pytest.raises(DataError, match="photos cannot be used"):
        prepare(tiny_sets, "tiny_coco")
    assert [path.name for path in (folder / "shards").iterdir()] == ["train"]


def test_a_folder_that_holds_something_else_is_refused(tiny_sets):
    folder = tiny_sets.coco()
    (folder / "shards/val").mkdir(parents=True)
    (folder / "shards/val/notes.txt").write_text("mine")
    with pytest.raises(DataError, match="shards/val: not empty, and holds no finished shards"):
        prepare(tiny_sets, "tiny_coco", "val")


def test_photo_files_that_the_other_set_does_not_list(tiny_sets):
    tiny_sets.coco()
    tiny_sets.lvis()
    entry = {"photos": 1, "files": ["lvis_v1_val.json.zip"], "photo_files": ["test2017.zip"]}
    tiny_sets.edit("tiny_lvis", {"splits": {"val": entry}})
    with pytest.raises(DataError, match="'tiny_lvis' needs 'test2017.zip' of 'tiny_coco', which lists no such file"):
        prepare(tiny_sets, "tiny_lvis")


def test_the_annotations_are_the_published_ones(tiny_sets):
    tiny_sets.coco()
    prepare(tiny_sets, "tiny_coco", "val")
    assert len(json.loads(resolve_annotations("tiny_coco/val").read_text())["annotations"]) == 2
