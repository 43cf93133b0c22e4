"""The record of a training: its earlier stages stay known wherever a reader stands, and a lost one is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from distill.cards.model_card import card_text
from distill.comparison.join import build_comparison
from distill.comparison.models import read_model
from distill.comparison.tables import training_columns
from distill.config.loading import load_recipe
from distill.config.paths import absolute_paths
from distill.training.record import STAGES_FILE, read_trainings, write_earlier_stages


@pytest.fixture
def stages(compared, tmp_path: Path) -> Path:
    """Copy both stages to a place of their own, in which the second names the first by a relative path."""
    for name in ("feature", "mask"):
        shutil.copytree(compared.place / "runs" / name, tmp_path / name)
    recipe = tmp_path / "mask/recipe.yaml"
    tree = yaml.safe_load(recipe.read_text())
    tree["student"]["init_from"] = "feature"
    recipe.write_text(yaml.safe_dump(tree))
    (tmp_path / "mask" / STAGES_FILE).unlink()
    return tmp_path


def test_a_run_keeps_the_stages_before_it(compared):
    kept = json.loads((compared.place / "runs/mask" / STAGES_FILE).read_text())
    assert [stage["recipe"]["kind"] for stage in kept["stages"]] == ["feature"] and kept["lost_start"] is None
    recipe = yaml.safe_load((compared.place / "runs/mask/recipe.yaml").read_text())
    assert Path(recipe["student"]["init_from"]).is_absolute() and Path(recipe["run"]).is_absolute()


def test_the_cost_is_the_same_from_every_directory(stages, tmp_path, monkeypatch):
    monkeypatch.chdir(stages)
    write_earlier_stages(stages / "mask", "feature")
    monkeypatch.chdir("/")
    costs = [training.cost for training in read_trainings(stages / "mask")]
    assert [cost.photos for cost in costs if cost is not None] == [4, 4]
    shutil.rmtree(stages / "feature")
    assert [training.cost for training in read_trainings(stages / "mask")] == costs


def test_a_lost_stage_is_said_and_a_part_is_no_cost(stages, monkeypatch):
    """A run of an earlier version has kept nothing, and its first stage is looked for from another directory."""
    monkeypatch.chdir(stages)
    (training, _) = read_trainings(stages / "mask")
    assert training.recipe["kind"] == "feature" and training.lost_start is None
    monkeypatch.chdir("/")
    (training,) = read_trainings(stages / "mask")
    assert training.lost_start == "feature"
    comparison = build_comparison([read_model(str(stages / "mask"), None)], reference=None)
    assert any("it started from feature, of whose training no record is left" in note for note in comparison.notes)
    assert {column.title for column in training_columns(comparison)} == {"teacher"}  # no hours, no photos
    text = card_text(stages / "mask/student.safetensors", {"evaluations": {}, "bench": None})
    assert "It started from `feature`, of whose training no record is left" in text


def test_what_is_no_path_of_this_machine_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["run=r", "data.images=s3://bucket/sa1b", "data.val_images=coco2017/val", "student.init_from=teacher"]
    recipe = load_recipe("quickstart/feature", [*options, "cache.dir=c"], check_paths=False)
    found = absolute_paths(recipe)
    assert (found.run, found.cache.dir) == (str(tmp_path / "r"), str(tmp_path / "c"))
    assert (found.data, found.student, found.teacher) == (recipe.data, recipe.student, recipe.teacher)
    assert recipe.run == "r"
