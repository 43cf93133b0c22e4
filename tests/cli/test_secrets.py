"""A recipe may take values from the environment. They are used, and no file or message of ours holds them."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distill.cli.main import main
from distill.models.checkpoint import read_metadata
from tests.fixtures.comparison import write_set

SECRET, OTHER = "s3cr3t-t0ken", "an0ther-t0ken"
RECIPE = """\
kind: feature
run: run
teacher: {name: "${oc.env:TOKEN}/teacher.safetensors", source: online}
student: {name: efficientvit_sam_t, image_size: 64}
data: {images: "${oc.env:TOKEN}/images", val_images: "${data.images}", batch_size: 2, num_workers: 0}
optim: {lr: 1.0e-3, warmup_steps: 0}
validation: {every_n_steps: 2, max_images: 2, num_pictures: 1}
logger: [tensorboard, csv]
trainer: {max_steps: 2, log_every_n_steps: 1, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
"""
EVALUATION = ["data.images=${oc.env:TOKEN}/photos", "data.annotations=${oc.env:TOKEN}/set.json", "num_workers=0"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo_shards, teacher_file: Path) -> Path:
    """Make a working directory in which everything that a recipe needs lies in a folder named by a secret."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKEN", SECRET)
    photo_shards(4)
    Path(SECRET).mkdir()
    shutil.move("images", SECRET)
    write_set(Path(SECRET), 2)
    shutil.copy(teacher_file, Path(SECRET, "teacher.safetensors"))
    Path("recipe.yaml").write_text(RECIPE)
    return tmp_path


def holders(folder: Path, secret: str = SECRET) -> list[str]:
    """Return the files whose bytes, text or tensors' names hold the secret."""
    files = [path for path in folder.rglob("*") if path.is_file() and secret not in str(path)]
    return [str(path) for path in files if secret.encode() in path.read_bytes() or secret in _content(path)]


def _content(path: Path) -> str:
    """Return what a checkpoint holds beside its tensors, also where its container compresses it."""
    if path.suffix != ".ckpt":
        return ""
    return repr(_without_tensors(torch.load(path, weights_only=True)))


def _without_tensors(content: object) -> object:
    if isinstance(content, dict):
        return {key: _without_tensors(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_tensors(value) for value in content]
    return None if isinstance(content, Tensor) else content


def test_training_evaluation_card_and_comparison_hold_no_secret(place, monkeypatch, capfd):
    assert main(["train", "recipe.yaml"]) == 0
    assert main(["evaluate", "run", "eval/coco_box", *EVALUATION, "run=scores"]) == 0
    assert main(["card", "run", "--add", "scores"]) == 0
    assert main(["compare", "run", "scores", "--no-bench", "--out", "comparison"]) == 0
    assert holders(place) == []
    assert "${oc.env:TOKEN}/images" in Path("run/recipe.yaml").read_text()
    assert "${oc.env:TOKEN}/images" in read_metadata(Path("run/student.safetensors"))["recipe"]
    assert json.loads(Path("scores/metrics.json").read_text())["images"] == "${oc.env:TOKEN}/photos"
    assert "oc.env:TOKEN" in Path("run/README.md").read_text()

    # A resumed run compares the references, and the value of a run that was begun with it.
    assert main(["train", "recipe.yaml", "resume=true", "trainer.max_steps=4"]) == 0
    assert not json.dumps(json.loads(Path("run/changes.json").read_text())).count("images")
    again = ["train", "recipe.yaml", "resume=true", "trainer.max_steps=6", f"data.images={SECRET}/images"]
    assert main([*again, f"teacher.name={SECRET}/teacher.safetensors"]) == 0
    assert [change["key"] for change in json.loads(Path("run/changes.json").read_text())] == ["trainer.max_steps"] * 2
    assert main(["evaluate", "run", "eval/coco_box", *EVALUATION, "run=scores", "resume=true"]) == 2  # other weights
    out, err = capfd.readouterr()
    assert SECRET not in (out + err).replace(f"data.images={SECRET}", "")


def test_an_evaluation_goes_on_by_its_references(place, capfd):
    assert main(["evaluate", "oracle", "eval/coco_box", *EVALUATION, "run=scores"]) == 0
    assert main(["evaluate", "oracle", "eval/coco_box", *EVALUATION, "run=scores", "resume=true"]) == 0
    shutil.copytree(SECRET, "elsewhere")
    given = [option.replace("${oc.env:TOKEN}", "elsewhere") for option in EVALUATION]
    assert main(["evaluate", "oracle", "eval/coco_box", *given, "run=scores", "resume=true"]) == 2
    assert "data.images was ${oc.env:TOKEN}/photos" in capfd.readouterr().err
    given = [option.replace("${oc.env:TOKEN}", str(place / SECRET)) for option in EVALUATION]
    assert main(["evaluate", "oracle", "eval/coco_box", *given, "run=scores", "resume=true"]) == 0  # the same place


@pytest.mark.parametrize("key", ["data.images", "teacher.name", "student.init_from", "student.name"])
def test_no_error_says_the_value(place, monkeypatch, capfd, key):
    monkeypatch.setenv("TOKEN", OTHER)
    with contextlib.suppress(SystemExit):
        assert main(["check", "recipe.yaml", f"{key}=${{oc.env:TOKEN}}/absent"]) == 2
    out, err = capfd.readouterr()
    assert OTHER not in out + err and "${oc.env:TOKEN}" in err


def test_a_resolved_recipe_is_shown_with_references(place, capfd):
    assert main(["check", "recipe.yaml", "--resolved"]) == 0
    out, err = capfd.readouterr()
    assert SECRET not in out + err and "images: ${oc.env:TOKEN}/images" in out
