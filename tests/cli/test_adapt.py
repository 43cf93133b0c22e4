"""`distill adapt`: from a folder of masks to a page, in one command that can be stopped and started again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.adapt.rehearsal import REST_SECONDS, Estimate
from distill.adapt.run import ADAPTED, BASELINE, MARKER_FILE, TEACHER, ZERO_SHOT
from distill.cli.main import main
from distill.comparison import measure
from distill.errors import RunError
from distill.models.checkpoint import STUDENT_FILE, save_model
from distill.models.sam import ModelSpec, build_from_spec

HW = (48, 64)
NUM_PHOTOS = 6
TINY = ModelSpec("timm/mobilenetv3_small_050", 64, embedding_dim=16, embedding_size=8, decoder_mlp_dim=32)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a teacher and photos with label maps of two objects each, and make the place the working directory."""
    for folder in ("photos", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(NUM_PHOTOS):
        random = np.random.default_rng(number)
        mask = np.zeros(HW, np.uint8)
        for value in (1, 2):
            top, left = random.integers(0, (24, 32))
            mask[top : top + 20, left : left + 24] = value
        pixels = random.integers(0, 99, (*HW, 3), dtype=np.uint8) + 70 * mask[..., None]
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"photos/{number}.png")
        Image.fromarray(mask).save(tmp_path / f"masks/{number}.png")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_model(build_from_spec(TINY), tmp_path / "teacher.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "BENCH_SECONDS", 0.02)
    return tmp_path


def command(*further: str) -> list[str]:
    length = ["--feature-steps", "1", "--mask-steps", "1"]
    return ["adapt", "photos", "--annotations", "masks", "--teacher", "teacher.safetensors", *length, *further]


def run(*further: str) -> int:
    return main([*command("--out", "adapted", "--device", "cpu"), *further])


@pytest.mark.slow
def test_one_command_gives_a_student_and_a_page_and_goes_on_where_it_stopped(place: Path, capsys) -> None:
    assert run() == 0, capsys.readouterr().err
    out = place / "adapted"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["photos"] == {"train": 4, "val": 2} and summary["masks"] == {"train": 8, "val": 4}
    assert list(summary["models"]) == [TEACHER, ZERO_SHOT, ADAPTED, BASELINE]
    assert summary["models"][BASELINE]["scores"]["box"]["miou"] > 0.5
    for label in (TEACHER, ZERO_SHOT, ADAPTED):
        model = summary["models"][label]
        assert model["params"] > 0 and model["encoder_macs"] > 0 and model["latency_ms"] > 0
        for score in (model["scores"]["box"], model["scores"]["1 click"]):
            assert score["interval"][0] <= score["miou"] <= score["interval"][1]
    page = (out / "index.html").read_text()
    assert all(label in page for label in (TEACHER, ZERO_SHOT, ADAPTED)) and "<svg" in page
    assert (out / "onnx/encoder.onnx").is_file() and (out / "mask" / STUDENT_FILE).is_file()
    shown = capsys.readouterr().out
    assert "4 with 8 masks to learn from, 2 with 4 held out (drawn by --seed 0)" in shown
    assert f"The {ADAPTED}, beside its {TEACHER}: " in shown

    weights = [(out / stage / STUDENT_FILE).stat().st_mtime_ns for stage in ("feature", "mask")]
    (out / "evaluations/adapted_student/coco_point/metrics.json").unlink()  # as if it had been stopped here
    assert run() == 0
    assert "resume=true" in capsys.readouterr().out
    assert [(out / stage / STUDENT_FILE).stat().st_mtime_ns for stage in ("feature", "mask")] == weights
    again = json.loads((out / "summary.json").read_text())["models"]
    assert [model["scores"] for model in again.values()] == [model["scores"] for model in summary["models"].values()]

    assert run("--seed", "1") == 2
    assert "begun with masks" in (said := capsys.readouterr().err) and "seed 0, not 1" in said


def test_a_dry_run_says_what_and_how_long_and_writes_nothing(place: Path, capsys) -> None:
    before = sorted(place.rglob("*"))
    assert run("--dry-run") == 0
    shown = capsys.readouterr().out
    assert "student: timm/mobilenetv3_small_050@16+slim, 48 pixels, begun from teacher" in shown
    assert all(text in shown for text in ("cache", "1 steps: the student learns", "all", "nothing was written"))
    assert sorted(place.rglob("*")) == before


def test_minutes_set_the_length_of_both_stages() -> None:
    found = Estimate(cache=15, feature=100, mask=200, evaluate=60, feature_steps=100, mask_steps=50, cache_bytes=9)
    assert found.total == 375 + REST_SECONDS
    half = found.within((120 + 150) / 60)
    assert (half.feature_steps, half.mask_steps) == (50, 25) and half.total == 120 + 150
    with pytest.raises(RunError, match="--minutes 1: caching and evaluating take 2 min|take 120 s"):
        found.within(1)


def test_mistakes_are_told_before_anything_is_written(place: Path, capsys) -> None:
    def refused(*further: str) -> str:
        assert run(*further) == 2
        assert not (place / "adapted").exists()
        return capsys.readouterr().err

    assert "unknown student 'efficientvit_sam_x'" in refused("--student", "efficientvit_sam_x")
    assert "go together" in refused("--val-photos", "photos")
    assert "no such file" in refused("--teacher", "absent.safetensors")
    assert "6 photos are in photos and in photos" in refused("--val-photos", "photos", "--val-annotations", "masks")
    save_model(build_from_spec(replace(TINY, embedding_dim=32)), place / "other.safetensors")
    other = ["--student", TINY.encoder, "--init-from", "other.safetensors"]
    assert "its model has 32, the teacher's embedding_dim is 16" in refused(*other)
    (place / "masks/5.png").rename(place / "masks/five.png")
    assert "1 of 6 masks fit no photo of photos: five.png" in refused()
    (place / "masks/five.png").unlink()
    assert "1 of 6 photos have no mask in masks: 5; annotate them, or leave them out by --skip" in refused()


def test_a_directory_with_other_things_is_refused(place: Path, capsys) -> None:
    (place / "adapted").mkdir()
    (place / "adapted/thesis.txt").write_text("mine")
    assert run() == 2
    assert "give another directory" in capsys.readouterr().err
    assert not (place / "adapted" / MARKER_FILE).exists()
