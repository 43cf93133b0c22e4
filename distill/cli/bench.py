"""`distill bench`: measure models, reading, loading, caching, training and evaluation on this machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.cli.arguments import Subparsers, add_command, positive_float, positive_int
from distill.errors import DistillError
from distill.files import write_json
from distill.models.devices import usable_device
from distill.text import print_tables

if TYPE_CHECKING:
    from rich.table import Table

EPILOG = """\
examples:
  distill bench models mobile_sam efficientvit_sam_l0 --teacher sam_vit_h --json models.json
  distill bench loader
  distill bench loader --images shards/train --num-workers 8 --json
  distill bench cache --teacher sam_vit_h --checkpoint sam_vit_h_4b8939.pth --json
  distill bench mask-step --images 2 --masks 64 --json
  distill bench train --json
  distill bench evaluate
  distill bench annotations
"""
LOADER_EPILOG = """\
examples:
  distill bench loader
  distill bench loader --images shards/train --num-workers 8 --json

The first measurement is one training sample at 512 pixels, from a photo of 2000 x 1500 with 100 masks, of which 64 are
drawn. Our loader makes it, and so does the published formulation, which decodes the masks at full resolution and
resizes them. Each runs in a process of its own, on one core. The second measurement is the loader, with workers,
beside a plain sequential read of the same tars.
"""
CACHE_EPILOG = """\
examples:
  distill bench cache
  distill bench cache --teacher sam_vit_h --checkpoint sam_vit_h_4b8939.pth --images shards/sa1b --json

Measures the bytes and the error of every codec, and of other ways to store, on embeddings of the teacher. Encoding and
decoding run on one core; their speed is in maps of 256 x 64 x 64. A training step from the cache is timed beside one
with the teacher online.
"""
MASK_STEP_EPILOG = """\
examples:
  distill bench mask-step
  distill bench mask-step --images 2 --masks 64 --json                # the published trainer's: some 18 GB and minutes
  distill bench mask-step --student quickstart --prompts-per-chunk 0 --no-checkpointing

Runs the mask stage forward and backward in two formulations, on the same weights, photos, masks and prompts. Ours uses
our decoder, and compares masks at low resolution. The published one uses segment-anything's decoder image by image,
enlarges the logits to the input size, samples points there, and compares each candidate by itself. Each runs in a
process of its own, and they take turns.
"""
TRAIN_EPILOG = """\
examples:
  distill bench train
  distill bench train --student efficientvit_sam_l0 --image-size 512 --batch-size 8 --num-workers 4 --json

Trains both stages by the quickstart's recipes twice: as `distill train` does, with its loader, callbacks, logging and
progress, and by a bare PyTorch loop on the same batches from the same weights. They take turns of a few steps in one
process, so that a machine that slows down slows both. Their losses are equal. The default student is so small that its
steps are short; the same milliseconds are a smaller share of longer ones.
"""
EVALUATE_EPILOG = """\
examples:
  distill bench evaluate
  distill bench evaluate --student runs/l0_mask --prompts 10 --workers 1 --json
  distill bench evaluate --forms torch torch-bf16 openvino-bf16

Gives the seconds a photo of an evaluation by boxes: for the encoder alone, for the model alone, and for the complete
evaluation, in which photos are read and masks are laid out at full resolution, compared and coded. The three take
turns in one process, in each of the forms; the numbers are medians over the rounds, with the least and the most.
"""
ANNOTATIONS_EPILOG = """\
examples:
  distill bench annotations --json                              # as many as COCO's: 4 GB of memory, and minutes
  distill bench annotations --annotations 90000 --files 50

Reads one COCO-format file of polygons, and JSONs of 100 masks in SA-1B's layout, by our readers and by Python's json.
Ours check types, ranges and ids, and give typed objects. They take turns in one process.
"""
FORMS = ("torch", "torch-bf16", "onnxruntime", "openvino", "openvino-bf16")
MODELS_EPILOG = """\
examples:
  distill bench models mobile_sam edge_sam efficientvit_sam_l0 --teacher sam_vit_h
  distill bench models runs/a runs/b timm/resnet18 --batch-size 16 --device cuda --json models.json --picture models.png
  OMP_NUM_THREADS=2 distill bench models edge_sam --precision fp32 --seconds 30

