from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.data.coco import CocoSet
from distill.data.folder import PhotoFolder
from distill.data.images import decode_image
from distill.data.rle import decode_mask, encode_mask
from distill.data.shards.build import build_coco_shards, build_folder_shards, store_photo
from distill.data.shards.index import ShardIndex
from distill.data.shards.sa1b import parse_annotations
from distill.errors import DataError

HW = (30, 40)
SQUARE = [[4, 2, 24, 2, 24, 10, 4, 10]]
QUARTER_TURN = 6


def annotation(identity: int, image_id: int, segmentation=SQUARE) -> dict:
    return {"id": identity, "image_id": image_id, "category_id": 7, "iscrowd": 0, "segmentation": segmentation}


def turned_jpeg() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = QUARTER_TURN
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (*HW, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def test_a_coco_set_becomes_samples_with_its_own_bytes(tmp_path: Path, coco_files, box_mask) -> None:
    images, file = coco_files([annotation(1, 0), annotation(2, 0), annotation(3, 1)], num_images=3)
    report = build_coco_shards(CocoSet(images, file), tmp_path / "out", samples_per_shard=2)
    assert (report.num_samples, report.num_instances, report.bad, report.empty) == (3, 3, {}, {})
    index = ShardIndex.open(tmp_path / "out")
    assert index.shard_sizes == [2, 1] and list(index.keys()) == ["0", "1", "2"]
    member = index.member(0)
    assert index.read_image_bytes(member) == (images / "0.jpg").read_bytes()
    annotations = parse_annotations(index.read_annotation(member), "here")
    assert annotations.hw == HW and [row.id for row in annotations.rows] == [1, 2]
    assert annotations.rows[0].bbox == [4, 2, 20, 8]
    assert json.loads(index.read_annotation(member))["annotations"][0]["category_id"] == 7
    assert np.array_equal(decode_mask(annotations.rows[0].segmentation), box_mask(HW, 2, 10, 4, 24))
    assert json.loads(index.read_annotation(index.member(2)))["annotations"] == []


def test_larger_photos_are_reduced_with_their_masks(tmp_path: Path, coco_files, box_mask) -> None:
    speck = encode_mask(box_mask(HW, 5, 6, 5, 6))
    images, file = coco_files([annotation(1, 0), annotation(2, 0, speck)], num_images=1)
    report = build_coco_shards(CocoSet(images, file), tmp_path / "out", samples_per_shard=2, max_side=20)
    assert report.empty == {2: "0"} and report.num_instances == 1
    index = ShardIndex.open(tmp_path / "out")
    annotations = parse_annotations(index.read_annotation(index.member(0)), "here")
    assert decode_image(index.read_image_bytes(index.member(0)), "here").shape == (15, 20, 3)
    (row,) = annotations.rows
    assert annotations.hw == (15, 20) and row.bbox == [2, 1, 10, 4] and annotations.areas == [40]
    assert np.array_equal(decode_mask(row.segmentation), box_mask((15, 20), 1, 5, 2, 12))


def test_empty_masks_and_crowds_are_counted(tmp_path: Path, coco_files) -> None:
    crowd = {**annotation(3, 0), "iscrowd": 1}
    images, file = coco_files([annotation(1, 0), annotation(2, 1, []), crowd])
    report = build_coco_shards(CocoSet(images, file), tmp_path / "out", samples_per_shard=2)
    assert (report.num_instances, report.num_crowd, report.empty) == (1, 1, {2: "1"})


def test_a_few_corrupt_photos_are_left_out_and_named(tmp_path: Path, coco_files) -> None:
    images, file = coco_files([annotation(1, 0)], num_images=10)
    data = (images / "3.jpg").read_bytes()
    (images / "3.jpg").write_bytes(data[: len(data) // 2])
    (images / "4.jpg").write_bytes(b"")
    report = build_coco_shards(CocoSet(images, file), tmp_path / "out", samples_per_shard=4, max_bad_share=0.2)
    assert report.num_samples == 8 and set(report.bad) == {"3", "4"} and "3.jpg" in report.bad["3"]
    assert "3" not in list(ShardIndex.open(tmp_path / "out").keys())


def test_many_corrupt_photos_end_the_build_and_leave_nothing(tmp_path: Path, coco_files) -> None:
    images, file = coco_files([], num_images=10)
    for i in (7, 8):
        (images / f"{i}.jpg").write_bytes(b"no photo")
    with pytest.raises(DataError, match=r"2 photos cannot be used.*--max-bad-share.*8\.jpg"):
        build_coco_shards(CocoSet(images, file), tmp_path / "out", samples_per_shard=2, max_bad_share=0.1)
    assert not (tmp_path / "out").exists()


def test_a_folder_becomes_photos_without_annotations(tmp_path: Path, jpeg) -> None:
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    (tmp_path / "in" / "deeper" / "a.b.jpg").write_bytes(jpeg())
    (tmp_path / "in" / "turned.jpg").write_bytes(turned_jpeg())
    Image.new("RGB", (8, 6), (1, 2, 3)).save(tmp_path / "in" / "flat.png")
    Image.new("RGB", (8, 6), (1, 2, 3)).save(tmp_path / "in" / "really_bmp.png", "BMP")
    done = []
    report = build_folder_shards(
        PhotoFolder(tmp_path / "in"), tmp_path / "out", samples_per_shard=9, advance=done.append
    )
    assert report.num_samples == 4 and sum(done) == 4
    index = ShardIndex.open(tmp_path / "out")
    assert list(index.keys()) == ["deeper_a_b", "flat", "really_bmp", "turned"] and not index.has_annotations
    assert index.read_image_bytes(index.member(0)) == jpeg()
    photos = [decode_image(index.read_image_bytes(index.member(i)), "here") for i in range(4)]
    assert (photos[1] == (1, 2, 3)).all() and photos[2].shape == (6, 8, 3)
    assert photos[3].shape == (40, 30, 3)


def test_turned_photos_are_stored_upright() -> None:
    data = turned_jpeg()
    upright = decode_image(data, "here")
    stored = store_photo(data, upright)
    assert stored.hw == (40, 30) and stored.suffix == "jpg" and stored.data != data
    with Image.open(io.BytesIO(stored.data)) as image:
        assert (image.height, image.width) == (40, 30) and not image.getexif()
