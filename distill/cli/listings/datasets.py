"""`distill datasets`: the catalogue of public sets, and from their published files to image shards."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from distill.cli.arguments import add_command
from distill.text import print_tables, say

if TYPE_CHECKING:
    from distill.data.catalogue import Dataset, PublishedFile, Split

UNPUBLISHED = "unpublished"

EPILOG = """\
examples:
  distill datasets ls
  distill datasets show coco2017
  export DISTILL_DATASETS=/data                     # each set lies in a folder of its name: /data/coco2017, ...
  distill datasets prepare coco2017 --split val
  distill train my_recipe.yaml data.images=coco2017/train data.val_images=coco2017/val run=runs/coco
  distill evaluate MODEL eval/coco_box data.images=coco2017/val run=runs/box
"""
PREPARE_EPILOG = """\
examples:
  distill datasets prepare coco2017                 # both splits; the zips lie in /data/coco2017
  distill datasets prepare sa1b                     # the tars lie in /data/sa1b/shards/train; any part of them will do
  distill datasets prepare lvis_v1 --split val --verify

Nothing is downloaded: the command names each file that is missing or wrong, and where it is published. Zips are
unpacked where that was not done. Image shards are written to ROOT/NAME/shards/SPLIT, and finished splits are skipped.
Recipes then take NAME/SPLIT as data.images.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its actions."""
    parser = add_command(
        subparsers,
        "datasets",
        "list, show or prepare public sets",
        EPILOG,
        description="List the public sets that the package knows, show one, or prepare its image shards.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser("ls", help="a table of all sets")
    listing.add_argument("--json", action="store_true", help="print the whole catalogue as JSON")
    listing.set_defaults(run=list_sets)
    show = actions.add_parser("show", help="print one set: licence, files, splits, commands")
    show.add_argument("name", help="a set of `distill datasets ls`")
    show.set_defaults(run=show_set)
    prepare = add_command(actions, "prepare", "check a set's files, unpack them and build image shards", PREPARE_EPILOG)
    prepare.add_argument("name", help="a set of `distill datasets ls`")
    prepare.add_argument("--root", type=Path, metavar="DIR", help="the folder of all sets (default: $DISTILL_DATASETS)")
    prepare.add_argument("--split", nargs="+", default=[], metavar="SPLIT", help="default: all splits")
    prepare.add_argument(
        "--out", type=Path, metavar="DIR", help="write shards to DIR/SPLIT (default: ROOT/NAME/shards)"
    )
    prepare.add_argument("--verify", action="store_true", help="check the hashes of large files too")
    prepare.set_defaults(run=prepare_set)


def list_sets(arguments: argparse.Namespace) -> int:
    """Print the sets as a table, or as JSON."""
    from distill.data.catalogue import list_datasets

    datasets = list_datasets()
    if arguments.json:
        print(json.dumps([asdict(dataset) for dataset in datasets], indent=2))
        return 0
    from rich.table import Table

    table = Table("set", "splits", "photos", "masks", "licence", "what it is", box=None, pad_edge=False)
    for dataset in datasets:
        splits = list(dataset.splits.values())
        cells = (
            dataset.name,
            ", ".join(dataset.splits) if len(splits) < 4 else str(len(splits)),
            _total([split.num_photos for split in splits]),
            _total([split.num_masks for split in splits]),
            dataset.annotation_licence.name,
            dataset.summary,
        )
        table.add_row(*cells)
    print_tables(table)
    return 0


def show_set(arguments: argparse.Namespace) -> int:
    """Print one set."""
    from distill.data.catalogue import load_dataset

    say("\n".join(_lines(load_dataset(arguments.name))))
    return 0


def prepare_set(arguments: argparse.Namespace) -> int:
    """Prepare the splits of a set."""
    from distill.data.catalogue import LocatedSplit, load_dataset, require_root
    from distill.data.prepare import prepare_splits

    dataset = load_dataset(arguments.name, arguments.root)
    root = arguments.root or require_root()
    names = list(dict.fromkeys(arguments.split)) or list(dataset.splits)
    splits = [LocatedSplit(root, dataset, dataset.split(name)) for name in names]
    for prepared in prepare_splits(splits, out=arguments.out, verify=arguments.verify):
        lines = [f"{prepared.shards}: finished"] if prepared.report is None else prepared.report.lines(prepared.shards)
        say("\n".join(lines))
        images = prepared.located.name if arguments.out is None else prepared.shards
        say(f"use it with: data.images={images}")
    return 0


def _lines(dataset: Dataset) -> list[str]:
    """Return what there is to know about a set, for a terminal."""
    lines = [
        f"{dataset.name}: {dataset.title}",
        dataset.summary,
        f"homepage: {dataset.homepage}",
        "",
        f"licence of the photos: {dataset.photo_licence.name}",
        f"  {dataset.photo_licence.terms}",
        f"licence of the annotations: {dataset.annotation_licence.name}",
        f"  {dataset.annotation_licence.terms}",
        "",
        f"files, below ROOT/{dataset.name}:"
        if dataset.files
        else "files: none to download; the photos ship with the package",
    ]
    for file in dataset.files.values():
        lines += _file_lines(file)
    if dataset.photos_of is not None:
        lines.append(f"  and the photos of '{dataset.photos_of}': see distill datasets show {dataset.photos_of}")
    lines += ["", "splits:", *(_split_line(split) for split in dataset.splits.values()), "", "commands:"]
    first = next(iter(dataset.splits))
    lines += [f"  distill datasets prepare {dataset.name} --split {first}"]
    lines += [f"  distill train RECIPE data.images={dataset.name}/{first} ..."]
    if dataset.kind in ("coco", "lvis"):
        protocol = "eval/lvis_box" if dataset.kind == "lvis" else "eval/coco_box"
        lines += [f"  distill evaluate MODEL {protocol} data.images={dataset.name}/{list(dataset.splits)[-1]} run=OUT"]
    return lines


def _file_lines(file: PublishedFile) -> list[str]:
    size = UNPUBLISHED if file.size is None else f"{file.size:,} bytes"
    return [
        f"  {file.name}: {size}; md5 {file.md5 or UNPUBLISHED}; sha256 {file.sha256 or UNPUBLISHED}",
        *(f"    {address}" for address in (file.url, *file.mirrors)),
    ]


def _split_line(split: Split) -> str:
    counts = (("photos", split.num_photos), ("masks", split.num_masks))
    return f"  {split.name}: " + ", ".join(f"{what} {_count(number)}" for what, number in counts)


def _total(numbers: list[int | None]) -> str:
    """Return the sum of some counts, unless one of them is unpublished."""
    known = [number for number in numbers if number is not None]
    return f"{sum(known):,}" if len(known) == len(numbers) else UNPUBLISHED


def _count(number: int | None) -> str:
    return UNPUBLISHED if number is None else f"{number:,}"
