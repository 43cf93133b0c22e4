"""`distill export`: write a model as files of another runtime, judged on photos before they are written."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from distill.cli.arguments import Subparsers, add_command, positive_int, share
from distill.errors import DistillError
from distill.text import say

if TYPE_CHECKING:
    import numpy as np

    from distill.export.judge import JudgeSet
    from distill.export.run import Request
    from distill.models.sam import PromptableModel

CALIBRATION_PHOTOS = 32  # of the folder, spread evenly over it

EPILOG = """\
examples:
  distill export runs/mask --out onnx
  distill export runs/mask --to openvino --precision bf16 --judge IMAGES ANNOTATIONS --out openvino
  distill export runs/mask --precision int8 --calibrate IMAGES --out int8
  distill export runs/mask --layout labelme --out labelme
  distill export runs/mask --to tensorrt --precision fp16 --out engine
  distill export mobile_sam.pt --name mobile_sam --out onnx

Writes encoder.onnx, decoder.onnx, model.json and report.json. The encoder has its batch norms and branches fused and
takes any batch size. The decoder takes any number of prompts of one photo at once: points and boxes as labelled points,
and earlier masks; it gives four low-res masks for each. Points of the label -2 do not exist: they fill shorter prompts.

Before a file is written it is run in its own runtime on annotated photos (--judge, or a handful that ships with the
package), for boxes and for clicks. The mean IoU of its masks with those of torch in float32 must be at least 0.999 for
fp32, 0.99 for fp16 and bf16, 0.98 for int8 (--least-iou). Files in a half format are judged a second time with every
step rounded as an engine on a GPU stores it. Otherwise nothing is written, and the layers to blame are named. --keep
leaves a layer in float32; --mend does so with those that are to blame.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add `distill export`."""
    parser = add_command(
        subparsers, "export", "files of a model for other runtimes", EPILOG, description="Export a model."
    )
    parser.add_argument("model", help="student.safetensors, a run directory, a .ckpt, 'quickstart', or a .pt/.pth")
    parser.add_argument("--name", help="which model a released .pt/.pth holds, as efficientvit_sam_l0")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the directory to write")
    targets = ("onnx", "openvino", "tensorrt")
    parser.add_argument("--to", choices=targets, default="onnx", help="the runtime (default: onnx)")
    layouts = ("distill", "segment-anything", "samexporter", "osam", "labelme", "x-anylabeling")
    parser.add_argument(
        "--layout", choices=layouts, default="distill", help="the program that loads the folder (default: distill)"
    )
    precisions = ("fp32", "fp16", "bf16", "int8")
    parser.add_argument("--precision", choices=precisions, default="fp32", help="number format (default: fp32)")
    parser.add_argument("--calibrate", type=Path, metavar="IMAGES", help="a folder of photos that int8 is fitted to")
    parser.add_argument(
        "--judge",
        nargs=2,
        type=Path,
        metavar=("IMAGES", "ANNOTATIONS"),
        help="photos and COCO-format annotations that judge the files (default: a packaged handful)",
    )
    parser.add_argument("--judge-photos", type=positive_int, default=10, metavar="N", help="how many (default: 10)")
    parser.add_argument("--least-iou", type=share, metavar="IOU", help="the least mean mask IoU with torch")
    parser.add_argument("--keep", action="append", default=[], metavar="LAYER", help="a layer that stays in float32")
    parser.add_argument("--mend", action="store_true", help="keep the layers to blame in float32, and try again")
    parser.add_argument("--masks", choices=("all", "single"), default="all", help="four masks or one (default: all)")
    parser.add_argument("--photo-size", action="store_true", help="masks of the photo's own size too (orig_im_size)")
    for axis, what in (("batch", "photos"), ("prompts", "prompts"), ("points", "points of a prompt")):
        parser.add_argument(
            f"--{axis}", type=positive_int, metavar="N", help=f"{what} of every call (default: any number)"
        )
    parser.add_argument("--opset", type=positive_int, metavar="N", help="version of ONNX's operators (default: 17)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Judge and write the files, and print how well their masks agree with torch's."""
    from distill.export.judge import Judge
    from distill.export.run import export_model
    from distill.export.targets import check_calibration, check_target
    from distill.models.checkpoint import load_model

    if arguments.layout != "distill" and arguments.to != "onnx":
        raise DistillError(f"--layout {arguments.layout} takes ONNX files; leave --to {arguments.to} out")
    check_target(arguments.to)
    model = load_model(arguments.model, name=arguments.name)
    request = _request(arguments, model)
    if arguments.precision == "int8":
        check_calibration(request.calibration)
    judge = Judge(model, _judge_sets(arguments), num_photos=arguments.judge_photos)
    report = export_model(model, arguments.out, request, judge, say=say)
    say("\n".join(report.lines()))
    return 0


def _request(arguments: argparse.Namespace, model: PromptableModel) -> Request:
    from distill.export.decoder import DecoderForm
    from distill.export.onnx import Shapes
    from distill.export.run import Request
    from distill.export.trace import OPSET

    calibration = []
    if arguments.precision == "int8":
        if arguments.calibrate is None:
            raise DistillError("--precision int8 needs photos to fit to: --calibrate IMAGES")
        calibration = _calibration(arguments.calibrate, model)
    return Request(
        target=arguments.to,
        precision=arguments.precision,
        opset=arguments.opset or OPSET,
        form=DecoderForm(arguments.masks, photo_size=arguments.photo_size),
        shapes=Shapes(arguments.batch, arguments.prompts, arguments.points),
        keep=tuple(arguments.keep),
        mend=arguments.mend,
        least_iou=arguments.least_iou,
        calibration=calibration,
        layout=arguments.layout,
    )


def _calibration(folder: Path, model: PromptableModel) -> list[np.ndarray]:
    """Return inputs of the encoder, (1, 3, S, S) each."""
    from distill.data.folder import PhotoFolder
    from distill.data.images import decode_image, read_photo
    from distill.geometry import letterbox

    paths = [photo.path for photo in PhotoFolder(folder)]
    num = min(len(paths), CALIBRATION_PHOTOS)
    chosen = [paths[i * len(paths) // num] for i in range(num)]
    photos = (decode_image(read_photo(path), str(path)) for path in chosen)
    return [letterbox(photo, model.image_size)[None].numpy() for photo in photos]


def _judge_sets(arguments: argparse.Namespace) -> list[JudgeSet]:
    from distill.export.judge import JudgeSet
    from distill.quickstart.photographs import gallery, packaged

    if arguments.judge:
        return [JudgeSet(*arguments.judge)]
    return [JudgeSet(data.images, data.annotations) for data in (packaged("val"), gallery())]
