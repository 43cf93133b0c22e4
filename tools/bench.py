"""`distill bench`: what loading and caching cost on this machine, beside what they are compared with."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from typing import Any

from distill.tools.arguments import add_command

EPILOG = """\
examples:
  distill bench loader
  distill bench loader --images shards/train --num-workers 8 --json
  distill bench cache --teacher sam_vit_h --checkpoint sam_vit_h_4b8939.pth --json
"""
LOADER_EPILOG = """\
examples:
  distill bench loader
  distill bench loader --images shards/train --num-workers 8 --json

First one training sample at 512 pixels from a 2000 x 1500 photo with 100 masks, 64 of them drawn: by our loader, and by
the published formulation, which decodes the masks at full resolution and resizes them; each in a process of its own,
on one core. Then the loader, with workers, beside a plain sequential read of the same tars.
"""
CACHE_EPILOG = """\
examples:
  distill bench cache
  distill bench cache --teacher sam_vit_h --checkpoint sam_vit_h_4b8939.pth --images shards/sa1b --json

Bytes and error of every codec and of what else was tried, on embeddings of the teacher; encoding and decoding on one
core, in maps of 256 x 64 x 64; and a training step from the cache beside one with the teacher online.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        subparsers,
        "bench",
        "measure loading and caching on this machine",
        EPILOG,
        description="Measure loading and caching on this machine.",
    )
    subjects = parser.add_subparsers(title="subjects", metavar="SUBJECT", required=True)
    loader = _add(subjects, "loader", "training samples a second, and what one costs", LOADER_EPILOG)
    loader.add_argument("--images", metavar="DIR", help="your own image shards; default: photos drawn for this")
    loader.add_argument("--num-photos", type=_positive, default=64, metavar="N", help="default: %(default)s")
    loader.add_argument("--num-workers", type=_positive, default=2, metavar="N", help="default: %(default)s")
    loader.add_argument("--batch-size", type=_positive, default=8, metavar="N", help="default: %(default)s")
    loader.set_defaults(run=run_loader)
    cache = _add(
        subjects, "cache", "codecs, and a step from the cache beside one with the teacher online", CACHE_EPILOG
    )
    cache.add_argument("--teacher", default="quickstart", metavar="NAME", help="default: %(default)s")
    cache.add_argument("--checkpoint", metavar="FILE", help="the released weights of a sam_vit_*")
    cache.add_argument("--student", default="efficientvit_sam_t", metavar="NAME", help="default: %(default)s")
    cache.add_argument(
        "--images", metavar="DIR", help="image shards; default: photographs that come with Python packages"
    )
    cache.add_argument("--num-photos", type=_positive, default=8, metavar="N", help="default: %(default)s")
    cache.set_defaults(run=run_cache)


def run_loader(arguments: argparse.Namespace) -> int:
    """Print what the loader does, as tables or JSON."""
    from distill.tools.bench_loader import bench_loader, tables

    found = bench_loader(
        arguments.images,
        num_photos=arguments.num_photos,
        num_workers=arguments.num_workers,
        batch_size=arguments.batch_size,
    )
    return _show(arguments, found, tables(found))


def run_cache(arguments: argparse.Namespace) -> int:
    """Print what codecs and the cache do, as tables or JSON."""
    from distill.config import TeacherConfig
    from distill.tools.bench_cache import bench_cache, tables

    found = bench_cache(
        TeacherConfig(arguments.teacher, arguments.checkpoint),
        student=arguments.student,
        images=arguments.images,
        num_photos=arguments.num_photos,
    )
    return _show(arguments, found, tables(found))


def _add(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, epilog: str
) -> argparse.ArgumentParser:
    parser = add_command(subparsers, name, summary, epilog)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _show(arguments: argparse.Namespace, found: dict[str, Any], shown: list[Any]) -> int:
    if arguments.json:
        print(json.dumps({"machine": _machine(), **found}, indent=1))
        return 0
    from rich.console import Console

    console = Console()
    for table in shown:
        console.print(table)
    return 0


def _machine() -> dict[str, Any]:
    import torch

    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)
