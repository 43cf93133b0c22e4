"""`distill predict`: masks and an overlay, or one clear error."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.cli import predict
from distill.errors import DistillError

PHOTO_HW = (48, 80)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model and a photo into a directory."""
    from distill.models.checkpoint import save_model
    from distill.models.sam import ModelSpec, build_from_spec

    directory = tmp_path_factory.mktemp("predict")
    spec = ModelSpec("efficientvit_sam_t", image_size=64, embedding_dim=32, embedding_size=8, decoder_mlp_dim=64)
    save_model(build_from_spec(spec), directory / "student.safetensors")
    pixels = np.random.RandomState(0).randint(0, 256, (*PHOTO_HW, 3), np.uint8)
    Image.fromarray(pixels).save(directory / "photo.png")
    return directory


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    predict.add_parser(parser.add_subparsers())
    args = parser.parse_args(["predict", *map(str, arguments)])
    return args.run(args)


@pytest.mark.parametrize(
    ("prompt", "num_masks"),
    [
        ("--box 10 5 60 40", 1),
        ("--point 40 20 --multimask", 3),
        ("--point 40 20 --point 5 5 --label 1 0", 1),
        ("--box -3 5 90 40 --point 40 20", 1),
    ],
)
def test_masks_and_overlay(place: Path, tmp_path: Path, capsys, prompt: str, num_masks: int):
    assert run(place, place / "photo.png", *prompt.split(), "--out", tmp_path / "new" / "out") == 0
    names = [f"photo_mask_{k}.png" for k in range(num_masks)] + ["photo_overlay.png"]
    out = tmp_path / "new" / "out"
    assert sorted(path.name for path in out.iterdir()) == names
    printed = capsys.readouterr().out
    for name in names:
        assert str(out / name) in printed
        assert Image.open(out / name).size == PHOTO_HW[::-1]
    assert printed.count("predicted IoU") == num_masks
    assert set(np.unique(np.asarray(Image.open(out / names[0]).convert("L")))) <= {0, 255}


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "nothing to predict: give --box X0 Y0 X1 Y1 or --point X Y"),
        ("--point 1 2 --label 1 0", "--label has 2 values for 1 points"),
        ("--point 81 20", "--point 81 20 lies outside the photo, which is 80 pixels wide and 48 high"),
        ("--box 60 5 10 40", "--box 60 5 10 40 is empty"),
        ("--box 90 5 100 40", "--box 90 5 100 40 lies outside"),
    ],
)
def test_bad_prompt(place: Path, tmp_path: Path, prompt: str, message: str):
    with pytest.raises(DistillError, match=message):
        run(place, place / "photo.png", *prompt.split(), "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_files(place: Path, tmp_path: Path):
    with pytest.raises(DistillError, match="absent.png: the photo cannot be read"):
        run(place, tmp_path / "absent.png", "--point", 1, 1)
    (tmp_path / "text.png").write_text("no photo")
    with pytest.raises(DistillError, match="text.png: cannot be decoded"):
        run(place, tmp_path / "text.png", "--point", 1, 1)
    with pytest.raises(DistillError, match="absent: no such file"):
        run(tmp_path / "absent", place / "photo.png", "--point", 1, 1)


def test_the_parser_loads_no_torch():
    code = "import sys, distill.cli.predict; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
