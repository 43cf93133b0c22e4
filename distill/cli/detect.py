"""`distill detect`: boxes of a detector over photos, as the protocols for detectors' boxes take them."""

from __future__ import annotations

import argparse
from pathlib import Path

from distill.cli.arguments import Subparsers, add_command, positive_int, share
from distill.errors import DistillError
from distill.text import print_command, say

EPILOG = """\
examples:
  distill detect yolox_nano.onnx val2017 --annotations instances_val2017.json --out detections.json
  distill evaluate quickstart eval/coco_detections data.images=val2017 data.annotations=instances_val2017.json \\
      data.detections=detections.json run=runs/ap
  distill detect my_yolox.onnx photos --class-names names.txt --annotations mine.json --out detections.json
  distill detect yolox_s.onnx photos --out boxes.json --score 0.3   # without annotations: ids are the names of files

The detector is a graph in YOLOX's form, as tools/export_onnx.py of github.com/Megvii-BaseDetection/YOLOX writes it:
one input (batch, 3, height, width), and one output (batch, cells, 5 + classes). Sizes are read from the graph. A photo
is placed into the input's top left corner, boxes are found on grids of strides 8, 16 and 32, and of two boxes of one
class that overlap the better one stays. The results are in the photos' own pixels. A job that was stopped goes on when
the same command is given again.

With --annotations, the results have their image ids and category ids. A detector with as many classes as there are
categories has them in the order of their ids, as YOLOX trains; otherwise classes are found by their names: COCO's 80,
or those of --class-names. Boxes of further classes are left out, and counted.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add `distill detect`."""
    parser = add_command(
        subparsers,
        "detect",
        "write a detector's boxes over photos as COCO's results",
        EPILOG,
        description="Run a detector, an ONNX graph in YOLOX's form, over photos. Write its boxes as COCO's results.",
    )
    parser.add_argument("detector", metavar="DETECTOR", type=Path, help="an .onnx in YOLOX's form")
    parser.add_argument("images", metavar="IMAGES", help="a folder of photos, or SET/SPLIT of `distill datasets`")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the results, a JSON that is not there")
    parser.add_argument("--annotations", metavar="FILE", help="COCO-format, for the ids of photos and categories")
    parser.add_argument("--lvis", action="store_true", help="the annotations are in LVIS's format")
    parser.add_argument("--class-names", type=Path, metavar="FILE", help="the detector's classes, one name a line")
    parser.add_argument("--score", type=share, default=0.01, metavar="S", help="least score (default: 0.01, YOLOX's)")
    parser.add_argument(
        "--nms",
        type=share,
        default=0.65,
        metavar="IOU",
        help="most overlap of a class's boxes (default: 0.65, YOLOX's)",
    )
    parser.add_argument(
        "--most", type=positive_int, default=100, metavar="N", help="boxes of a photo (default: 100; LVIS counts 300)"
    )
    parser.add_argument("--max-images", type=positive_int, default=None, metavar="N", help="the first N photos alone")
    parser.add_argument(
        "--boxes",
        choices=("auto", "grid", "pixels"),
        default="auto",
        help="whether the graph gives offsets to its grids, or boxes in pixels of its input (default: auto, which "
        "looks for an exponential in the graph)",
    )
    parser.set_defaults(run=detect)


def detect(arguments: argparse.Namespace) -> int:
    """Detect, write the results, and print what to do with them."""
    if arguments.lvis and arguments.annotations is None:
        raise DistillError("--lvis says what --annotations FILE holds, which is missing")
    from distill.config.schema import EvaluateDataConfig
    from distill.data.folder import PhotoFolder
    from distill.evaluation.detect_photos import (
        categories_of_classes,
        detect_photos,
        photos_of_folder,
        photos_of_set,
        read_class_names,
    )
    from distill.evaluation.evaluator import open_set
    from distill.evaluation.yolox_detector import DetectorRules, YoloxDetector
    from distill.files import hash_file

    names = None if arguments.class_names is None else read_class_names(arguments.class_names)
    num = arguments.max_images or 0
    categories = None
    if arguments.annotations is None:
        folder = PhotoFolder(arguments.images)
        photos, data = photos_of_folder(folder, num), {"images": str(folder.images_dir.absolute())}
    else:
        of_annotations = EvaluateDataConfig(arguments.images, arguments.annotations)
        of_annotations.format = "lvis" if arguments.lvis else "coco"
        coco_set = open_set(of_annotations)
        photos, categories = photos_of_set(coco_set, num), coco_set.categories
        data = {"images": str(coco_set.images_dir.absolute()), "annotations": hash_file(coco_set.annotations_file)}
    detector = YoloxDetector(arguments.detector, boxes=arguments.boxes)
    category_of = categories_of_classes(detector.num_classes, categories, names)
    height, width = detector.input_hw
    rows = "boxes in its pixels" if detector.in_pixels else "offsets to its grids"
    say(f"{arguments.detector}: {detector.num_classes} classes, input of {height} x {width} pixels, {rows}")
    found = detect_photos(
        detector,
        photos,
        category_of,
        arguments.out,
        rules=DetectorRules(arguments.score, arguments.nms),
        most=arguments.most,
        data=data,
    )
    empty = f", {found.num_empty} of them without one" if found.num_empty else ""
    boxes = "1 box" if found.num_boxes == 1 else f"{found.num_boxes} boxes"
    say(f"{boxes} on {found.num_photos} photos{empty}, written to {arguments.out}")
    if found.num_unnamed:
        say(f"{found.num_unnamed} boxes of classes that the annotations do not have are left out")
    if arguments.annotations is not None and found.num_boxes:
        recipe = "eval/lvis_detections" if arguments.lvis else "eval/coco_detections"
        options = [f"data.images={arguments.images}", f"data.annotations={arguments.annotations}"]
        print_command("evaluate", "MODEL", recipe, *options, f"data.detections={arguments.out}", "run=OUT")
    return 0
