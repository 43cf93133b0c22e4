"""`distill predict`: prompt a model about photos."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.cli.arguments import Subparsers, add_command, at_least, positive_int, share
from distill.errors import DistillError
from distill.text import progress_bar, say, say_error

if TYPE_CHECKING:
    from distill.models.predictor import Promptable
    from distill.prediction.asking import Asked, ObjectPrompt
    from distill.prediction.photos import NamedPhoto
    from distill.prediction.run import Options, Predicted

EPILOG = """\
examples:
  distill predict quickstart photo.jpg --box 120 80 420 330
  distill predict runs/mask photo.jpg --point 300 200 --point 150 350 --label 1 0 --multimask --out answers
  distill predict runs/mask photo.jpg --box 10 10 90 80 --box 200 40 310 160 --point 250 90
  distill predict runs/mask photo.jpg --box 120 80 420 330 --mask answers/photo_mask_0.png
  distill predict runs/mask photos 'more/*.png' --prompts prompts.json --format coco yolo --out answers
  distill predict runs/mask val2017 --detections yolo.json --min-score 0.3 --format coco --out answers
  distill predict runs/mask aerial.png --everything --tile 1024 --format polygons

A click belongs to the --box before it; with one --box all clicks do. Several clicks without a box are one object, or
with --separate one each. A prompts JSON is a list of {"photo": "a.jpg", "box": [x0, y0, x1, y1], "points": [[x, y]],
"labels": [1], "mask": "earlier.png", "category_id": 1}; each may lack all but the photo and one prompt.

--out gets PHOTO_mask_K.png (of several objects PHOTO_object_I_mask_K.png) and PHOTO_overlay.png; predictions.json,
polygons.json and labels/ for the other formats. With several photos, predictions.jsonl records what is finished: the
same command goes on after a stop, and does again what has changed.
"""
FORMATS = ("png", "coco", "polygons", "yolo")


class _Prompted(argparse.Action):
    """Keeps boxes and clicks in the order in which they stand."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        namespace.prompted = [*(getattr(namespace, "prompted", None) or []), (self.dest, tuple(values))]


def add_parser(subparsers: Subparsers) -> None:
    """Add `distill predict`."""
    parser = add_command(
        subparsers,
        "predict",
        "ask a model about photos",
        EPILOG,
        description="Segment objects of photos: masks, overlay pictures, annotations in other tools' formats.",
    )
    parser.add_argument(
        "model",
        help="student.safetensors, a run directory, a .ckpt, 'quickstart', a .pt/.pth, or "
        "a folder that `distill export` wrote",
    )
    parser.add_argument("photo", nargs="+", help="JPEG, PNG or WebP; a folder of them; or a pattern such as 'a/*.jpg'")
    asked = parser.add_argument_group("what is asked: boxes and clicks, or one of the others")
    asked.add_argument(
        "--box", nargs=4, type=float, action=_Prompted, metavar=("X0", "Y0", "X1", "Y1"), help="in the photo's pixels"
    )
    asked.add_argument("--point", nargs=2, type=float, action=_Prompted, metavar=("X", "Y"), help="may be repeated")
    asked.add_argument(
        "--label", nargs="+", type=int, choices=(0, 1), metavar="0|1", help="one for each point: 1 on the object, 0 off"
    )
    asked.add_argument("--separate", action="store_true", help="each --point is an object of its own")
    asked.add_argument("--mask", type=Path, metavar="PNG", help="an earlier mask of the object, white on black")
    asked.add_argument("--prompts", type=Path, metavar="JSON", help="objects of many photos")
    asked.add_argument("--detections", type=Path, metavar="JSON", help="a detector's boxes as COCO results")
    asked.add_argument("--image-ids", type=Path, metavar="JSON", help="COCO annotations: which photo an image id is")
    asked.add_argument("--min-score", type=float, default=0.0, metavar="S", help="leave out boxes below (default: 0)")
    asked.add_argument("--everything", action="store_true", help="all masks that a grid of points finds")
    asked.add_argument("--points-per-side", type=positive_int, metavar="N", help="of that grid (default: 32)")
    asked.add_argument("--min-iou", type=share, metavar="S", help="least predicted IoU of its masks (default: 0.88)")
    asked.add_argument("--min-stability", type=share, metavar="S", help="their least stability (default: 0.95)")
    parser.add_argument("--multimask", action="store_true", help="three masks, for prompts with more than one answer")
    parser.add_argument(
        "--tile", type=at_least(64), default=0, metavar="PIXELS", help="look at parts of large photos, of this side"
    )
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=["png"], help="what is written (default: png)")
    parser.add_argument("--name", help="which model a released .pt/.pth holds, as efficientvit_sam_l0")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps ...; the default is a GPU if there is one")
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16"), default="fp32", help="of the model's weights")
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="directory (default: predictions)")
    parser.set_defaults(run=run, prompted=[])


