"""The catalogue of public sets: what ships reads, and mistakes in a file are named with their place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.cli.quickstart import HELD_OUT_PHOTOS, TRAIN_PHOTOS
from distill.config.loading import load_recipe
from distill.config.named_data import ROOT_VARIABLE, SplitName, catalogue_files, parse_split_name
from distill.data.catalogue import (
    list_datasets,
    load_dataset,
    read_dataset,
    resolve_annotations,
    resolve_photos,
    resolve_shards,
)
from distill.data.coco import CocoSet
from distill.errors import DataError, RecipeError

SHIPPED = sorted(catalogue_files())
ENTRY = {
    "name": "mine",
    "title": "my set",
    "summary": "What it is.",
    "homepage": "https://example.org",
    "kind": "coco",
    "licences": {part: {"name": "CC0", "terms": "https://example.org/terms"} for part in ("photos", "annotations")},
    "images": "{split}",
    "annotations": "{split}.json",
    "files": {"photos.zip": {"url": "https://example.org/photos.zip", "size": 3, "unpacks_to": "val"}},
    "splits": {"val": {"photos": 2}},
}


def write(folder: Path, **changes: Any) -> Path:
    """Write the entry of a set of one's own, with some keys changed."""
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**ENTRY, **changes}))
    return path


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_set_reads(name):
    dataset = load_dataset(name)
    assert dataset.name == name and dataset.splits
    for split in dataset.splits.values():
        assert set(split.files) <= set(dataset.files)
        if dataset.photos_of is not None:
            assert set(split.photo_files) <= set(load_dataset(dataset.photos_of).files)
    for file in dataset.files.values():
        assert not file.mirrors or file.url not in file.mirrors


def test_the_shipped_sets():
    assert SHIPPED == ["coco2017", "lvis_v1", "nuclei", "sa1b", "sginw"]
    assert [dataset.name for dataset in list_datasets()] == SHIPPED
    assert len({name.partition("/")[0] for name in load_dataset("sginw").splits}) == 25
    val = load_dataset("coco2017").split("val")
    assert (val.images, val.annotations) == ("val2017", "annotations/instances_val2017.json")
    assert val.num_photos == 5000 and val.files == ("val2017.zip", "annotations_trainval2017.zip")


def test_the_packaged_set_is_what_its_entry_says(monkeypatch):
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    for name, split in load_dataset("nuclei").splits.items():
        coco_set = CocoSet(f"nuclei/{name}", f"nuclei/{name}")
        instances = [len(photo.instances) for photo in coco_set]
        assert (len(coco_set), sum(instances)) == (split.num_photos, split.num_masks) and min(instances) > 0
        assert all(photo.load().shape == (*photo.hw, 3) for photo in list(coco_set)[:5])
    assert load_dataset("nuclei").split("train").num_photos == TRAIN_PHOTOS
    assert load_dataset("nuclei").split("val").num_photos == HELD_OUT_PHOTOS


def test_no_photo_of_the_packaged_set_is_in_both_splits():
    folders = [resolve_photos(f"nuclei/{split}") for split in ("train", "val")]
    names, contents = ([{read(path) for path in folder.iterdir()} for folder in folders] for read in (_name, _bytes))
    assert not names[0] & names[1] and not contents[0] & contents[1]


def _name(path: Path) -> str:
    return path.name


def _bytes(path: Path) -> bytes:
    return path.read_bytes()


def test_the_packaged_set_needs_a_folder_for_its_shards_alone(tmp_path, monkeypatch):
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    load_recipe("eval/coco_box", ["data.images=nuclei/val", f"run={tmp_path / 'run'}"], kinds=("evaluate",))
    with pytest.raises(DataError, match=f"{ROOT_VARIABLE} is not set"):
        resolve_shards("nuclei/train")
    with pytest.raises(RecipeError, match=f"data.images: no such directory: 'nuclei/train'.*{ROOT_VARIABLE}"):
        load_recipe("quickstart/mask", ["data.images=nuclei/train", f"run={tmp_path / 'run'}"])
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    with pytest.raises(DataError, match="'nuclei/train' is not prepared: .*datasets prepare nuclei --split train'"):
        resolve_shards("nuclei/train")


