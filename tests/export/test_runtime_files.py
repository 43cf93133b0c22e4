"""A torch model in another runtime: its files are exported once, and the record says what ran them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from distill.cli.main import main
from distill.export.onnx import export_onnx
from distill.export.runtime_files import cache_folder, with_files
from distill.models.checkpoint import load_model, save_model
from distill.models.sam import ModelSpec, build_from_spec
from distill.runtimes.execution import Execution
from distill.runtimes.exported import is_exported
from tests.fixtures.comparison import write_set

SPEC = ModelSpec("efficientvit_sam_t", 64, embedding_dim=32, embedding_size=8, decoder_mlp_dim=64, norm_eps=1e-6)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_set(tmp_path, 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_model(build_from_spec(SPEC), tmp_path / "model.safetensors")
    return tmp_path


def evaluate(place: Path, model: Path | str, run: str, *options: str) -> int:
    data = [f"data.images={place / 'photos'}", f"data.annotations={place / 'set.json'}", f"run={place / run}"]
    return main(["evaluate", str(model), "eval/coco_box", *data, "--device", "cpu", *options])


def metrics(place: Path, run: str) -> dict[str, object]:
    return json.loads((place / run / "metrics.json").read_text())


def test_files_are_exported_once(place):
    model = str(place / "model.safetensors")
    assert with_files(model, Execution()).folder is None
    assert with_files("oracle", Execution("onnxruntime")).folder is None
    folder = with_files(model, Execution("onnxruntime")).folder
    assert folder is not None and is_exported(folder) and folder.parent == cache_folder()
    written = (folder / "encoder.onnx").stat().st_mtime_ns
    assert with_files(model, Execution("onnxruntime")).folder == folder
    assert (folder / "encoder.onnx").stat().st_mtime_ns == written
    assert [path.name for path in cache_folder().iterdir()] == [folder.name]


@pytest.mark.parametrize(("runtime", "precision"), [("onnxruntime", "fp32"), ("openvino", "fp32"), ("torch", "bf16")])
def test_an_evaluation_in_another_runtime(place, capsys, runtime, precision):
    """Expect torch's scores, a record of the runtime, and that the record does not go on in another one."""
    pytest.importorskip(runtime)
    model = place / "model.safetensors"
    assert evaluate(place, model, "plain") == 0
    assert evaluate(place, model, "other", "--runtime", runtime, "--precision", precision) == 0
    assert "runtime" not in metrics(place, "plain")
    assert metrics(place, "other")["runtime"] == f"{runtime} {precision}"
    assert metrics(place, "other")["weights_sha256"] == metrics(place, "plain")["weights_sha256"]
    near = 0.02 if precision == "bf16" else 1e-3
    assert metrics(place, "other")["miou"] == pytest.approx(metrics(place, "plain")["miou"], abs=near)
    (place / "other" / "metrics.json").unlink()
    capsys.readouterr()
    assert evaluate(place, model, "other", "resume=true") == 2
    assert f"runtime was {runtime} {precision} and is None" in capsys.readouterr().err


def test_an_exported_folder_stands_where_a_model_stands(place, capsys):
    export_onnx(load_model(place / "model.safetensors"), place / "onnx")
    assert evaluate(place, place / "onnx", "files") == 0
    assert metrics(place, "files")["runtime"] == "onnxruntime fp32"
    assert evaluate(place, place / "onnx", "torch", "--runtime", "torch") == 2
    assert "exported files do not run in torch" in capsys.readouterr().err
    data = ["--images", str(place / "photos"), "--annotations", str(place / "set.json"), "--device", "cpu"]
    sources = [f"weights={place / 'model.safetensors'}", f"files={place / 'onnx'}"]
    out = ["--protocols", "eval/coco_box", "--no-bench", "--out", str(place / "compared")]
    assert main(["compare", *sources, *data, *out]) == 0
    found = [metrics(place, f"compared/evaluations/{label}/coco_box") for label in ("weights", "files")]
    assert found[0]["miou"] == pytest.approx(found[1]["miou"], abs=1e-3)
    assert [row.get("runtime") for row in found] == [None, "onnxruntime fp32"]