def run(arguments: argparse.Namespace) -> int:
    """Write the masks of all photos. Return 2 when some of several photos could not be predicted."""
    _check_sources(arguments)
    objects = [] if _source(arguments) else _objects(arguments)

    from distill.prediction.photos import find_photos
    from distill.prediction.run import predict_photos

    photos = find_photos(arguments.photo)
    asked = _asked(arguments, objects, photos)
    for note in asked.notes:
        say_error(note)
    with progress_bar("photos", len(photos), shown=len(photos) > 1) as advance:
        result = predict_photos(
            lambda: _load(arguments),
            photos,
            asked,
            arguments.out,
            _options(arguments),
            model_key=_model_key(arguments) if len(photos) > 1 else "",
            advance=advance,
        )
    _report(result, arguments.out, num_photos=len(photos))
    return 2 if result.failed else 0


def _source(arguments: argparse.Namespace) -> str:
    """Return the option that says what is asked, or "" for boxes and clicks."""
    given = [name for name in ("prompts", "detections", "everything") if getattr(arguments, name)]
    return given[0] if given else ""


def _check_sources(arguments: argparse.Namespace) -> None:
    sources = [f"--{name}" for name in ("prompts", "detections", "everything") if getattr(arguments, name)]
    sources += sorted({f"--{kind}" for kind, _ in arguments.prompted})
    sources += ["--mask"] if arguments.mask else []
    by_hand = {"--box", "--point", "--mask"}
    if len(sources) > 1 and not set(sources) <= by_hand:
        raise DistillError(f"{' and '.join(sources)}: give one of them; a prompts JSON holds boxes, points and masks")
    for option, needed in (
        ("image_ids", "detections"),
        ("min_score", "detections"),
        ("points_per_side", "everything"),
        ("min_iou", "everything"),
        ("min_stability", "everything"),
    ):
        if getattr(arguments, option) not in (None, 0.0) and not getattr(arguments, needed):
            raise DistillError(f"--{option.replace('_', '-')} is used with --{needed} alone; leave it out")
    if arguments.everything and arguments.multimask:
        raise DistillError("--multimask is for prompts, and --everything has none; leave it out")
    for option in ("label", "separate"):
        if getattr(arguments, option) and not any(kind == "point" for kind, _ in arguments.prompted):
            raise DistillError(f"--{option} is used with --point alone; leave it out")


def _objects(
    arguments: argparse.Namespace,
) -> list[tuple[tuple[float, ...] | None, list[tuple[float, ...]], list[int]]]:
    """Return box, points and labels of each object that the command line names."""
    boxes = [values for kind, values in arguments.prompted if kind == "box"]
    points = [values for kind, values in arguments.prompted if kind == "point"]
    if not boxes and not points and arguments.mask is None:
        raise DistillError("nothing to predict: give --box X0 Y0 X1 Y1 or --point X Y")
    labels: list[int] = arguments.label or [1] * len(points)
    if len(labels) != len(points):
        raise DistillError(f"--label has {len(labels)} values for {len(points)} points: give one for each --point")
    if arguments.separate:
        if boxes or arguments.mask:
            raise DistillError("--separate is for clicks alone: a click belongs to the --box before it; leave it out")
        return [(None, [point], [label]) for point, label in zip(points, labels, strict=True)]
    if arguments.mask is not None and len(boxes) > 1:
        raise DistillError(f"--mask belongs to one object, and there are {len(boxes)} boxes: use --prompts for several")
    if len(boxes) <= 1:
        return [(boxes[0] if boxes else None, points, labels)]
    return _grouped(arguments.prompted, labels)