def test_an_own_entry_is_read_like_a_shipped_one(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    dataset = load_dataset("mine")
    assert dataset.split("").images == "val" and dataset.files["photos.zip"].unpacks_to == "val"
    assert "mine" in [dataset.name for dataset in list_datasets()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"licence": "CC0"}, r"mine.yaml: licence: unknown key. Did you mean 'licences'"),
        ({"splits": {"val": {"photo": 2}}}, r"splits.val.photo: unknown key. Did you mean 'photos'"),
        ({"kind": "voc"}, "kind: unknown value 'voc'. Known: coco, folder, lvis, tars"),
        ({"title": 3}, "title: must be a text, got 3"),
        ({"homepage": "example.org"}, r"homepage: must be an address \(https://...\), got 'example.org'"),
        ({"licences": {"photos": {"name": "CC0"}}}, "licences.photos.terms: missing; give terms: VALUE"),
        ({"splits": {"val": {"photos": -1}}}, "splits.val.photos: must be a whole number, at least 1, got -1"),
        ({"splits": {"val": {"photos": True}}}, "splits.val.photos: must be a whole number, at least 1, got True"),
        ({"splits": {}}, "splits: is empty; give at least one split"),
        ({"splits": {"val": {"files": ["photo.zip"]}}}, r"'photo.zip' is not among the set's files. Did you mean"),
        ({"files": {"a.zip": {"url": "https://a.org", "md5": "12"}}}, "files.a.zip.md5: must be 32 digits"),
        ({"images": "/data"}, "images: must be a path below the set's folder, got '/data'"),
        ({"images": "../other"}, "images: must be a path below the set's folder"),
        ({"name": "yours"}, "name: is 'yours' in a file named 'mine.yaml'; the two must agree"),
        ({"splits": ["val"]}, r"splits: must hold `key: value` lines, got \['val'\]"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        read_dataset(write(tmp_path, **changes))


def test_a_file_that_is_no_yaml(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: [mine")
    with pytest.raises(DataError, match="mine.yaml: not YAML .*; mend it"):
        read_dataset(path)


def test_unknown_names_list_the_near_ones():
    with pytest.raises(DataError, match="unknown set 'coco'. Did you mean 'coco2017'"):
        load_dataset("coco")
    with pytest.raises(DataError, match="'coco2017' has no split 'vall'. Did you mean 'val'"):
        load_dataset("coco2017").split("vall")
    with pytest.raises(DataError, match="several splits; name one, as coco2017/SPLIT. Known: train, val"):
        load_dataset("coco2017").split("")


def test_which_values_are_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_split_name("coco2017/train") == SplitName("coco2017", "train")
    assert parse_split_name("sginw/Bottles/valid") == SplitName("sginw", "Bottles/valid")
    assert parse_split_name("sa1b") == SplitName("sa1b", "")
    for path in ("./sa1b", "/sa1b", "~/sa1b", "s3://sa1b", "shards/train", "coco", "sginw/Bottles/valid/a.json"):
        assert parse_split_name(path) is None
    (tmp_path / "sa1b").mkdir()
    assert parse_split_name("sa1b") is None, "a path that exists is a path"


def test_a_name_needs_the_folder_of_sets(monkeypatch):
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    for resolve in (resolve_shards, resolve_photos, resolve_annotations):
        with pytest.raises(DataError, match=f"{ROOT_VARIABLE} is not set; .*export {ROOT_VARIABLE}=DIR"):
            resolve("coco2017/val")


def test_a_name_needs_to_be_prepared(tmp_path, monkeypatch):
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    for resolve in (resolve_shards, resolve_photos, resolve_annotations):
        with pytest.raises(DataError, match="'coco2017/val' is not prepared: .*datasets prepare coco2017 --split val'"):
            resolve("coco2017/val")
    with pytest.raises(DataError, match="'sa1b/train' is published as tars"):
        resolve_photos("sa1b")
    with pytest.raises(DataError, match="'sa1b/train' has no annotation file"):
        resolve_annotations("sa1b")


def test_paths_stay_paths():
    assert resolve_shards("s3://bucket/sa1b") == "s3://bucket/sa1b"
    assert resolve_photos("photos") == Path("photos") and resolve_annotations(Path("a.json")) == Path("a.json")


def test_the_catalogue_loads_no_torch():
    program = "import sys, distill.data.catalogue as c; c.list_datasets(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
