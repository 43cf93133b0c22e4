"""What a comparison lacks is measured here: evaluations that are not there, sizes and speed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.cli.quickstart import run_command
from distill.comparison.entries import Entry
from distill.comparison.join import read_bench
from distill.config.loading import load_recipe
from distill.config.schema import EvaluateRecipe
from distill.errors import RunError
from distill.evaluation.finished import read_evaluation
from distill.evaluation.record import EVALUATION_METRICS_FILE, MODEL_FILE
from distill.models.devices import usable_device
from distill.training.directory import environment

BENCH_FILE, EVALUATIONS = "bench.json", "evaluations"  # in the comparison's directory
BENCH_SECONDS = 2.0  # of timed passes of each model


@dataclass(frozen=True)
class Data:
    """What the models are asked about, as `distill evaluate` takes it."""

    images: Path
    annotations: Path
    max_images: int = 0
    device: str | None = None


def evaluate_missing(entries: Sequence[Entry], recipes: Sequence[str], data: Data, out: Path) -> None:
    """Evaluate each model by each recipe that it has no evaluation of, below OUT/evaluations.

    What an earlier, perhaps interrupted, comparison left there is used. Raises DistillError.
    """
    options = [f"data.images={data.images}", f"data.annotations={data.annotations}"]
    options += [f"data.max_images={data.max_images}"] if data.max_images else []
    for name in recipes:
        recipe = load_recipe(name, [*options, f"run={out}"], kinds=("evaluate",))
        assert isinstance(recipe, EvaluateRecipe)
        for entry in entries:
            is_there = any(protocol.name == recipe.protocol for protocol in entry.evaluations)
            if entry.source is None or is_there:
                continue
            directory = (
                out / EVALUATIONS / re.sub(r"[^\w.@-]+", "_", entry.label) / (recipe.protocol or Path(name).stem)
            )
            if not _is_finished(directory, entry, recipe):
                _evaluate(entry, name, [*options, f"run={directory}"], data.device)
            entry.add(read_evaluation(directory))


def measure(entries: Sequence[Entry], out: Path, device: str | None) -> dict[str, Any] | None:
    """Parameters, MACs and latency at batch 1 in float32; kept in OUT/bench.json and taken from there again.

    Returns:
        a document as `distill bench models` writes it; None without a model whose weights are here.
    """
    from distill.bench.models import bench_models

    present = {entry.name or entry.source: entry.sha256 for entry in entries if entry.source is not None}
    path = out / BENCH_FILE
    if path.is_file():
        document = read_bench(path)
        if {row.get("weights_sha256") for row in document.get("models", [])} >= set(present.values()):
            return document
    if not present:
        return None
    found = bench_models(
        [name for name in present if name is not None],
        batch_size=1,
        precisions=("fp32",),
        device=usable_device(device),
        seconds=BENCH_SECONDS,
    )
    for row in found["models"]:
        row["weights_sha256"] = present[row["model"]]
    machine = environment()
    document = {"machine": {key: machine[key] for key in ("platform", "cpus", "threads", "gpus")}, **found}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return document


def _is_finished(directory: Path, entry: Entry, recipe: EvaluateRecipe) -> bool:
    """Whether an evaluation of these weights over this data is there. Another one is left to `distill evaluate`."""
    if not (directory / EVALUATION_METRICS_FILE).is_file():
        return False
    metrics = read_evaluation(directory).metrics
    wanted = {
        "weights_sha256": entry.sha256,
        "images": recipe.data.images,
        "annotations": recipe.data.annotations,
        "max_images": recipe.data.max_images,
        "multimask": recipe.multimask,
    }
    if differing := [key for key, value in wanted.items() if metrics.get(key) != value]:
        changes = ", ".join(f"{key} was {metrics.get(key)} and is {wanted[key]}" for key in differing)
        raise RunError(f"{directory}: an evaluation of something else ({changes}); remove it, or give another --out")
    return True


def _evaluate(entry: Entry, recipe: str, overrides: Sequence[str], device: str | None) -> None:
    directory = Path(overrides[-1].removeprefix("run="))
    options = [*(["--name", entry.name] if entry.name else []), *(["--device", device] if device else [])]
    resume = ["resume=true"] if (directory / MODEL_FILE).is_file() else []
    run_command(["evaluate", *options, entry.source, recipe, *overrides, *resume])
