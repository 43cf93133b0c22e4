"""Proves that a training which is stopped and resumed equals the undisturbed one, step for step and to the last bit.

    python tools/prove_resume.py                 # the complete grid, on one core
    python tools/prove_resume.py --sample 20     # some of its settings, at random

A setting is a stage, a number of workers, and whether there are averaged weights, accumulated batches and validation.
Of each setting, one run trains undisturbed. After each of its first steps, what a stopped run leaves in its directory
is put aside: once with a checkpoint of that very step, as an orderly stop writes it, and once with the last checkpoint
of the interval, as a power cut leaves it. Each of these is resumed to the end. All lines of metrics.jsonl apart from
times, and all tensors of student.safetensors, must be equal. The student is tiny, has dropout, and its photos are
noise.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from distill.config.loading import load_recipe
from distill.data.rle import encode_mask
from distill.data.shards.sa1b import annotation_row, sample_annotation
from distill.data.shards.writer import ShardWriter
from distill.models.checkpoint import STUDENT_FILE, save_model
from distill.models.sam import ModelSpec, build_from_spec
from distill.training import train
from distill.training.directory import CHECKPOINTS, LAST_CHECKPOINT, SCALARS_FILE

TEACHER = ModelSpec("efficientvit_sam_t", 64, embedding_dim=32, embedding_size=8, decoder_mlp_dim=64, norm_eps=1e-6)
NUM_PHOTOS, BATCH_SIZE = 9, 2  # five batches an epoch, the last one smaller, and a last step of one batch of two
SIZES = ((48, 64), (64, 48), (60, 60))  # of the photos, in turn
INTERVAL = 2  # steps between checkpoints, and between validations
STEPS = 14  # of a run
STOPS = [("stop", step) for step in range(1, 13)] + [("cut", step) for step in (3, 6, 9)]  # how, after which step
DROPOUT = 0.1
TIMES = ("train/data_wait",)  # measured, so never equal
LAST = Path(CHECKPOINTS, f"{LAST_CHECKPOINT}.ckpt")


@dataclass(frozen=True)
class Setting:
    """One setting of the grid."""

    stage: str
    workers: int
    ema: bool
    accumulated: int
    validation: bool

    def overrides(self) -> list[str]:
        """Return the setting as options of a recipe."""
        return [
            f"data.num_workers={self.workers}",
            f"optim.ema_decay={0.5 if self.ema else 0.0}",
            f"trainer.accumulate_grad_batches={self.accumulated}",
            f"data.val_images={'held_out' if self.validation else 'null'}",
        ]


def complete_grid() -> list[Setting]:
    """Return all settings."""
    axes = (("feature", "mask"), (0, 1, 2), (False, True), (1, 2), (False, True))
    return [Setting(*values) for values in itertools.product(*axes)]


class Dropout(lightning.Callback):
    """A callback that gives the student's embedding dropout, so that a step draws from torch's global generator."""

    def setup(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        pl_module.model.image_encoder.register_forward_hook(_drop)


def _drop(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return F.dropout(output, DROPOUT, module.training)


class PutAside(lightning.Callback):
    """A callback that puts aside what a run leaves if it is stopped after a step: `folder`/STOP/STEP."""

    def __init__(self, folder: Path, stops: Iterable[int]) -> None:
        self.folder = folder
        self.stops = set(stops)

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        copy = self.folder / "stop" / str(trainer.global_step)
        if (
            trainer.global_step in self.stops and not copy.exists()
        ):  # inside of the step, before its line is logged and before validation
            self._copy(trainer, copy)
            trainer.save_checkpoint(copy / LAST)

    def on_train_batch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        copy = self.folder / "cut" / str(trainer.global_step)
        if trainer.global_step in self.stops and not copy.exists():  # after the step's line and its validation
            self._copy(trainer, copy)
            run = Path(trainer.default_root_dir)
            if (run / LAST).exists():
                shutil.copy(run / LAST, copy / LAST)

    def _copy(self, trainer: lightning.Trainer, copy: Path) -> None:
        run = Path(trainer.default_root_dir)
        (copy / CHECKPOINTS).mkdir(parents=True)
        for file in ("recipe.yaml", SCALARS_FILE):
            if (run / file).exists():
                shutil.copy(run / file, copy / file)


@dataclass(frozen=True)
class Comparison:
    """A resumed run beside the undisturbed one. `difference` is None if they are equal."""

    setting: Setting
    stop: str
    step: int
    num_steps: int
    difference: str | None


def prove(setting: Setting, stops: Sequence[tuple[str, int]]) -> Iterator[Comparison]:
    """Run a setting undisturbed, and compare each way of stopping it ("stop" or "cut", after a step) with that.

    The working directory is one that `write_data` has filled.
    """
    aside = Path(tempfile.mkdtemp(dir=".", prefix="aside-"))
    whole = aside / "whole"
    train(_recipe(setting, whole), callbacks=[Dropout(), PutAside(aside, {step for _, step in stops})])
    expected = read_run(whole)
    for stop, step in stops:
        run = aside / stop / str(step)
        train(_recipe(setting, run, "resume=true"), callbacks=[Dropout()])
        found = read_run(run)
        yield Comparison(setting, stop, step, len(found[0]), first_difference(expected, found))
        shutil.rmtree(run)
    shutil.rmtree(aside)


def _recipe(setting: Setting, run: Path, *overrides: str) -> Any:
    return load_recipe(f"{setting.stage}.yaml", [*setting.overrides(), f"run={run}", *overrides])


Record = tuple[dict[int, list[str]], dict[str, Tensor]]


def read_run(run: Path) -> Record:
    """Return what a run recorded, by step and without times, and the tensors of its student."""
    steps: dict[int, list[str]] = {}
    for text in (run / SCALARS_FILE).read_text(encoding="utf-8").splitlines():
        line = {name: value for name, value in json.loads(text).items() if name not in TIMES}
        steps.setdefault(line["step"], []).append(json.dumps(line, sort_keys=True))
    return {step: sorted(lines) for step, lines in steps.items()}, load_file(run / STUDENT_FILE)


def first_difference(expected: Record, found: Record) -> str | None:
    """Return the first difference between two runs in words, or None."""
    for step in sorted({*expected[0], *found[0]}):
        lines, others = expected[0].get(step), found[0].get(step)
        if lines != others:
            return f"step {step}: {lines} undisturbed, {others} resumed"
    names = [name for name in expected[1] if not torch.equal(expected[1][name], found[1][name])]
    return f"{len(names)} tensors of the student differ, {names[0]} among them" if names else None


def write_data() -> None:
    """Write a teacher, shards of photos with masks, and a recipe for each stage into the working directory."""
    save_model(build_from_spec(TEACHER), "teacher.safetensors")
    for name, count in (("images", NUM_PHOTOS), ("held_out", 2)):
        with ShardWriter(name, samples_per_shard=4) as writer:
            for number in range(count):
                height, width = SIZES[number % len(SIZES)]
                writer.add(f"photo{number}", _noise(number, height, width), _annotation(number, height, width))
    recipe = {
        "teacher": {"name": "teacher.safetensors", "source": "online"},
        "student": {"name": TEACHER.encoder, "image_size": TEACHER.image_size},
        "data": {"images": "images", "batch_size": BATCH_SIZE, "max_instances": 2},
        "optim": {"lr": 1e-3, "warmup_steps": 2},
        "validation": {"every_n_steps": INTERVAL, "max_images": 2, "num_pictures": 1},
        "checkpoint": {"every_n_steps": INTERVAL},
        "logger": [],
        "trainer": {
            "max_steps": STEPS,
            "log_every_n_steps": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    for stage in ("feature", "mask"):
        Path(f"{stage}.yaml").write_text(yaml.safe_dump({"kind": stage, **recipe}), encoding="utf-8")


def _noise(seed: int, height: int, width: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def _annotation(number: int, height: int, width: int) -> dict[str, Any]:
    """Return three rectangles as instances, of which two are drawn."""
    rows = []
    for i in range(3):
        mask = np.zeros((height, width), np.uint8)
        mask[4 + 8 * i : 30 + 6 * i, 3 + 5 * i : 28 + 6 * i] = 1
        rows.append(annotation_row(i, encode_mask(mask), (height, width)))
    return sample_annotation(f"photo{number}", (height, width), rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prove the grid, print each difference and the counts, and return 1 if there was a difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, metavar="N", help="settings, chosen at random (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of that choice (default: 0)")
    parser.add_argument(
        "--part", default="1/1", metavar="I/N", help="every N-th setting from the I-th on (default: 1/1)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write each comparison there, one a line")
    options = parser.parse_args(arguments)
    grid = complete_grid()
    if options.sample is not None:
        grid = random.Random(options.seed).sample(grid, options.sample)
    first, parts = (int(number) for number in options.part.split("/"))
    grid = grid[first - 1 :: parts]
    quiet()
    done, begun = [], time.monotonic()
    out = None if options.json is None else options.json.open("w", encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder, _inside(Path(folder)):
        write_data()
        for setting in grid:
            for comparison in prove(setting, STOPS):
                done.append(comparison)
                if out is not None:
                    print(json.dumps(asdict(comparison)), file=out, flush=True)
                if comparison.difference is not None:
                    print(f"{comparison.stop} after step {comparison.step}, {setting}: {comparison.difference}")
            print(f"{setting}: {len(done)} resumed runs so far, {time.monotonic() - begun:.0f} s", flush=True)
    differing = sum(comparison.difference is not None for comparison in done)
    print(
        f"{len(grid)} settings x {len(done) // max(1, len(grid))} stops = {len(done)} resumed runs, "
        f"{sum(comparison.num_steps for comparison in done)} steps compared: {differing} runs differ"
    )
    return 1 if differing else 0


def quiet() -> None:
    """Keep what trainings report off the terminal."""
    warnings.simplefilter("ignore")
    for name in ("distill", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Make a folder the working directory, for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


if __name__ == "__main__":
    sys.exit(main())
