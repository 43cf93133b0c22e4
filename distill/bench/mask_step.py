"""A training step of the mask stage, timed beside the published formulation of it: `distill bench mask-step`."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from distill.bench.fresh_process import run_formulation

if TYPE_CHECKING:
    from rich.table import Table

    from distill.bench.mask_step_forms import StepSetup

FORMULATIONS = "distill.bench.mask_step_forms"
ORDER = ("ours", "published", "encoder")  # they take turns: a machine that slows down slows all alike
GIGA = 1e9


def bench_mask_step(setup: StepSetup, *, rounds: int) -> dict[str, Any]:
    """Measure a training step in each formulation.

    Every formulation runs `rounds` times, each time in a process of its own. They take turns, from the same weights,
    photos, masks and prompts. Seconds are medians over all steps. Bytes above idle are the most that a process held,
    less the most that it held before its first step; they are the median over the processes.

    Returns:
        what `--json` prints: the setup, a summary of each formulation, and
        speed_ratio: published / ours in wall time.
        core_time_ratio: published / ours in the time of all cores, which a busy machine does not change.
        memory_ratio: ours / published.
        relative_loss_difference, relative_gradient_norm_difference: ours - published, as a share of the published.
    """
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ORDER}
    for _ in range(rounds):
        for name in ORDER:
            runs[name].append(
                run_formulation(FORMULATIONS, name, json.dumps(asdict(setup)), less="--images or --masks")
            )
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
    """Return the measurements as tables for a terminal."""
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
