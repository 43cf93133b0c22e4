"""The run directory of a training: its files, the checkpoint to continue from, and the record of the machine."""

from __future__ import annotations

import logging
import os
import platform
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from distill.config.run_directory import RECIPE_FILE, check_run_directory
from distill.errors import RunError
from distill.files import write_errors, write_json, write_text
from distill.text import SafeFormatter
from distill.training.console import WorthReading

ENVIRONMENT_FILE = "environment.json"
SCALARS_FILE = "metrics.jsonl"
LOG_FILE = "log.txt"
CHECKPOINTS = "checkpoints"
CPU_FILE = Path("/proc/cpuinfo")
LAST_CHECKPOINT, BEST_CHECKPOINT = "last", "best"

LOGGED = ("distill", "lightning.pytorch", "lightning.fabric")
LIBRARIES = ("distill-sam", "torch", "torchvision", "lightning", "timm", "segment-anything", "webdataset", "numpy")


def find_checkpoint(directory: Path, *, resume: bool) -> Path | None:
    """Return the checkpoint that a training continues from, or None to start at step 0. Writes nothing.

    Raises:
        RunError: the directory is refused (`check_run_directory`).
    """
    if not check_run_directory(directory, resume=resume):
        return None
    # Lightning's answer to SLURM's warning wrote hpc_ckpt_N.ckpt in earlier versions.
    written = [path for path in (last_checkpoint(directory), *directory.glob("hpc_ckpt_*.ckpt")) if path.exists()]
    # None: the run was killed before its first checkpoint.
    return max(written, key=lambda path: path.stat().st_mtime, default=None)


def last_checkpoint(directory: Path) -> Path:
    """Return where a run directory keeps the last checkpoint, whether it has one or not."""
    return directory / CHECKPOINTS / f"{LAST_CHECKPOINT}.ckpt"


def write_record(directory: Path, recipe_yaml: str) -> None:
    """Make the directory, and write the resolved recipe and the machine that the run starts on."""
    with write_errors(directory, RunError, elsewhere="another directory: run=DIR"):
        directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / RECIPE_FILE, recipe_yaml, raises=RunError)
    write_json(directory / ENVIRONMENT_FILE, environment(), raises=RunError)


def environment() -> dict[str, Any]:
    """Return what a reader needs to repeat a run: command, versions and hardware."""
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "processor": processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def processor() -> str:
    """Return the name of the processor, as far as the system tells it."""
    try:
        lines = CPU_FILE.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def is_rank_zero() -> bool:
    """Return whether this process is rank 0 of all, as the launcher's environment says. Only rank 0 writes."""
    rank: int = rank_zero_only.rank  # type: ignore[attr-defined]
    return rank == 0


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


class LogFile:
    """A context in which what distill and lightning log goes to a file, and warnings of distill to stderr too."""

    def __init__(self, path: Path) -> None:
        self.file = logging.FileHandler(path, encoding="utf-8")
        self.file.addFilter(WorthReading())
        self.file.setFormatter(SafeFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.stderr = logging.StreamHandler()
        self.stderr.setLevel(logging.WARNING)
        self.stderr.setFormatter(SafeFormatter("%(message)s"))

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
