"""The plan of a job: its sums are right, and it leaves nothing behind."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from distill.config.schema import CacheConfig
from distill.data.cache.codecs import CODECS
from distill.data.cache.estimate import CachePlan, CodecCost, break_even, make_plan, nearest_directory, recommend
from distill.data.cache.fidelity import measure_fidelity
from distill.data.cache.manifest import Fidelity
from distill.data.cache.teacher_pool import TeacherPool
from distill.errors import DataError

FIDELITY = {"num_images": 1, "num_prompts": 1, "prompts": "box", "cosine": 1.0, "mask_iou_float32": 0.995}


@pytest.fixture
def plan(tiny_teacher, photo_shards, tmp_path: Path) -> CachePlan:
    config = CacheConfig(dir=str(tmp_path / "none" / "cache"), codec="int8")
    with TeacherPool(tiny_teacher, photo_shards(7, bad={3}), config) as pool:
        fidelities = measure_fidelity(pool, CODECS)
        plan = make_plan(pool, Path(config.dir), fidelities=fidelities, num_devices=4)
    assert {path.name for path in tmp_path.iterdir()} == {"images"}
    return plan


def test_sums(plan: CachePlan):
    assert (plan.num_images, plan.num_shards, plan.num_devices, plan.device) == (7, 3, 4, "cpu")
    assert [cost.codec for cost in plan.codecs] == list(CODECS) and plan.chosen.codec == "int8"
    for cost in plan.codecs:
        assert cost.total_bytes == round(7 * cost.bytes_per_image)
        assert cost.share_of_full_map == cost.bytes_per_image / (2 * 32 * 8 * 8)
        assert cost.fidelity.relative_l2 > 0
    speeds = plan.speeds
    assert min(speeds.build, speeds.teacher, speeds.read, speeds.write, plan.free_bytes) > 0
    assert plan.hours == max(7 / speeds.build / 4, plan.chosen.total_bytes / speeds.write) / 3600
    assert plan.online_hours_per_epoch == 7 / speeds.teacher / 4 / 3600
    assert plan.recommendation


def test_no_photo(tiny_teacher, photo_shards, tmp_path):
    index = photo_shards(2, bad={0, 1})
    with TeacherPool(tiny_teacher, index, CacheConfig()) as pool, pytest.raises(DataError, match="can be decoded"):
        make_plan(pool, tmp_path, fidelities={"fp16": measured("fp16", 0.01).fidelity})


def measured(codec: str, relative_l2: float, *, mask_iou: float = 0.995, num_bytes: int = 100) -> CodecCost:
    fidelity = Fidelity(**FIDELITY, relative_l2=relative_l2, mask_iou=mask_iou, bytes_per_image=float(num_bytes))
    return CodecCost(codec, num_bytes, 0.5, num_bytes, fidelity)


@pytest.mark.parametrize(
    ("build", "online", "read", "expected"),
    [
        (1.0, 1.0, 0.0, 2),  # building costs as much as one epoch online, so it pays from the second epoch on
        (1.1, 1.0, 0.5, 3),
        (0.9, 1.0, 0.0, 1),
        (2.0, 1.0, 0.0, 3),
        (1.0, 1.0, 1.0, None),
        (1.0, 0.1, 0.5, None),
    ],
)
def test_break_even(build: float, online: float, read: float, expected: int | None):
    assert break_even(build=build, online=online, read=read) == expected
    if expected is not None:
        for epochs in range(1, 10):
            assert (build + epochs * read < epochs * online) == (epochs >= expected)


def test_recommendation():
    fp16 = measured("fp16", 1e-4)
    int8 = measured("int8", 0.009, num_bytes=50)
    assert recommend((fp16, int8), free_bytes=1000, pays_after=2).startswith("cache.codec=int8, for 2 epochs or more;")
    worse = (measured("int8", 0.03, num_bytes=50), measured("int8", 0.009, mask_iou=0.98, num_bytes=50))
    for bad in worse:
        assert recommend((fp16, bad), free_bytes=1000, pays_after=2).startswith("cache.codec=fp16")
    assert "needs 50 bytes and 40 are free" in recommend((fp16, int8), free_bytes=40, pays_after=2)
    assert recommend((fp16, int8), free_bytes=1000, pays_after=None).startswith("no cache: reading it costs more")
    assert recommend(worse, free_bytes=1000, pays_after=2).startswith("no cache: every codec measured loses more")
    lossless = dataclasses.replace(fp16, total_bytes=10)
    assert recommend((lossless, int8), free_bytes=1000, pays_after=1) == "cache.codec=fp16, for 1 epoch or more"


def test_nearest_directory(tmp_path: Path):
    (tmp_path / "file").touch()
    assert nearest_directory(tmp_path / "a" / "b") == tmp_path
    assert nearest_directory(tmp_path / "file" / "b") == tmp_path and nearest_directory(tmp_path) == tmp_path