def _grouped(
    prompted: Sequence[tuple[str, tuple[float, ...]]], labels: Sequence[int]
) -> list[tuple[tuple[float, ...] | None, list[tuple[float, ...]], list[int]]]:
    """Give each click to the box before it."""
    found: list[tuple[tuple[float, ...] | None, list[tuple[float, ...]], list[int]]] = []
    remaining = iter(labels)
    for kind, values in prompted:
        if kind == "box":
            found.append((values, [], []))
        elif not found:
            x, y = values
            raise DistillError(f"--point {x:g} {y:g}: with several boxes a click belongs to the --box before it")
        else:
            found[-1][1].append(values)
            found[-1][2].append(next(remaining))
    return found


def _asked(arguments: argparse.Namespace, objects: Sequence[Any], photos: Sequence[NamedPhoto]) -> Asked:
    from distill.prediction.asking import Asked, ObjectPrompt, read_detector_boxes, read_prompts

    if arguments.prompts:
        return read_prompts(arguments.prompts, photos)
    if arguments.detections:
        ids, least = arguments.image_ids, arguments.min_score
        return read_detector_boxes(arguments.detections, photos, images=ids, min_score=least)
    prompts: list[ObjectPrompt] = [
        ObjectPrompt(box, tuple((x, y) for x, y in points), tuple(labels), arguments.mask)
        for box, points, labels in objects
    ]
    return Asked(everywhere=tuple(prompts))


def _options(arguments: argparse.Namespace) -> Options:
    from distill.prediction.answering import Everything
    from distill.prediction.run import Options

    everything = None
    if arguments.everything:
        given = {
            "points_per_side": arguments.points_per_side,
            "pred_iou_thresh": arguments.min_iou,
            "stability_score_thresh": arguments.min_stability,
        }
        everything = Everything(**{name: value for name, value in given.items() if value is not None})
    formats = tuple(name for name in FORMATS if name in arguments.format)
    return Options(arguments.multimask, int(arguments.tile), everything, formats)


def _model_key(arguments: argparse.Namespace) -> str:
    """Return what says which model answers: the hash of its file, and its precision."""
    from distill.runtimes.exported import hash_model

    return f"{hash_model(arguments.model)} {arguments.name or ''} {arguments.precision}"


def _load(arguments: argparse.Namespace) -> Promptable:
    import torch

    from distill.models.checkpoint import load_model
    from distill.models.devices import usable_device
    from distill.runtimes.exported import ExportedModel, is_exported

    if is_exported(arguments.model):
        return ExportedModel(Path(arguments.model), "onnxruntime")
    dtypes = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
    device = usable_device(arguments.device)
    return load_model(arguments.model, name=arguments.name, device=device, dtype=dtypes[arguments.precision])


def _report(result: Predicted, out: Path, *, num_photos: int) -> None:
    """Print each file of a single photo, or counts of several."""
    if num_photos == 1:
        for photo in result.photos:
            _report_photo(photo, out)
    else:
        num_objects = sum(len(photo.objects) for photo in result.photos)
        before = f", {result.num_before:,} of them finished before" if result.num_before else ""
        say(f"{out}: {num_objects:,} objects of {len(result.photos):,} photos{before}")
    if result.num_outside:
        say(f"{result.num_outside:,} boxes of the detector have no part of their photo and are left out")
    if result.num_empty:
        say(f"{result.num_empty:,} objects have a mask without a pixel and are left out of the annotations")
    for file in result.files:
        say(file)
    if result.failed:
        say_error(f"error: {len(result.failed):,} of {num_photos:,} photos could not be predicted")
        for reason in result.failed:
            say_error(f"  {reason}")


def _report_photo(photo: Any, out: Path) -> None:
    from distill.data.rle import rle_area

    masks = [
        (iou, rle_area(code) / (photo.height * photo.width))
        for one in photo.objects
        for code, iou in zip(one.masks, one.predicted_iou, strict=True)
    ]
    if not photo.files:
        say(f"{photo.file}: {len(photo.objects):,} objects")
    for file, (iou, area) in zip(photo.files, masks, strict=False):
        say(f"{out / file}  predicted IoU {iou:.3f}, {100 * area:.1f} % of the photo")
    for file in photo.files[len(masks) :]:
        say(out / file)
