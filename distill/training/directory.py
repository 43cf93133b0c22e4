"""The run directory: the record of a run, and the callbacks and logger that write it."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import time
import zipfile
from argparse import Namespace
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from distill.config.run_directory import RECIPE_FILE, check_run_directory
from distill.errors import RunError

ENVIRONMENT_FILE = "environment.json"
SCALARS_FILE = "metrics.jsonl"
LOG_FILE = "log.txt"
CHECKPOINTS = "checkpoints"
LAST_CHECKPOINT, BEST_CHECKPOINT = "last", "best"
LAST_STEP_KEY = "distill_last_step"  # of a checkpoint: the scalars of the step it ends with

LOGGED = ("distill", "lightning.pytorch", "lightning.fabric")
LIBRARIES = ("distill-sam", "torch", "torchvision", "lightning", "timm", "segment-anything", "webdataset", "numpy")


def find_checkpoint(directory: Path, *, resume: bool) -> Path | None:
    """Return the checkpoint that a training continues from, or None to start at step 0. Writes nothing.

    Raises:
        RunError: the directory is refused (`check_run_directory`), or its checkpoint is cut short.
    """
    if not check_run_directory(directory, resume=resume):
        return None
    last = directory / CHECKPOINTS / f"{LAST_CHECKPOINT}.ckpt"
    if not last.exists():  # the run was killed before its first checkpoint
        return None
    if last.is_file() and not zipfile.is_zipfile(last):  # a directory is a sharded checkpoint
        raise RunError(f"'{last}' is cut short or damaged; copy {BEST_CHECKPOINT}.ckpt over it, or begin anew: run=DIR")
    return last


def write_record(directory: Path, recipe_yaml: str) -> None:
    """Make the directory with the resolved recipe and the machine it runs on."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / RECIPE_FILE).write_text(recipe_yaml, encoding="utf-8")
    (directory / ENVIRONMENT_FILE).write_text(json.dumps(environment(), indent=2) + "\n", encoding="utf-8")


def environment() -> dict[str, Any]:
    """What a reader needs to repeat a run: command, versions and hardware."""
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def is_rank_zero() -> bool:
    """Whether this process writes: rank 0 of all, as the launcher's environment says."""
    rank: int = rank_zero_only.rank  # type: ignore[attr-defined]
    return rank == 0


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


class LogFile:
    """A context that copies what distill and lightning log to `log.txt`; warnings also go to stderr."""

    def __init__(self, path: Path) -> None:
        self.file = logging.FileHandler(path, encoding="utf-8")
        self.file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.stderr = logging.StreamHandler()
        self.stderr.setLevel(logging.WARNING)

    def __enter__(self) -> LogFile:
        for name in LOGGED:
            logging.getLogger(name).addHandler(self.file)
        ours = logging.getLogger("distill")
        ours.setLevel(logging.INFO)
        ours.addHandler(self.stderr)
        return self

    def __exit__(self, *exception: object) -> None:
        for name in LOGGED:
            logging.getLogger(name).removeHandler(self.file)
        logging.getLogger("distill").removeHandler(self.stderr)
        self.file.close()


class JsonLinesLogger(Logger):
    """Appends one JSON object to a file for every step that logs: `step` (from 0) and the scalars of that step."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the recipe is a file of its own."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        line = {"step": step, **{name: float(value) for name, value in metrics.items()}}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    @rank_zero_only
    def forget_from(self, step: int) -> None:
        """Drop the lines of `step` and later, and a line cut short: a resumed run writes them again."""
        if not self.path.exists():
            return
        kept = [line for line in self._lines() if line["step"] < step]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(f"{json.dumps(line)}\n" for line in kept), encoding="utf-8")
        partial.replace(self.path)

    def has(self, step: int, names: Iterable[str]) -> bool:
        """Whether all of these scalars are there for a step."""
        found = {name for line in self._lines() if line["step"] == step for name in line}
        return found.issuperset(names)

    def _lines(self) -> list[dict[str, Any]]:
        lines = []
        for text in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else ():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:  # the process died while writing it
                continue
        return lines


class ContinueMetrics(lightning.Callback):
    """Makes the metrics of a resumed run those of an uninterrupted one.

    What came after its checkpoint is dropped. Lightning writes a checkpoint before it logs the step that the checkpoint
    ends with, so that step's scalars are kept in the checkpoint too, and logged if the run died in between.
    """

    def __init__(self) -> None:
        self._last_step: dict[str, float] = {}

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        logged = trainer.logged_metrics.items()
        checkpoint[LAST_STEP_KEY] = {name: float(value) for name, value in logged if name.startswith("train/")}

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._last_step = checkpoint.get(LAST_STEP_KEY, {})

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        step = trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, JsonLinesLogger):
                logger.forget_from(step)
                is_logged_step = step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
                if self._last_step and is_logged_step and not logger.has(step - 1, self._last_step):
                    logger.log_metrics(self._last_step, step - 1)


class CheckpointAtEnd(lightning.Callback):
    """Writes the last checkpoint when training ends, so that a longer run can go on from there.

    Comes before weight averaging in the list of callbacks, which then puts the average in the model's place.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_written = False  # stays so when a resumed run has nothing left to do

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        trainer.save_checkpoint(self.path)
        self.is_written = True


class DataWait(lightning.Callback):
    """Logs `train/data_wait`: the share of the time since the last logged step that was spent waiting for batches."""

    def __init__(self) -> None:
        self._mark: float | None = None
        self._waited = 0.0
        self._worked = 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        self._waited += self._lap()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args: Any) -> None:
        self._worked += self._lap()
        total = self._waited + self._worked
        if trainer.global_step % trainer.log_every_n_steps == 0 and total:  # type: ignore[attr-defined]
            pl_module.log("train/data_wait", self._waited / total)
            self._waited = self._worked = 0.0

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._mark = None

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._mark = None

    def _lap(self) -> float:
        """Seconds since the last call; 0 after a pause."""
        now = time.perf_counter()
        seconds = 0.0 if self._mark is None else now - self._mark
        self._mark = now
        return seconds
