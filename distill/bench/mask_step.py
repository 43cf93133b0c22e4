"""`distill bench mask-step`: a training step of the mask stage beside the published formulation of it."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from distill.errors import DistillError

if TYPE_CHECKING:
    from rich.table import Table

    from distill.bench.mask_step_forms import StepSetup

ORDER = ("ours", "published", "encoder")  # in turns: a machine that slows down slows all alike
GIGA = 1e9


def bench_mask_step(setup: StepSetup, *, rounds: int) -> dict[str, Any]:
    """Measure; what `--json` prints.

    Every formulation runs `rounds` times in a process of its own, in turns, from the same weights, photos, masks and
    prompts. Seconds are medians over all steps; bytes above idle are the most that the process held, less the most
    that it held before its first step, the median over the processes.

    Returns:
        speed_ratio: published / ours in wall time, core_time_ratio: in the time of all cores (a busy machine tells the
        same); memory_ratio: ours / published; relative_loss_difference and relative_gradient_norm_difference: of ours
        to the published.
    """
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ORDER}
    for _ in range(rounds):
        for name in ORDER:
            runs[name].append(_run(name, setup))
    found: dict[str, Any] = {"setup": asdict(setup) | {"rounds": rounds}}
    found |= {name: _summary(of_name) for name, of_name in runs.items()}
    ours, published = found["ours"], found["published"]
    return found | {
        "speed_ratio": published["seconds"] / ours["seconds"],
        "core_time_ratio": published["core_seconds"] / ours["core_seconds"],
        "memory_ratio": ours["bytes_above_idle"] / published["bytes_above_idle"],
        "relative_loss_difference": _difference(ours["loss"], published["loss"]),
        "relative_gradient_norm_difference": _difference(ours["gradient_norm"], published["gradient_norm"]),
    }


def tables(found: dict[str, Any]) -> list[Table]:
    """The measurements for a terminal."""
    from rich.table import Table

    setup = found["setup"]
    title = f"{setup['images']} x {setup['masks']} masks, {setup['model']}, forward and backward"
    table = Table("formulation", "seconds", "core seconds", "GB above idle", "loss", "gradient norm", title=title)
    for name in ORDER:
        row = found[name]
        numbers = (row["seconds"], row["core_seconds"], row["bytes_above_idle"] / GIGA)
        compared = (row["loss"], row["gradient_norm"]) if name != "encoder" else ()
        table.add_row(name, *(f"{number:,.2f}" for number in numbers), *(f"{number:.4f}" for number in compared))
    table.caption = (
        f"{found['speed_ratio']:.2f} times the speed ({found['core_time_ratio']:.2f} in core time), "
        f"{found['memory_ratio']:.1%} of the memory, loss {found['relative_loss_difference']:+.2%}"
    )
    return [table]


def _run(name: str, setup: StepSetup) -> dict[str, Any]:
    command = [sys.executable, "-m", "distill.bench.mask_step_forms", name, json.dumps(asdict(setup))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        cause = "it ran out of memory; ask for fewer --images or --masks" if done.returncode == -9 else done.stderr
        raise DistillError(f"the formulation '{name}' failed: {cause.strip()[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    return {
        "seconds": statistics.median(seconds for run in runs for seconds in run["seconds"]),
        "core_seconds": statistics.median(seconds for run in runs for seconds in run["core_seconds"]),
        "bytes_above_idle": statistics.median(run["peak_bytes"] - run["idle_bytes"] for run in runs),
        "loss": runs[0]["loss"],
        "gradient_norm": runs[0]["gradient_norm"],
    }


def _difference(ours: float, theirs: float) -> float:
    return (ours - theirs) / theirs
