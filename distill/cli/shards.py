"""`distill shards`: image shards in SA-1B's layout, from photographs that you have."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from distill.cli.arguments import add_command
from distill.text import NUM_NAMED, first_few

if TYPE_CHECKING:
    from distill.data.shards.build import BuildReport

SAMPLES_PER_SHARD = 1000
MAX_BAD_SHARE = 0.01

EPILOG = """\
examples:
  distill shards build coco --images train2017 --annotations instances_train2017.json --out shards/train
  distill shards build folder --images photos --out shards/photos
  distill shards index sa1b              # tars from elsewhere, SA-1B's own for one
"""
COCO_EPILOG = """\
examples:
  distill shards build coco --images train2017 --annotations instances_train2017.json --out shards/train
  distill shards build coco --images val2017 --annotations instances_val2017.json --out shards/val --max-side 1024

Each sample is KEY.jpg (the photo's own bytes where they will do) and KEY.json (masks as RLE, boxes, one point each).
"""
FOLDER_EPILOG = """\
example:
  distill shards build folder --images photos --out shards/photos --max-side 1024

For the feature stage, which needs no masks. Folders below DIR are read too; jpg, png and webp.
"""
INDEX_EPILOG = """\
example:
  distill shards index /data/sa1b
  distill shards index s3://bucket/sa1b  # an address that fsspec reads: s3://, hf://, https://, ...

Training and caching read tars without index.json too, but every process then reads all headers at its start. Of
remote tars only the headers are fetched; where index.json cannot be written there, it is kept in the user's cache
directory.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(subparsers, "shards", "build image shards from photos, and index them", EPILOG)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    build = add_command(actions, "build", "write shards from a COCO-format set or a folder of photos", EPILOG)
    sources = build.add_subparsers(title="sources", metavar="SOURCE", required=True)
    coco = add_command(sources, "coco", "photos with instances in COCO's JSON format", COCO_EPILOG)
    coco.add_argument("--images", required=True, metavar="DIR", help="the photos")
    coco.add_argument("--annotations", required=True, metavar="FILE", help="the COCO-format instances JSON")
    _add_output(coco)
    coco.set_defaults(run=build_coco)
    folder = add_command(sources, "folder", "photos alone", FOLDER_EPILOG)
    folder.add_argument("--images", required=True, metavar="DIR", help="the photos, in folders of any depth")
    _add_output(folder)
    folder.set_defaults(run=build_folder)
    index = add_command(
        actions, "index", "read the headers of tars and keep what lies where in index.json", INDEX_EPILOG
    )
    index.add_argument(
        "directory", metavar="DIR", help="a directory or address of uncompressed tars: KEY.jpg and KEY.json"
    )
    index.set_defaults(run=index_shards)


def build_coco(arguments: argparse.Namespace) -> int:
    """Write shards from a COCO-format set."""
    from distill.data.coco import CocoSet
    from distill.data.shards.build import build_coco_shards
    from distill.text import progress_bar

    coco_set = CocoSet(arguments.images, arguments.annotations)
    with progress_bar("photos", len(coco_set)) as advance:
        report = build_coco_shards(coco_set, arguments.out, advance=advance, **_options(arguments))
    _conclude(arguments.out, report)
    return 0


def build_folder(arguments: argparse.Namespace) -> int:
    """Write shards from a folder of photos."""
    from distill.data.folder import PhotoFolder
    from distill.data.shards.build import build_folder_shards
    from distill.text import progress_bar

    folder = PhotoFolder(arguments.images)
    with progress_bar("photos", len(folder)) as advance:
        report = build_folder_shards(folder, arguments.out, advance=advance, **_options(arguments))
    _conclude(arguments.out, report)
    return 0


def index_shards(arguments: argparse.Namespace) -> int:
    """Write index.json anew."""
    from distill.data.shards.index import ShardIndex

    index = ShardIndex.build(arguments.directory)
    path = index.save()
    masks = "" if index.has_annotations else ", without annotations"
    print(f"{arguments.directory}: {len(index):,} photos in {len(index.shards):,} shards{masks}; index: {path}")
    return 0


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help="where the shards go: a new or empty directory")
    parser.add_argument(
        "--samples-per-shard", type=_positive, default=SAMPLES_PER_SHARD, metavar="N", help="default: %(default)s"
    )
    parser.add_argument("--max-side", type=_positive, metavar="PIXELS", help="reduce larger photos and their masks")
    parser.add_argument(
        "--max-bad-share",
        type=_share,
        default=MAX_BAD_SHARE,
        metavar="SHARE",
        help="photos that cannot be decoded are left out, and the build fails above this share (default: %(default)s)",
    )


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in ("samples_per_shard", "max_side", "max_bad_share")}


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a share from 0 to 1")
    return share


def _conclude(directory: str, report: BuildReport) -> None:
    for reason in list(report.bad.values())[:NUM_NAMED]:
        print(f"skipped: {reason}")
    if len(report.bad) > NUM_NAMED:
        print(f"skipped: {len(report.bad) - NUM_NAMED} more photos that cannot be decoded")
    if report.empty:
        named = first_few([f"{identity} (photo '{key}')" for identity, key in report.empty.items()])
        print(f"skipped: {len(report.empty)} masks without a pixel: annotations {named}")
    if report.num_crowd:
        print(f"skipped: {report.num_crowd} crowd regions, which are no single objects")
    print(f"{directory}: {report.num_samples:,} photos with {report.num_instances:,} masks")
