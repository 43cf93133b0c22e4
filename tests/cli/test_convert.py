"""`distill convert` and `distill export` from the command line: the files they write, and one clear error each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill.cli.main import main
from distill.models.checkpoint import load_model, save_model
from distill.models.sam import build_model

NAME = "efficientvit_sam_t"


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("released") / "file.pt"
    torch.manual_seed(0)
    torch.save({"state_dict": build_model(NAME).state_dict()}, path)
    return path


def test_a_released_file_becomes_ours(released: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "student.safetensors"
    assert main(["convert", str(released), "--name", NAME, "--out", str(out)]) == 0
    assert f"{out}  {NAME}, " in capsys.readouterr().out
    ours, theirs = load_model(out).state_dict(), torch.load(released, weights_only=True)["state_dict"]
    assert list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_ours_becomes_the_published_one(tmp_path: Path) -> None:
    model = build_model("edge_sam")
    save_model(model, tmp_path / "student.safetensors")
    assert main(["convert", str(tmp_path), "--to", "published", "--out", str(tmp_path / "edge_sam.pth")]) == 0
    content = torch.load(tmp_path / "edge_sam.pth", weights_only=True)
    assert list(content) == list(model.state_dict())


def test_an_encoder_and_a_decoder(tmp_path: Path) -> None:
    model = build_model("nano_sam")
    torch.save({"model": model.image_encoder.state_dict(), "optimizer": {}, "epoch": 1}, tmp_path / "checkpoint.pth")
    torch.save(build_model("mobile_sam").state_dict(), tmp_path / "mobile_sam.pt")
    arguments = ["convert", str(tmp_path / "checkpoint.pth"), "--name", "nano_sam"]
    out = ["--out", str(tmp_path / "nano.safetensors")]
    assert main([*arguments, *out]) == 2
    assert main([*arguments, "--decoder", str(tmp_path / "mobile_sam.pt"), *out]) == 0
    assert load_model(tmp_path / "nano.safetensors").spec.encoder == "nano_sam"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "s.safetensors"], "give its name, as 'efficientvit_sam_l0'"),
        (["--name", "efficientvit_sam_l0", "--out", "s.safetensors"], "the tensors do not fit"),
        (["--name", "efficientvit_sam_10", "--out", "s.safetensors"], "Did you mean 'efficientvit_sam_"),
        (["--name", NAME, "--out", "student.pt"], "this format's files end in .safetensors"),
        (["--name", NAME, "--to", "published", "--out", "s.pt"], "was published by no other project"),
        (["--name", NAME, "--to", "published", "--out", "s.safetensors"], "files end in .pt or .pth"),
        (["--name", NAME, "--decoder", "quickstart", "--out", "s.safetensors"], "leave quickstart out"),
        (["--name", NAME, "--out", "no/s.safetensors"], "cannot be written"),
    ],
)
def test_mistakes(released: Path, tmp_path: Path, monkeypatch, capsys, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(released), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
