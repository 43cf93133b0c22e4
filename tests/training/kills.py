"""Trainings that are killed at random moments and resumed. `test_kills.py` runs: kills.py NUM_KILLS SEED FOLDER.

Both stages in turn: an undisturbed training first, then the same one, killed and resumed until it ends. Processes are
forks of this one, which has imported everything, so that a start takes no time. A kill is SIGKILL, SIGTERM, SIGUSR1, or
a disk that is full (a limit on the size of files, so that a checkpoint cannot be written). The script prints what it
counted as JSON; a broken promise ends it with an AssertionError.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import lightning
import torch

import tests.conftest as fixtures
from distill.config.loading import load_recipe
from distill.data.shards.writer import ShardWriter
from distill.errors import DistillError, Interrupted
from distill.models.checkpoint import load_model, save_model
from distill.models.sam import build_from_spec
from distill.training.run import train

KINDS = ("SIGTERM", "SIGKILL", "full disk", "SIGUSR1", "SIGKILL", "SIGTERM")  # in turn; the moments are random
EVERY_N_STEPS = 5
FEW_KILLS, FEW_STEPS, STEPS = 10, 24, 60  # a training for few kills is short
STARTS_SHARE, START_SECONDS = 0.2, 1.5  # so many are killed in their first seconds, before a step or in one
MOST_STEPS, STEP_SECONDS = 12, 0.2  # the others so many steps and seconds later
FULL_DISK_BYTES = 400_000  # less than a checkpoint, more than any other file
LAST, STEPS_FILE = "checkpoints/last.ckpt", "steps.txt"


class NoteSteps(lightning.Callback):
    """A callback that notes each finished step outside of the run directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer, stage, *batch) -> None:
        with self.path.open("a") as file:
            file.write(f"{trainer.global_step}\n")


def write_inputs(folder: Path, steps: int) -> None:
    """Write shards of tiny photos and a tiny teacher."""
    for name, num_photos in (("images", 14), ("held_out", 2)):
        with ShardWriter(folder / name, 5) as writer:
            for i in range(num_photos):
                hw = fixtures.SIZES[i % len(fixtures.SIZES)]
                writer.add(f"photo{i}", fixtures.random_photo(i, hw), fixtures.annotate(f"photo{i}", hw))
    torch.manual_seed(0)
    save_model(build_from_spec(fixtures.TINY), folder / "teacher.safetensors")
    for kind in ("feature", "mask"):
        tree = {
            "kind": kind,
            "teacher": {"name": str(folder / "teacher.safetensors"), "source": "online"},
            "student": {"name": "efficientvit_sam_t", "image_size": 64},
            "data": {"images": str(folder / "images"), "val_images": str(folder / "held_out"), "batch_size": 2}
            | {"num_workers": 0, "max_instances": 1},
            "optim": {"ema_decay": 0.9 if kind == "mask" else 0.0, "warmup_steps": 10},
            "validation": {"every_n_steps": 12, "max_images": 2, "num_pictures": 0},
            "checkpoint": {"every_n_steps": EVERY_N_STEPS, "keep_best": 2, "student": "best"},
            "logger": [],
            "trainer": {"max_steps": steps, "log_every_n_steps": 1, "accelerator": "cpu"}
            | {"enable_progress_bar": False, "enable_model_summary": False},
        }
        (folder / f"{kind}.yaml").write_text(json.dumps(tree))


def run_to_end(recipe: Path, run: Path, notes: Path, file_bytes: int | None) -> None:
    """Train in this process, and end it with the exit code that the command line has."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        code = 1
        try:
            if file_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
            train(load_recipe(str(recipe), [f"run={run}", "resume=true"]), callbacks=[NoteSteps(notes)])
            code = 0
        except Interrupted as stop:
            code = stop.exit_code
        except DistillError as error:
            (run.parent / f"{run.name}.error").write_text(str(error))
            code = 2
        finally:
            os._exit(code)


def start(recipe: Path, run: Path, notes: Path, file_bytes: int | None = None) -> int:
    """Start a training in a process of its own and return its id."""
    pid = os.fork()
    if pid == 0:
        run_to_end(recipe, run, notes, file_bytes)
    return pid


def ended(pid: int) -> int:
    """Wait for a process and return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def ends_before(pid: int, is_time: Callable[[], bool]) -> int | None:
    """Wait until it is time to kill a process. Return its exit code if it ended before."""
    while not is_time():
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def random_moment(draw: random.Random, notes: Path) -> Callable[[], bool]:
    """Return a function that says whether a random moment of a training has come."""
    if draw.random() < STARTS_SHARE:
        moment = time.monotonic() + draw.uniform(0, START_SECONDS)
        return lambda: time.monotonic() >= moment
    num_steps, seconds = draw.randint(1, MOST_STEPS), draw.uniform(0, STEP_SECONDS)

    def is_time() -> bool:
        if not notes.exists() or notes.read_text().count("\n") < num_steps:
            return False
        time.sleep(seconds)
        return True

    return is_time


