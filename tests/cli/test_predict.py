"""`distill predict`: masks and an overlay, or one clear error."""

from __future__ import annotations

import argparse
import json
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


def test_several_boxes_are_several_objects_and_none_is_dropped(place: Path, tmp_path: Path, capsys):
    two = "--box 10 5 60 40 --point 30 20 --box 2 2 30 30 --point 12 12 --point 20 28 --label 1 1 0"
    boxes = two.split()
    assert run(place, place / "photo.png", *boxes, "--out", tmp_path, "--format", "png", "coco") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "photo_object_0_mask_0.png",
        "photo_object_1_mask_0.png",
        "photo_overlay.png",
        "predictions.json",
    ]
    assert capsys.readouterr().out.count("predicted IoU") == 2
    clicks = "--separate --point 9 9 --point 30 30"
    assert run(place, place / "photo.png", *clicks.split(), "--out", tmp_path) == 0
    assert capsys.readouterr().out.count("predicted IoU") == 2


def test_many_photos(place: Path, tmp_path: Path, capsys):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for name in "abc":
        (photos / f"{name}.png").write_bytes((place / "photo.png").read_bytes())
    rows = [{"photo": f"{name}.png", "box": [10, 5, 60, 40]} for name in "ab"]
    (tmp_path / "prompts.json").write_text(json.dumps(rows))
    command = (place, photos, "--prompts", tmp_path / "prompts.json", "--format", "yolo", "--out", out)
    assert run(*command) == 0
    said = capsys.readouterr()
    assert "2 objects of 2 photos" in said.out and "1 photos have no prompt" in said.err
    assert run(*command) == 0
    assert "2 objects of 2 photos, 2 of them finished before" in capsys.readouterr().out
    (photos / "b.png").write_bytes(b"no photo")
    assert run(*command) == 2
    assert "1 of 3 photos could not be predicted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("--point 1 1 --box 1 1 9 9 --box 2 2 9 9", "--point 1 1: with several boxes a click belongs to the --box bef"),
        ("--box 1 1 9 9 --everything", "--everything and --box: give one of them"),
        ("--prompts a.json --detections b.json", "--prompts and --detections: give one of them"),
        ("--separate --point 1 1 --box 1 1 9 9", "--separate is for clicks alone"),
        ("--mask m.png --box 1 1 9 9 --box 2 2 9 9", "--mask belongs to one object, and there are 2 boxes"),
        ("--box 1 1 9 9 --min-score 0.5", "--min-score is used with --detections alone"),
        ("--box 1 1 9 9 --points-per-side 5", "--points-per-side is used with --everything alone"),
        ("--everything --multimask", "--multimask is for prompts, and --everything has none"),
        ("--box 1 1 9 9 --label 1", "--label is used with --point alone"),
        ("--prompts absent.json", "absent.json: the prompts cannot be read"),
    ],
)
def test_what_does_not_go_together(place: Path, tmp_path: Path, prompt: str, message: str):
    with pytest.raises(DistillError, match=message):
        run(place, place / "photo.png", *prompt.split(), "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_precision(place: Path, tmp_path: Path):
    for precision in ("bf16", "fp16"):
        assert run(place, place / "photo.png", "--point", 9, 9, "--precision", precision, "--out", tmp_path) == 0


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
