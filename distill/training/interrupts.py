"""How a training answers SIGTERM, SIGUSR1 and Ctrl-C: it finishes the step, keeps it, and says how to go on."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from distill.config.run_directory import RECIPE_FILE
from distill.errors import Interrupted
from distill.training.directory import LOG_FILE, LogFile

# SIGTERM: a scheduler or an administrator. SIGUSR1: SLURM's warning (sbatch --signal). SIGINT: Ctrl-C.
ANSWERED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
SCONTROL_SECONDS = 60

logger = logging.getLogger(__name__)


class Signals:
    """A context in which the signals that end a training are kept until its step is finished.

    received: the first signal, or 0.
    deferring: whether a signal only sets `received`, because somebody asks for it between steps. Otherwise it raises
        `Interrupted` at once. A second Ctrl-C always ends the process.
    """

    def __init__(self) -> None:
        self.received = 0
        self.deferring = False
        self._pid = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # Python allows no other to answer signals
            self._before = {signum: signal.signal(signum, self._answer) for signum in ANSWERED}
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def keep_from(self, trainer: lightning.Trainer) -> None:
        """Keep Lightning from answering the signals instead.

        Its own answer to SIGTERM calls a collective inside the handler and saves nothing. Its answer to SIGUSR1 under
        SLURM saves a file that another resume than ours looks for.
        """
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]

    def _answer(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a loader's worker: it serves the step that its parent finishes
            return
        if self.received:
            if signum == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.received = signum
        if not self.deferring:
            raise Interrupted(signum)
        if signum == signal.SIGINT:
            logger.warning("finishing the step and keeping it; Ctrl-C again ends at once and loses it")


def explain(stop: Interrupted, run: Path, checkpoint: Path, *, is_writer: bool) -> None:
    """Give an interruption the message for the user. After SLURM's warning, queue the job again first.

    Args:
        checkpoint: where the last finished step is.
        is_writer: whether this is rank 0; the others say nothing.
    """
    if not is_writer:
        return
    name = signal.Signals(stop.signum).name
    if stop.step is None:
        where = "outside of training steps" if checkpoint.exists() else "before the first step was finished"
    else:
        where = f"after {stop.step} steps, which are in {checkpoint}"
    command = f"distill train {shlex.quote(str(run / RECIPE_FILE))} resume=true"
    again = _requeue() if stop.signum == signal.SIGUSR1 and SLURMEnvironment.detect() else None
    stop.message = f"interrupted by {name} {where}; " + (again or f"go on with: {command}")
    if (run / LOG_FILE).is_file():
        with LogFile(run / LOG_FILE):
            logger.info(stop.message)


def is_started_by_lightning(trainer: lightning.Trainer) -> bool:
    """Return whether rank 0 of this node started this process. It would be killed if this one ended with an error."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return isinstance(environment, LightningEnvironment) and trainer.local_rank != 0


def _requeue() -> str:
    """Let SLURM queue this job again. Return what the user should know about it."""
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    job = os.environ["SLURM_JOB_ID"] if task is None else f"{os.environ['SLURM_ARRAY_JOB_ID']}_{task}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=SCONTROL_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"job {job} could not be queued again ({error}); submit it again"
    if done.returncode:
        return f"job {job} could not be queued again ({done.stderr.strip()}); submit it again"
    return f"SLURM has queued job {job} again"