def finished_steps(notes: Path) -> int:
    lines = notes.read_text().splitlines() if notes.exists() else []
    return int(lines[-1]) if lines else 0


def kept_steps(run: Path) -> int:
    last = run / LAST
    return int(torch.load(last, weights_only=True)["global_step"]) if last.exists() else 0


def kill(kind: str, recipe: Path, run: Path, draw: random.Random, counts: Counter[str]) -> bool:
    """Start a training, end it in some way, and check what is left. Return False if it came to its end before."""
    notes = run.parent / f"{run.name}.{STEPS_FILE}"
    notes.unlink(missing_ok=True)
    before = kept_steps(run)
    pid = start(recipe, run, notes, FULL_DISK_BYTES if kind == "full disk" else None)
    if kind == "full disk":
        code = ended(pid)
        if code == 0:  # there was nothing left to write
            return False
        assert code == 2, code
        error = (run.parent / f"{run.name}.error").read_text()
        assert "the disk is full" in error and "cannot be written" in error, error
        counts["steps lost"] += finished_steps(notes) - before if notes.exists() else 0
        assert kept_steps(run) == before
    elif (code := ends_before(pid, random_moment(draw, notes))) is None:
        signum = signal.Signals[kind]
        os.kill(pid, signum)
        code = ended(pid)
        lost = max(0, finished_steps(notes) - kept_steps(run))
        counts["steps lost"] += lost
        if kind == "SIGKILL":
            assert code == -signal.SIGKILL, code
            assert lost <= EVERY_N_STEPS, lost
        else:
            if code == 0:  # it had written everything
                return False
            assert code in (128 + signum, -signum), code  # -signum: before the training answers signals
            assert lost == 0, (kind, lost)
    else:
        assert code == 0, (code, (run.parent / f"{run.name}.error").read_text() if code == 2 else "")
        return False
    counts[kind] += 1
    counts["in steps"] += notes.exists()
    return True


def metrics(run: Path) -> dict[int, dict[str, float]]:
    """Return all losses, learning rates and scores, by step."""
    found: dict[int, dict[str, float]] = {}
    for text in (run / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        found.setdefault(line.pop("step"), {}).update({k: v for k, v in line.items() if k != "train/data_wait"})
    return found


def assert_same(run: Path, undisturbed: Path) -> None:
    """Check the student to the last bit, the checkpoints that are kept, and every number of the record."""
    ours, theirs = load_model(run).state_dict(), load_model(undisturbed).state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert metrics(run) == metrics(undisturbed)
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == sorted(path.name for path in (undisturbed / "checkpoints").iterdir()), names


def main(num_kills: int, seed: int, folder: Path) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    write_inputs(folder, FEW_STEPS if num_kills <= FEW_KILLS else STEPS)
    draw, counts = random.Random(seed), Counter[str]()
    for kind in ("feature", "mask"):
        pid = start(folder / f"{kind}.yaml", folder / f"{kind}_undisturbed", folder / "notes.txt")
        assert ended(pid) == 0
    killed, number = 0, 0
    while killed < num_kills:
        stage = ("feature", "mask")[number % 2]
        run, recipe = folder / f"{stage}{number}", folder / f"{stage}.yaml"
        number += 1
        most = min(num_kills, killed + -(-num_kills // 2))  # so that a few kills meet both stages
        while killed < most and kill(KINDS[killed % len(KINDS)], recipe, run, draw, counts):
            killed += 1
        pid = start(recipe, run, folder / "notes.txt")
        assert ended(pid) == 0
        assert_same(run, folder / f"{stage}_undisturbed")
        counts[f"{stage} trainings"] += 1
    print(json.dumps({"kills": killed, **counts}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