Measures image encoders: parameters, multiply-adds (attention products included), latency and throughput at batch 1 and
N, and peak memory. Each is measured as it is and fused, in fp32 and in bf16 by autocast. All take turns in one process,
so that a machine that slows down slows all alike; the numbers are medians. A student's name stands for random weights:
speed does not depend on them.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command and its measurements."""
    parser = add_command(subparsers, "bench", "measure models, loading, caching and training on this machine", EPILOG)
    measurements = parser.add_subparsers(title="measurements", metavar="MEASUREMENT", required=True)
    _add_models(measurements)
    _add_loader(measurements)
    _add_cache(measurements)
    _add_mask_step(measurements)
    _add_train(measurements)
    _add_evaluate(measurements)
    _add_annotations(measurements)


def _add_models(subparsers: Subparsers) -> None:
    models = add_command(subparsers, "models", "speed, size and memory of image encoders", MODELS_EPILOG)
    models.add_argument("models", metavar="NAME|PATH", nargs="+", help="students, timm/NAME, or models of ours on disk")
    models.add_argument("--teacher", metavar="NAME|PATH", help="the model whose throughput the others are multiples of")
    _add_count(models, "--batch-size", 8, "beside 1")
    models.add_argument(
        "--precision", nargs="+", choices=("fp32", "bf16"), default=("fp32", "bf16"), help="default: both"
    )
    models.add_argument("--device", help="cpu, cuda, cuda:1; the default is a GPU if there is one")
    models.add_argument(
        "--seconds", type=positive_float, default=10.0, metavar="S", help="of each form of a model (default: 10)"
    )
    models.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    models.add_argument("--picture", type=Path, metavar="FILE", help="write a picture of size over latency")
    models.set_defaults(run=run_models)


def _add_loader(subparsers: Subparsers) -> None:
    loader = _add_measurement(subparsers, "loader", "training samples a second, and what one costs", LOADER_EPILOG)
    loader.add_argument("--images", metavar="DIR", help="your own image shards; default: photos drawn for this")
    _add_count(loader, "--num-photos", 64)
    _add_count(loader, "--num-workers", 2)
    _add_count(loader, "--batch-size", 8)
    loader.set_defaults(run=run_loader)


def _add_cache(subparsers: Subparsers) -> None:
    summary = "codecs, and a step from the cache beside one with the teacher online"
    cache = _add_measurement(subparsers, "cache", summary, CACHE_EPILOG)
    cache.add_argument("--teacher", default="quickstart", metavar="NAME", help="default: %(default)s")
    cache.add_argument("--checkpoint", metavar="FILE", help="the released weights of a sam_vit_*")
    cache.add_argument("--student", default="efficientvit_sam_t", metavar="NAME", help="default: %(default)s")
    cache.add_argument(
        "--images", metavar="DIR", help="image shards; default: photographs that come with Python packages"
    )
    _add_count(cache, "--num-photos", 8)
    cache.set_defaults(run=run_cache)


def _add_mask_step(subparsers: Subparsers) -> None:
    summary = "a training step of the mask stage, and the published one"
    step = _add_measurement(subparsers, "mask-step", summary, MASK_STEP_EPILOG)
    _add_student(step)
    _add_count(step, "--images", 1)
    _add_count(step, "--masks", 16, "of an image")
    _add_count(step, "--rounds", 3, "processes of each formulation")
    _add_count(step, "--repeats", 1, "steps of a process")
    step.add_argument("--threads", type=positive_int, metavar="N", help="default: torch's own choice")
    step.add_argument(
        "--prompts-per-chunk", type=int, default=8, metavar="N", help="of our decoder; 0: all (default: %(default)s)"
    )
    step.add_argument("--no-checkpointing", action="store_true", help="keep our decoder's activations")
    step.set_defaults(run=run_mask_step)


def _add_train(subparsers: Subparsers) -> None:
    train = _add_measurement(subparsers, "train", "what a training takes beyond a bare PyTorch loop", TRAIN_EPILOG)
    train.add_argument(
        "--student", default="timm/mobilenetv3_small_050", metavar="NAME", help="with random weights; %(default)s"
    )
    train.add_argument("--teacher", default="quickstart", metavar="NAME|PATH", help="default: %(default)s")
    _add_count(train, "--image-size", 96, "pixels")
    _add_count(train, "--batch-size", 2)
    train.add_argument(
        "--num-workers", type=int, default=0, metavar="N", help="of either loader (default: %(default)s)"
    )
    train.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true", help="default: %(default)s")
    _add_count(train, "--steps", 4, "of a turn")
    _add_count(train, "--rounds", 12, "turns of either loop")
    train.set_defaults(run=run_train)


def _add_evaluate(subparsers: Subparsers) -> None:
    summary = "an evaluation, and its encoder's share of it"
    evaluate = _add_measurement(subparsers, "evaluate", summary, EVALUATE_EPILOG)
    _add_student(evaluate)
    _add_count(evaluate, "--photos", 16)
    _add_count(evaluate, "--prompts", 10, "of a photo")
    evaluate.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes beside this one (default: %(default)s)"
    )
    _add_count(evaluate, "--rounds", 5)
    evaluate.add_argument(
        "--forms",
        nargs="+",
        choices=FORMS,
        default=FORMS[:1],
        help="runtimes of the model, beside the first of them; default: torch",
    )
    evaluate.set_defaults(run=run_evaluate)


def _add_annotations(subparsers: Subparsers) -> None:
    summary = "reading annotations, beside Python's json"
    annotations = _add_measurement(subparsers, "annotations", summary, ANNOTATIONS_EPILOG)
    _add_count(annotations, "--annotations", 900_000, "polygons of the COCO-format file")
    _add_count(annotations, "--files", 500, "in SA-1B's layout")
    _add_count(annotations, "--rounds", 3)
    annotations.set_defaults(run=run_annotations)


def _add_measurement(subparsers: Subparsers, name: str, summary: str, epilog: str) -> argparse.ArgumentParser:
    parser = add_command(subparsers, name, summary, epilog)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_count(parser: argparse.ArgumentParser, option: str, default: int, what: str = "") -> None:
    shown = f"{what} (default: {default})" if what else f"default: {default}"
    parser.add_argument(option, type=positive_int, default=default, metavar="N", help=shown)


def _add_student(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--student", default="efficientvit_sam_l0", metavar="NAME|PATH", help="a name stands for random weights"
    )


def run_models(arguments: argparse.Namespace) -> int:
    """Measure, print tables, and write the files that were asked for."""
    for path in filter(None, (arguments.json, arguments.picture)):
        if not path.parent.is_dir():  # known before an hour is spent
            raise DistillError(f"{path}: no such directory: {path.parent}; make it first")

    from distill.bench.models import bench_models
    from distill.bench.models_report import draw_pareto, tables

    found = bench_models(
        arguments.models,
        teacher=arguments.teacher,
        batch_size=arguments.batch_size,
        precisions=list(dict.fromkeys(arguments.precision)),
        device=usable_device(arguments.device),
        seconds=arguments.seconds,
    )
    if arguments.json is not None:
        write_json(arguments.json, _with_machine(found), indent=1)
    if arguments.picture is not None:
        draw_pareto(found, arguments.picture)
    print_tables(*tables(found))
    return 0


def run_loader(arguments: argparse.Namespace) -> int:
    """Measure the loader, and print tables or JSON."""
    from distill.bench.loader import bench_loader, tables

    found = bench_loader(
        arguments.images,
        num_photos=arguments.num_photos,
        num_workers=arguments.num_workers,
        batch_size=arguments.batch_size,
    )
    return _show(arguments, found, tables(found))


def run_cache(arguments: argparse.Namespace) -> int:
    """Measure codecs and the cache, and print tables or JSON."""
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
    """Measure a training step, and print a table or JSON."""
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


def run_train(arguments: argparse.Namespace) -> int:
    """Measure trainings, and print a table or JSON."""
    from distill.bench.train import TrainSetup, bench_train, tables

    setup = TrainSetup(
        arguments.student,
        image_size=arguments.image_size,
        batch_size=arguments.batch_size,
        teacher=arguments.teacher,
        num_workers=arguments.num_workers,
        precision=arguments.precision,
        steps=arguments.steps,
        rounds=arguments.rounds,
    )
    found = bench_train(setup)
    return _show(arguments, found, tables(found))


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Measure an evaluation, and print a table or JSON."""
    from distill.bench.evaluation import bench_evaluate, tables

    found = bench_evaluate(
        arguments.student,
        num_photos=arguments.photos,
        num_prompts=arguments.prompts,
        num_workers=arguments.workers,
        num_rounds=arguments.rounds,
        forms=list(dict.fromkeys(arguments.forms)),
    )
    return _show(arguments, found, tables(found))


def run_annotations(arguments: argparse.Namespace) -> int:
    """Measure the readers of annotations, and print a table or JSON."""
    from distill.bench.annotations import bench_annotations, tables

    found = bench_annotations(
        num_annotations=arguments.annotations, num_files=arguments.files, num_rounds=arguments.rounds
    )
    return _show(arguments, found, tables(found))


def _show(arguments: argparse.Namespace, found: dict[str, Any], tables: Iterable[Table]) -> int:
    if arguments.json:
        print(json.dumps(_with_machine(found), indent=1))
    else:
        print_tables(*tables)
    return 0


def _with_machine(found: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON document: the day and the machine, then what was measured on it."""
    from datetime import date

    import torch

    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    return {"date": date.today().isoformat(), "machine": machine, **found}
