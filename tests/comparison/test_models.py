from __future__ import annotations

from pathlib import Path

from distill.comparison.models import read_models, split_label
from distill.models.checkpoint import find_weights, sha256_file


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
