"""`distill shards`: image shards in SA-1B's layout, from photographs that you have."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from distill.cli.arguments import add_command, positive_int, share
from distill.data.shards.defaults import MAX_BAD_SHARE, SAMPLES_PER_SHARD
from distill.text import progress_bar, say

if TYPE_CHECKING:
    from distill.data.coco import CocoSet
    from distill.data.folder import PhotoFolder
    from distill.data.shards.build import BuildReport

EPILOG = """\
examples:
  distill shards build coco --images train2017 --annotations instances_train2017.json --out shards/train
  distill shards build folder --images photos --out shards/photos
  distill shards index sa1b              # tars from elsewhere, such as those of SA-1B
"""
COCO_EPILOG = """\
examples:
  distill shards build coco --images train2017 --annotations instances_train2017.json --out shards/train
  distill shards build coco --images val2017 --annotations instances_val2017.json --out shards/val --max-side 1024

Each sample is KEY.jpg (the photo's own bytes if it is upright and not too large) and KEY.json (masks as RLE, boxes,
one point for each mask).
"""
FOLDER_EPILOG = """\
example:
  distill shards build folder --images photos --out shards/photos --max-side 1024

These shards are for the feature stage, which needs no masks. All jpg, png and webp files in DIR and in the folders
below it are read.
"""
INDEX_EPILOG = """\
example:
  distill shards index /data/sa1b
  distill shards index s3://bucket/sa1b  # an address that fsspec reads: s3://, hf://, https://, ...

Training and caching read tars without index.json too, but then every process reads all headers when it starts. Only
the headers of remote tars are fetched. If index.json cannot be written beside them, it is kept in the user's cache
directory.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its actions."""
    parser = add_command(subparsers, "shards", "build image shards from photos, and index them", EPILOG)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    build = add_command(actions, "build", "write shards from a COCO-format set or a folder of photos", EPILOG)
    sources = build.add_subparsers(title="sources", metavar="SOURCE", required=True)
    coco = add_command(sources, "coco", "photos with instances in COCO's JSON format", COCO_EPILOG)
    coco.add_argument("--images", required=True, metavar="DIR", help="the photos")
    coco.add_argument("--annotations", required=True, metavar="FILE", help="the COCO-format instances JSON")
    _add_output(coco)
    coco.set_defaults(run=build_coco)
    folder = add_command(sources, "folder", "photos without annotations", FOLDER_EPILOG)
    folder.add_argument("--images", required=True, metavar="DIR", help="the photos, in folders of any depth")
    _add_output(folder)
    folder.set_defaults(run=build_folder)
    index = add_command(
        actions,
        "index",
        "read the headers of tars and write index.json, which says where each sample lies",
        INDEX_EPILOG,
    )
    index.add_argument(
        "directory", metavar="DIR", help="a directory or address of uncompressed tars: KEY.jpg and KEY.json"
    )
    index.set_defaults(run=index_shards)


def build_coco(arguments: argparse.Namespace) -> int:
    """Write shards from a COCO-format set."""
    from distill.data.coco import CocoSet
    from distill.data.shards.build import build_coco_shards

    return _build(build_coco_shards, CocoSet(arguments.images, arguments.annotations), arguments)


def build_folder(arguments: argparse.Namespace) -> int:
    """Write shards from a folder of photos."""
    from distill.data.folder import PhotoFolder
    from distill.data.shards.build import build_folder_shards

    return _build(build_folder_shards, PhotoFolder(arguments.images), arguments)


def index_shards(arguments: argparse.Namespace) -> int:
    """Read the headers of all tars and write index.json."""
    from distill.data.shards.index import ShardIndex

    index = ShardIndex.build(arguments.directory)
    path = index.save()
    masks = "" if index.has_annotations else ", without annotations"
    say(f"{arguments.directory}: {len(index):,} photos in {len(index.shards):,} shards{masks}; index: {path}")
    return 0


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help="where the shards go: a new or empty directory")
    parser.add_argument(
        "--samples-per-shard", type=positive_int, default=SAMPLES_PER_SHARD, metavar="N", help="default: %(default)s"
    )
    parser.add_argument("--max-side", type=positive_int, metavar="PIXELS", help="reduce larger photos and their masks")
    parser.add_argument(
        "--max-bad-share",
        type=share,
        default=MAX_BAD_SHARE,
        metavar="SHARE",
        help="photos that cannot be decoded are left out, and the build fails above this share (default: %(default)s)",
    )


def _build(build: Callable[..., BuildReport], photos: CocoSet | PhotoFolder, arguments: argparse.Namespace) -> int:
    """Write shards with a progress bar, and print what was written and left out."""
    with progress_bar("photos", len(photos)) as advance:
        report = build(
            photos,
            arguments.out,
            samples_per_shard=arguments.samples_per_shard,
            max_side=arguments.max_side,
            max_bad_share=arguments.max_bad_share,
            advance=advance,
        )
    say("\n".join(report.lines(arguments.out)))
    return 0
