"""What runs tell the usual tools: loggers by recipe, hyperparameters, and the cost of a training."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from distill.cli.main import main
from distill.config.loading import load_recipe
from distill.config.names import LOGGERS
from distill.errors import RecipeError, RunError
from distill.training import run as training
from distill.training.cost import read_cost
from distill.training.loggers import build_loggers

RECIPE = {
    "kind": "feature",
    "run": "run",
    "student": {"name": "efficientvit_sam_t", "image_size": 64},
    "data": {"images": "images", "batch_size": 2, "num_workers": 0},
    "optim": {"lr": 0.002},
    "validation": {"every_n_steps": 2},
    "trainer": {"max_steps": 4, "log_every_n_steps": 1, "accelerator": "cpu", "enable_progress_bar": False},
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo_shards, teacher_file: Path) -> Path:
    """Make a working directory with image shards and a recipe."""
    monkeypatch.chdir(tmp_path)
    photo_shards(6)
    recipe = {**RECIPE, "teacher": {"name": str(teacher_file), "source": "online"}}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def hparams_of(run: Path) -> dict[str, HParamsPluginData]:
    """Return what TensorBoard's HPARAMS page reads, by tag."""
    accumulator = EventAccumulator(str(run / "tensorboard"))
    accumulator.Reload()
    content = accumulator.SummaryMetadata
    tags = accumulator.PluginTagToContent("hparams")
    assert content
    return {tag: HParamsPluginData.FromString(value) for tag, value in tags.items()}


def test_tensorboard_has_hyperparameters_beside_the_scalars(place):
    assert main(["train", "recipe.yaml"]) == 0
    found = hparams_of(Path("run"))
    asked = found["_hparams_/session_start_info"].session_start_info.hparams
    assert asked["optim.lr"].number_value == 0.002
    assert asked["student.name"].string_value == "efficientvit_sam_t"
    metrics = {info.name.tag for info in found["_hparams_/experiment"].experiment.metric_infos}
    accumulator = EventAccumulator("run/tensorboard")
    accumulator.Reload()
    assert metrics == {"train/loss"} and metrics <= set(accumulator.Tags()["scalars"])
    assert "_hparams_/session_end_info" in found


def test_loggers_by_recipe(place):
    assert main(["train", "recipe.yaml", "logger=[csv]"]) == 0
    assert not Path("run/tensorboard").exists()
    with open("run/csv/version_0/metrics.csv", newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert steps == [0, 1, 2, 3]
    asked = yaml.safe_load(Path("run/csv/version_0/hparams.yaml").read_text())
    assert asked["optim.lr"] == 0.002
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == steps


def test_no_logger_still_leaves_the_record(place):
    assert main(["train", "recipe.yaml", "logger=[]"]) == 0
    assert Path("run/metrics.jsonl").is_file() and not Path("run/tensorboard").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("logger=[tensorbord]", "unknown logger 'tensorbord'. Did you mean 'tensorboard'"),
        ("logger=csv", "logger: expected a list, as"),
        ("trainer.logger=true", "use logger:"),
    ],
)
def test_bad_loggers_are_refused_before_anything_is_written(place, capsys, override, message):
    assert main(["train", "recipe.yaml", override]) == 2
    assert message in capsys.readouterr().err
    assert not Path("run").exists()


@pytest.mark.parametrize("package", [package for package in LOGGERS.values() if package])
def test_a_logger_without_its_package_names_the_pip_line(place, package):
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(RecipeError, match=f"pip install {package}"):
        load_recipe("recipe.yaml", [f"logger=[tensorboard, {package}]"])
    load_recipe("recipe.yaml", [f"logger=[{package}]"], check_paths=False)  # to read a record it need not be here


def test_the_cost_of_a_training(place):
    assert read_cost(Path("run")) is None
    assert main(["train", "recipe.yaml"]) == 0
    cost = read_cost(Path("run"))
    assert cost is not None and cost.seconds > 0
    assert (cost.steps, cost.photos, cost.devices, cost.nodes, cost.precision) == (4, 8, 1, 1, "32-true")
    assert cost.device.startswith("cpu") and cost.device_hours == cost.seconds / 3600


class Stop(Callback):
    """Ends a run as a power cut would."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == 3:
            raise RuntimeError("power cut")


def test_the_cost_of_an_interrupted_training_is_that_of_its_parts(place, monkeypatch):
    own = training._callbacks
    monkeypatch.setattr(training, "_callbacks", lambda recipe: [*own(recipe), Stop()])
    assert main(["train", "recipe.yaml"]) == 1
    assert read_cost(Path("run")) is None
    monkeypatch.setattr(training, "_callbacks", own)
    assert main(["train", "recipe.yaml", "resume=true"]) == 0
    cost = read_cost(Path("run"))
    assert cost is not None and (cost.steps, cost.photos) == (4, 8)  # the step after the checkpoint counts once


def test_a_service_that_refuses_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("mlflow").set_tracking_uri("nonsense://server")
    with pytest.raises(RunError, match="nonsense://server.*MLFLOW_TRACKING_URI"):
        build_loggers(["mlflow"], tmp_path)
