from __future__ import annotations

from pathlib import Path

import pytest

from distill.comparison.models import default_label, read_models, split_label
from distill.errors import RunError
from distill.models.checkpoint import find_weights, sha256_file
from tests.fixtures.evaluations import some_ious, write_evaluation


def test_labels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("lr=1e-3").mkdir()
    assert split_label("ours=runs/a") == ("ours", "runs/a")
    assert split_label("lr=1e-3") == (None, "lr=1e-3")
    assert split_label("runs/lr=1e-3") == (None, "runs/lr=1e-3")


def test_the_packaged_teacher_is_meant_where_a_directory_is_called_like_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    (model,), notes = read_models(["quickstart"])
    assert model.source == "quickstart" and model.sha256 == sha256_file(find_weights("quickstart")) and not notes


def test_a_checkpoint_is_called_like_its_run(tmp_path, monkeypatch):
    assert default_label("runs/l0/checkpoints/best.ckpt") == "l0"
    assert default_label("runs/l0/student.safetensors") == default_label("runs/l0") == "l0"
    (tmp_path / "l1/checkpoints").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "l1/checkpoints")
    assert default_label("last.ckpt") == "l1"


def test_checkpoints_of_one_run_are_told_apart(tmp_path):
    folder = tmp_path / "l0/checkpoints"
    folder.mkdir(parents=True)
    for name in ("best", "last"):
        (folder / f"{name}.ckpt").write_bytes(name.encode())
    sources = [str(folder / "best.ckpt"), str(folder / "last.ckpt")]
    assert [model.label for model in read_models(sources)[0]] == ["l0/best", "l0/last"]
    assert [model.label for model in read_models([sources[0], f"mine={sources[1]}"])[0]] == ["l0", "mine"]
    assert [model.label for model in read_models([sources[0], f"l0={sources[1]}"])[0]] == ["l0/best", "l0"]


def test_one_model_has_one_label(tmp_path):
    box = write_evaluation(tmp_path / "box", some_ious(0.5), weights_sha256="a" * 64)
    click = {"protocol": "coco_point", "prompt": "point", "num_clicks": 1, "multimask": "best"}
    point = write_evaluation(tmp_path / "point", some_ious(0.6), weights_sha256="a" * 64, **click)
    with pytest.raises(RunError, match="'a' and 'b' have the same weights, and one model has one row"):
        read_models([f"a={box}", f"b={point}"])
    for sources in ([f"a={box}", f"a={point}"], [f"a={box}", str(point)], [str(box), f"a={point}"]):
        ((model,), _) = read_models(sources)
        assert model.label == "a" and len(model.evaluations) == 2
