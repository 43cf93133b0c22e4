"""What a training shows a person: its progress, and of Lightning's messages those that matter."""

from __future__ import annotations

import logging
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TaskID, TextColumn

from distill.text import MILLION, duration, say, terminal
from distill.training.cost import device_name

SECONDS_BETWEEN_LINES = 30.0  # where there is no terminal
SECONDS_BETWEEN_READS = 2.0  # of the loss on a terminal: reading it makes a GPU wait
REFRESHES_A_SECOND = 4
UNLIMITED = -1  # what Lightning calls a run without a number of steps

LIGHTNING = ("lightning.pytorch", "lightning.fabric", "lightning")
# Words of Lightning's messages that are true of every run here, or that advertise. Nobody is shown such a message, and
# log.txt does not get it.
NOISE = (
    "Tip: For seamless cloud",  # advertises the packages litlogger and litmodels
    "`weights_only` was not set",  # of Lightning's own reading of a checkpoint that this run wrote
    "module(s) in eval mode at the start of training",  # frozen parts and the teacher are meant to be
    "does not have many workers which may be a bottleneck",  # train/data_wait measures it
    "is smaller than the logging interval",  # steps are counted across epochs
    "exists and is not empty.",  # the checkpoints of a run that goes on
    " not resumable. This can cause",  # the loader is, also in the middle of an epoch
    "across ranks is zero.",  # a run without held-out photos
    "Skipping val loop.",
    "TPU available: ",
    "Loading `train_dataloader` to estimate number of stepping batches",
)


class WorthReading(logging.Filter):
    """A filter that keeps the records of one level and above that are no noise."""

    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__()
        self.level = level

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is kept."""
        return record.levelno >= self.level and not is_noise(record.getMessage())


def is_noise(message: str) -> bool:
    """Return whether a message of Lightning tells a user nothing."""
    return any(words in message for words in NOISE)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's noise from the terminal: as a context, or as the decorator of a function.

    Its warnings are shown unless they are noise. What it only reports goes to log.txt, where there is one. A program
    that has set up its own logging gets everything.
    """
    shown = WorthReading(logging.WARNING)
    handlers = [handler for name in LIGHTNING for handler in logging.getLogger(name).handlers]
    for handler in handlers:
        handler.addFilter(shown)
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning):  # Lightning's use of torch is not the user's
                warnings.filterwarnings("ignore", category=category, module=r"lightning\.")
            for words in NOISE:
                warnings.filterwarnings("ignore", f"(?s).*{re.escape(words)}")
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(shown)


class TrainingProgress(ProgressBar):
    """A bar over the steps of a training on a terminal, and elsewhere a line from time to time; both on stderr.

    Each validation adds a line with its scores. Lightning's own bar counts the batches of an epoch, redraws a hundred
    times a second, and reads the loss at every step.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._begun_at, self._first_step = time.monotonic(), 0
        self._last_shown = float("-inf")

    def disable(self) -> None:
        """Show nothing: Lightning calls it on every rank but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show the progress again."""
        self._enabled = True

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._begun_at, self._first_step = time.monotonic(), trainer.global_step
        if self._enabled:
            self._print(_heading(trainer, pl_module))
        if self._enabled and sys.stderr.isatty():
            console = Console(stderr=True)
            columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
            self._bar = Progress(*columns, console=console, refresh_per_second=REFRESHES_A_SECOND)
            self._task = self._bar.add_task("steps", total=num_steps(trainer), completed=trainer.global_step, loss="")
            self._bar.start()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args: Any) -> None:
        if not self._enabled:
            return
        now = time.monotonic()
        is_due = now - self._last_shown >= (SECONDS_BETWEEN_LINES if self._bar is None else SECONDS_BETWEEN_READS)
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step)
            if is_due:
                self._bar.update(self._task, loss=f"loss {_loss(trainer)}")
        elif is_due:
            self._print(self._line(trainer, now))
        if is_due:
            self._last_shown = now

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        scores = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if self._enabled and scores and not trainer.sanity_checking:
            text = "  ".join(f"{name} {float(value):.4f}" for name, value in scores.items())
            self._print(f"step {trainer.global_step:,}: {text}")

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._enabled and self._bar is None:
            self._print(self._line(trainer, time.monotonic()))
        self._stop()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _line(self, trainer: lightning.Trainer, now: float) -> str:
        step, total = trainer.global_step, num_steps(trainer)
        done, seconds = step - self._first_step, now - self._begun_at
        parts = [f"step {step:,}" + (f" of {total:,}" if total else ""), f"loss {_loss(trainer)}"]
        if done:
            left = f", {duration((total - step) * seconds / done)} left" if total else ""
            parts.append(f"{done / seconds:.2f} steps/s{left}")
        return "  ".join(parts)

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(terminal(line), markup=False, highlight=False)
        else:
            say(line, file=sys.stderr)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def num_steps(trainer: lightning.Trainer) -> int | None:
    """Return the steps of a complete run, or None if something else than a number of steps ends it."""
    steps = trainer.estimated_stepping_batches
    return None if steps in (UNLIMITED, float("inf")) else int(steps)


def _heading(trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> str:
    parameters = list(pl_module.parameters())
    trained, every = (sum(p.numel() for p in some) for some in ([p for p in parameters if p.requires_grad], parameters))
    steps, after = num_steps(trainer), f" after step {trainer.global_step:,}" if trainer.global_step else ""
    return (
        f"training{'' if steps is None else f' to step {steps:,}'}{after} on {trainer.world_size} x "
        f"{device_name(pl_module.device)}, precision {trainer.precision}; "
        f"{trained / MILLION:.2f} M of {every / MILLION:.2f} M parameters are trained"
    )


def _loss(trainer: lightning.Trainer) -> str:
    """Return the loss of the last step in words. A GPU then finishes what it was given."""
    value = trainer.callback_metrics.get("train/loss")
    return "?" if value is None else f"{float(value):.4g}"
