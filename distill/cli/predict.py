"""`distill predict`: ask a model about one photo."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill.cli.arguments import add_command
from distill.errors import DataError, DistillError

if TYPE_CHECKING:
    import numpy as np

MASK_COLOUR, MASK_OPACITY = (30, 144, 255), 0.55
POSITIVE_COLOUR, NEGATIVE_COLOUR, BOX_COLOUR = (50, 205, 50), (220, 20, 60), (255, 200, 0)
MARK_SHARE = 0.006  # half the size of a mark on the overlay, as a share of the photo's longest side

EPILOG = """\
examples:
  distill predict quickstart photo.jpg --box 120 80 420 330
  distill predict runs/mask photo.jpg --point 300 200 --point 150 350 --label 1 0 --multimask --out answers
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        subparsers,
        "predict",
        "ask a model about one photo",
        EPILOG,
        description="Segment one object of a photo; write its masks and an overlay picture.",
    )
    parser.add_argument("model", help="student.safetensors, a run directory, 'quickstart', or a released .pt/.pth")
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


def run(args: argparse.Namespace) -> int:
    """Write OUT/PHOTO_overlay.png (the best mask by predicted IoU) and OUT/PHOTO_mask_K.png, white on black."""
    from PIL import Image

    from distill.data.images import decode_image
    from distill.models.checkpoint import load_model
    from distill.models.predictor import Predictor

    labels = _labels(args)
    if not args.photo.is_file():
        raise DataError(f"{args.photo}: no such file")
    photo = decode_image(args.photo.read_bytes(), str(args.photo))
    _check_inside(args, photo.shape[1], photo.shape[0])

    predictor = Predictor(load_model(args.model, name=args.name))
    predictor.set_image(photo)
    masks, iou_predictions, _ = predictor.predict(
        point_coords=args.point or None,
        point_labels=labels or None,
        box=args.box,
        multimask_output=args.multimask,
    )

    args.out.mkdir(parents=True, exist_ok=True)
    for k, (mask, iou) in enumerate(zip(masks, iou_predictions, strict=True)):
        path = args.out / f"{args.photo.stem}_mask_{k}.png"
        Image.fromarray(mask).save(path)
        print(f"{path}  predicted IoU {iou:.3f}, {100 * mask.mean():.1f} % of the photo")
    path = args.out / f"{args.photo.stem}_overlay.png"
    best = masks[iou_predictions.argmax()]
    Image.fromarray(draw_overlay(photo, best, box=args.box, points=args.point, labels=labels)).save(path)
    print(path)
    return 0


def _labels(args: argparse.Namespace) -> list[int]:
    if not args.point and args.box is None:
        raise DistillError("nothing to predict: give --box X0 Y0 X1 Y1 or --point X Y")
    labels: list[int] = args.label or [1] * len(args.point)
    if len(labels) != len(args.point):
        raise DistillError(f"--label has {len(labels)} values for {len(args.point)} points: give one for each --point")
    return labels


def _check_inside(args: argparse.Namespace, width: int, height: int) -> None:
    size = f"the photo, which is {width} pixels wide and {height} high"
    for x, y in args.point:
        if not (0 <= x <= width and 0 <= y <= height):
            raise DistillError(f"--point {x:g} {y:g} lies outside {size}")
    if args.box is not None:
        x0, y0, x1, y1 = args.box
        if not (x0 < x1 and y0 < y1):
            raise DistillError(f"--box {x0:g} {y0:g} {x1:g} {y1:g} is empty: give left, top, right, bottom")
        if not (x0 < width and y0 < height and x1 > 0 and y1 > 0):
            raise DistillError(f"--box {x0:g} {y0:g} {x1:g} {y1:g} lies outside {size}")


def draw_overlay(
    photo: np.ndarray,
    mask: np.ndarray,
    *,
    box: Sequence[float] | None = None,
    points: Sequence[Sequence[float]] = (),
    labels: Sequence[int] = (),
) -> np.ndarray:
    """A photo, uint8 (H, W, 3), with a mask, bool (H, W), tinted and its prompt drawn; coordinates in its pixels."""
    import numpy as np
    from PIL import Image, ImageDraw

    picture = photo.astype(np.float32)
    picture[mask] += MASK_OPACITY * (np.array(MASK_COLOUR, np.float32) - picture[mask])
    image = Image.fromarray(picture.round().astype(np.uint8))
    draw = ImageDraw.Draw(image)
    mark = max(2.0, MARK_SHARE * max(image.size))
    if box is not None:
        draw.rectangle(tuple(box), outline=BOX_COLOUR, width=round(mark))
    for (x, y), label in zip(points, labels, strict=True):
        colour = POSITIVE_COLOUR if label else NEGATIVE_COLOUR
        draw.ellipse((x - mark, y - mark, x + mark, y + mark), fill=colour, outline=(255, 255, 255))
    return np.asarray(image)
