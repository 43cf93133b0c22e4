"""`distill bench`: what models, loading, caching and training cost here, beside what they are compared with."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from distill.cli.arguments import add_command, positive_float, positive_int
from distill.errors import DistillError
from distill.models.devices import usable_device

EPILOG = """\
examples:
  distill bench models mobile_sam efficientvit_sam_l0 --teacher sam_vit_h --json models.json
  distill bench loader
  distill bench loader --images shards/train --num-workers 8 --json
  distill bench cache --teacher sam_vit_h --checkpoint sam_vit_h_4b8939.pth --json
  distill bench mask-step --images 2 --masks 64 --json
  distill bench evaluate
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
MASK_STEP_EPILOG = """\
examples:
  distill bench mask-step
  distill bench mask-step --images 2 --masks 64 --json                # the published trainer's: some 18 GB and minutes
  distill bench mask-step --student quickstart --prompts-per-chunk 0 --no-checkpointing

Forward and backward of the mask stage on the same weights, photos, masks and prompts: by our decoder, with masks
compared at low resolution; and by the published formulation, with segment-anything's decoder image by image, logits
enlarged to the input size, points sampled there, and each candidate by itself. Each in a process of its own, in turns.
"""
EVALUATE_EPILOG = """\
examples:
  distill bench evaluate
  distill bench evaluate --student runs/l0_mask --prompts 10 --workers 1 --json

Seconds a photo of an evaluation by boxes: the encoder alone, the model alone, and the whole with photos read, masks
laid out at full resolution, compared and coded. The three take turns in one process; the numbers are medians.
"""
MODELS_EPILOG = """\
examples:
  distill bench models mobile_sam edge_sam efficientvit_sam_l0 --teacher sam_vit_h
  distill bench models runs/a runs/b timm/resnet18 --batch-size 16 --device cuda --json models.json --picture models.png
  OMP_NUM_THREADS=2 distill bench models edge_sam --precision fp32 --seconds 30

Image encoders: parameters, multiply-adds (attention products included), latency and throughput at batch 1 and N, peak
memory; as they are and fused; fp32 and bf16 by autocast. All take turns in one process, so that a machine that slows
down slows all alike; the numbers are medians. A name stands for random weights: speed does not depend on them.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        subparsers,
        "bench",
        "measure models, loading, caching and training on this machine",
        EPILOG,
        description="Measure models, loading, caching and training on this machine.",
    )
    subjects = parser.add_subparsers(title="subjects", metavar="SUBJECT", required=True)
    _add_models(subjects)
    loader = _add(subjects, "loader", "training samples a second, and what one costs", LOADER_EPILOG)
    loader.add_argument("--images", metavar="DIR", help="your own image shards; default: photos drawn for this")
    loader.add_argument("--num-photos", type=positive_int, default=64, metavar="N", help="default: %(default)s")
    loader.add_argument("--num-workers", type=positive_int, default=2, metavar="N", help="default: %(default)s")
    loader.add_argument("--batch-size", type=positive_int, default=8, metavar="N", help="default: %(default)s")
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
    cache.add_argument("--num-photos", type=positive_int, default=8, metavar="N", help="default: %(default)s")
    cache.set_defaults(run=run_cache)
    _add_mask_step(subjects)
    _add_evaluate(subjects)


def _add_evaluate(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _add(subparsers, "evaluate", "an evaluation, and its encoder's share of it", EVALUATE_EPILOG)
    parser.add_argument(
        "--student", default="efficientvit_sam_l0", metavar="NAME|PATH", help="a name stands for random weights"
    )
    parser.add_argument("--photos", type=positive_int, default=16, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--prompts", type=positive_int, default=10, metavar="N", help="of a photo (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes beside (default: %(default)s)")
    parser.add_argument("--rounds", type=positive_int, default=5, metavar="N", help="default: %(default)s")
    parser.set_defaults(run=run_evaluate)


def _add_mask_step(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    step = _add(subparsers, "mask-step", "a training step of the mask stage, and the published one", MASK_STEP_EPILOG)
    step.add_argument(
        "--student", default="efficientvit_sam_l0", metavar="NAME|PATH", help="a name stands for random weights"
    )
    step.add_argument("--images", type=positive_int, default=1, metavar="N", help="default: %(default)s")
    step.add_argument("--masks", type=positive_int, default=16, metavar="N", help="of an image (default: %(default)s)")
    step.add_argument("--rounds", type=positive_int, default=3, metavar="N", help="processes of each (default: 3)")
    step.add_argument("--repeats", type=positive_int, default=1, metavar="N", help="steps of a process (default: 1)")
    step.add_argument("--threads", type=positive_int, metavar="N", help="default: torch's own choice")
    step.add_argument(
        "--prompts-per-chunk", type=int, default=8, metavar="N", help="of our decoder; 0: all (default: %(default)s)"
    )
    step.add_argument("--no-checkpointing", action="store_true", help="keep our decoder's activations")
    step.set_defaults(run=run_mask_step)


def _add_models(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    models = add_command(subparsers, "models", "speed, size and memory of image encoders", MODELS_EPILOG)
    models.add_argument("models", metavar="NAME|PATH", nargs="+", help="students, timm/NAME, or models of ours on disk")
    models.add_argument("--teacher", metavar="NAME|PATH", help="what the others' throughput is a multiple of")
    models.add_argument(
        "--batch-size", type=positive_int, default=8, metavar="N", help="beside 1 (default: %(default)s)"
    )
    models.add_argument(
        "--precision", nargs="+", choices=("fp32", "bf16"), default=("fp32", "bf16"), help="default: both"
    )
    models.add_argument("--device", help="cpu, cuda, cuda:1; the default is a GPU if there is one")
    models.add_argument(
        "--seconds",
        type=positive_float,
        default=10.0,
        metavar="S",
        help="of each form of a model (default: %(default)s)",
    )
    models.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    models.add_argument("--picture", type=Path, metavar="FILE", help="write a picture of size over latency")
    models.set_defaults(run=run_models)


def run_models(arguments: argparse.Namespace) -> int:
    """Measure, print tables, write what is asked for."""
    for path in filter(None, (arguments.json, arguments.picture)):
        if not path.parent.is_dir():  # known before an hour is spent
            raise DistillError(f"{path}: no such directory: {path.parent}; make it first")

    from rich.console import Console

    from distill.bench.models import bench_models
    from distill.bench.models_report import draw_pareto, tables
    from distill.cli.students import PIPE_WIDTH

    found = bench_models(
        arguments.models,
        teacher=arguments.teacher,
        batch_size=arguments.batch_size,
        precisions=list(dict.fromkeys(arguments.precision)),
        device=usable_device(arguments.device),
        seconds=arguments.seconds,
    )
    found = {"benchmark": found["benchmark"], "machine": _machine(), **found}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if arguments.picture is not None:
        draw_pareto(found, arguments.picture)
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_WIDTH)
    for table in tables(found):
        console.print(table)
    return 0


def run_loader(arguments: argparse.Namespace) -> int:
    """Print what the loader does, as tables or JSON."""
    from distill.bench.loader import bench_loader, tables

    found = bench_loader(
        arguments.images,
        num_photos=arguments.num_photos,
        num_workers=arguments.num_workers,
        batch_size=arguments.batch_size,
    )
    return _show(arguments, found, tables(found))


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Print the shares of an evaluation's time, as a table or JSON."""
    from distill.bench.evaluation import bench_evaluate, tables

    found = bench_evaluate(
        arguments.student,
        num_photos=arguments.photos,
        num_prompts=arguments.prompts,
        num_workers=arguments.workers,
        num_rounds=arguments.rounds,
    )
    return _show(arguments, found, tables(found))


def run_cache(arguments: argparse.Namespace) -> int:
    """Print what codecs and the cache do, as tables or JSON."""
    from distill.bench.cache import bench_cache, tables
    from distill.config.schema import TeacherConfig

    found = bench_cache(
        TeacherConfig(arguments.teacher, arguments.checkpoint),
        student=arguments.student,
        images=arguments.images,
        num_photos=arguments.num_photos,
    )
    return _show(arguments, found, tables(found))


def run_mask_step(arguments: argparse.Namespace) -> int:
    """Print what a training step takes, as a table or JSON."""
    from distill.bench.mask_step import bench_mask_step, tables
    from distill.bench.mask_step_forms import StepSetup

    setup = StepSetup(
        arguments.student,
        images=arguments.images,
        masks=arguments.masks,
        repeats=arguments.repeats,
        threads=arguments.threads or 0,
        prompts_per_chunk=arguments.prompts_per_chunk,
        checkpointing=not arguments.no_checkpointing,
    )
    found = bench_mask_step(setup, rounds=arguments.rounds)
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
