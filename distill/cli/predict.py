"""`distill predict`: prompt a model about one photo."""

from __future__ import annotations

import argparse
from pathlib import Path

from distill.cli.arguments import Subparsers, add_command
from distill.errors import DistillError
from distill.text import say

EPILOG = """\
examples:
  distill predict quickstart photo.jpg --box 120 80 420 330
  distill predict runs/mask photo.jpg --point 300 200 --point 150 350 --label 1 0 --multimask --out answers
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add `distill predict`."""
    parser = add_command(
        subparsers,
        "predict",
        "ask a model about one photo",
        EPILOG,
        description="Segment one object of a photo; write its masks and an overlay picture.",
    )
    parser.add_argument("model", help="student.safetensors, a run directory, a .ckpt, 'quickstart', or a .pt/.pth")
    parser.add_argument("photo", type=Path, help="JPEG, PNG or WebP")
    parser.add_argument("--box", nargs=4, type=float, metavar=("X0", "Y0", "X1", "Y1"), help="in the photo's pixels")
    parser.add_argument(
        "--point", nargs=2, type=float, action="append", default=[], metavar=("X", "Y"), help="may be repeated"
    )
    parser.add_argument(
        "--label", nargs="+", type=int, choices=(0, 1), metavar="0|1", help="one for each point: 1 on the object, 0 off"
    )
    parser.add_argument("--multimask", action="store_true", help="three masks, for prompts with more than one answer")
    parser.add_argument("--name", help="which model a released .pt/.pth holds, as efficientvit_sam_l0")
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="directory (default: predictions)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write OUT/PHOTO_mask_K.png, white on black, and OUT/PHOTO_overlay.png with the best mask by predicted IoU."""
    from distill.data.images import decode_image, read_photo
    from distill.export.prediction import write_prediction
    from distill.models.checkpoint import load_model

    labels = _labels(arguments)
    photo = decode_image(read_photo(arguments.photo), str(arguments.photo))
    _check_inside(arguments, photo.shape[1], photo.shape[0])
    prediction = write_prediction(
        load_model(arguments.model, name=arguments.name),
        photo,
        arguments.out,
        name=arguments.photo.stem,
        points_xy=arguments.point,
        point_labels=labels,
        box_xyxy=arguments.box,
        multimask=arguments.multimask,
    )
    for mask in prediction.masks:
        say(f"{mask.path}  predicted IoU {mask.predicted_iou:.3f}, {100 * mask.area_share:.1f} % of the photo")
    say(prediction.overlay)
    return 0


def _labels(arguments: argparse.Namespace) -> list[int]:
    num_points = len(arguments.point)
    if not num_points and arguments.box is None:
        raise DistillError("nothing to predict: give --box X0 Y0 X1 Y1 or --point X Y")
    labels: list[int] = arguments.label or [1] * num_points
    if len(labels) != num_points:
        raise DistillError(f"--label has {len(labels)} values for {num_points} points: give one for each --point")
    return labels


def _check_inside(arguments: argparse.Namespace, width: int, height: int) -> None:
    size = f"the photo, which is {width} pixels wide and {height} high"
    for x, y in arguments.point:
        if not (0 <= x <= width and 0 <= y <= height):
            raise DistillError(f"--point {x:g} {y:g} lies outside {size}")
    if arguments.box is not None:
        x0, y0, x1, y1 = arguments.box
        if not (x0 < x1 and y0 < y1):
            raise DistillError(f"--box {x0:g} {y0:g} {x1:g} {y1:g} is empty: give left, top, right, bottom")
        if not (x0 < width and y0 < height and x1 > 0 and y1 > 0):
            raise DistillError(f"--box {x0:g} {y0:g} {x1:g} {y1:g} lies outside {size}")
