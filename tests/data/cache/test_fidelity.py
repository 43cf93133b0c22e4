"""The fidelity of codecs with the packaged teacher, on photos of several shapes: int8 keeps its promise."""

from __future__ import annotations

import pytest

from distill.config.schema import CacheConfig, TeacherConfig
from distill.data.cache.fidelity import NUM_PHOTOS, measure_fidelity
from distill.data.cache.teacher_pool import TeacherPool
from distill.data.coco import CocoSet
from distill.data.shards.build import build_coco_shards
from distill.data.shards.index import ShardIndex
from distill.models.teacher import load_teacher
from distill.quickstart.photographs import write_part


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    directory = tmp_path_factory.mktemp("nuclei")
    data = write_part("val", NUM_PHOTOS, directory / "annotations.json")
    coco_set = CocoSet(data.images, data.annotations)
    build_coco_shards(coco_set, directory / "shards", samples_per_shard=NUM_PHOTOS)
    return ShardIndex.open(directory / "shards")


def test_int8_keeps_values_and_masks(nuclei: ShardIndex):
    teacher = load_teacher(TeacherConfig())
    with TeacherPool(teacher, nuclei, CacheConfig()) as pool:
        found = measure_fidelity(pool, ["fp16", "int8"])
    assert found["int8"].num_images == NUM_PHOTOS and found["int8"].prompts == "box"
    for codec, fidelity in found.items():
        assert fidelity.relative_l2 <= {"fp16": 0.001, "int8": 0.015}[codec]
        assert fidelity.cosine >= 0.999
        assert fidelity.mask_iou >= 0.99 and fidelity.mask_iou_float32 >= 0.99
    assert found["int8"].bytes_per_image <= 0.52 * found["fp16"].bytes_per_image
