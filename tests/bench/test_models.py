"""`distill bench models`: what is counted, that all forms take turns, and what the files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from distill.bench import models as bench_models
from distill.bench.models import TimedForm, _take_turns
from distill.bench.models_report import best_run, tables
from distill.cli.main import main
from distill.models.checkpoint import save_model
from distill.models.sam import ModelSpec, build_from_spec

REPEATS = 3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two tiny models on disk; one has nothing to fuse."""
    folder = tmp_path_factory.mktemp("models")
    paths = []
    for name in ("efficientvit_sam_t", "efficient_sam_vitt"):
        path = folder / f"{name}.safetensors"
        save_model(build_from_spec(ModelSpec(name, 64, embedding_dim=16, embedding_size=4, decoder_mlp_dim=32)), path)
        paths.append(str(path))
    return paths


@pytest.fixture(scope="module")
def found(models: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Run the command once, and return the JSON that it wrote."""
    out = tmp_path_factory.mktemp("bench")
    files = ["--json", str(out / "models.json"), "--picture", str(out / "models.png")]
    options = ["--teacher", models[1], "--batch-size", "2", "--seconds", "1000", "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_models, "MAX_REPEATS", REPEATS)  # on a machine of any speed
        assert main(["bench", "models", models[0], *options, *files]) == 0
    assert (out / "models.png").read_bytes().startswith(b"\x89PNG")
    return json.loads((out / "models.json").read_text())


def test_the_json(found: dict, models: list[str]) -> None:
    assert found["benchmark"] == "models" and found["machine"]["torch"] == torch.__version__
    teacher, student = found["models"]
    assert [teacher["model"], student["model"]] == [models[1], models[0]]
    assert student["params"] > student["encoder_params"] > 1e6 and student["macs"] > 1e7
    forms = {(run["batch_size"], run["precision"], run["fused"]) for run in student["runs"]}
    assert forms == {(n, precision, fused) for n in (1, 2) for precision in ("fp32", "bf16") for fused in (False, True)}
    assert not any(run["fused"] for run in teacher["runs"])  # nothing to fuse
    for run in [*teacher["runs"], *student["runs"]]:
        assert run["images_per_second"] == pytest.approx(1e3 * run["batch_size"] / run["latency_ms"])
        assert run["repeats"] == run["rounds"] == REPEATS  # one in a round
        assert run["latency_low_ms"] <= run["latency_ms"] <= run["latency_high_ms"]


def test_memory_holds_at_least_the_weights(found: dict) -> None:
    for model in found["models"]:
        for run in model["runs"]:
            assert run["peak_memory_mb"] > 4e-6 * model["encoder_params"]
    first, second = (run for run in found["models"][0]["runs"] if run["precision"] == "fp32")
    assert second["batch_size"] == 2 and second["peak_memory_mb"] > first["peak_memory_mb"]


def test_the_tables(found: dict) -> None:
    fp32, bf16 = tables(found)
    assert "fp32" in str(fp32.title) and "bf16" in str(bf16.title)
    columns = [list(column.cells) for column in fp32.columns]
    assert columns[0] == [model["model"] for model in found["models"]]
    assert columns[-1][0] == "1.0"  # the teacher beside itself
    teacher, student = (best_run(model, "fp32")["images_per_second"] for model in found["models"])
    assert float(columns[-1][1]) == pytest.approx(student / teacher, abs=0.06)
    assert columns[-2][0] == "-" and float(columns[-2][1]) > 0  # beside its unfused form


def test_all_take_turns() -> None:
    """Check that each round has its share of every form, so that a drift of the machine hits all alike."""
    order: list[str] = []

    class Recorder(torch.nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, pixels: torch.Tensor) -> None:
            order.append(self.name)

    runs = []
    for name, repeats in (("often", 20), ("seldom", 5), ("once", 1)):
        runs.append(TimedForm(Recorder(name), torch.zeros(1, 3, 1, 1), "fp32", False, repeats=repeats))
    _take_turns(runs)
    assert [len(run.seconds) for run in runs] == [20, 5, 1]
    rounds = bench_models.ROUNDS
    assert {order.count(name) for name in ("often",)} == {20}
    places = [i for i, name in enumerate(order) if name == "seldom"]
    before = [order[:place].count("often") for place in places]
    assert all(4 * i <= count <= 4 * (i + 1) for i, count in enumerate(before)) and len(before) == rounds
    assert 8 <= order[: order.index("once")].count("often") <= 12  # in the middle round


def test_a_batch_beyond_its_time_is_left_out(models: list[str], caplog) -> None:
    found = bench_models.bench_models([models[0]], batch_size=64, precisions=["fp32"], seconds=1e-3)
    assert {run["batch_size"] for run in found["models"][0]["runs"]} == {1}
    assert "eager, fp32: 64 images would take" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mobile_san"], "unknown student 'mobile_san'. Did you mean 'mobile_sam'"),
        (["mobile_sam", "--teacher", "none.safetensors"], "none.safetensors: no such file"),
        (["edge_sam", "--json", "no/models.json"], "no such directory: no; make it first"),
        (["edge_sam", "--device", "gpu"], "--device gpu: "),
        (["edge_sam", "--batch-size", "0"], "'0' is not a whole number above 0"),
        (["edge_sam", "--seconds", "0"], "'0' is not a number above 0"),
    ],
)
def test_mistakes(tmp_path: Path, monkeypatch, capsys, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "models", *arguments]) == 2
    assert message in capsys.readouterr().err
