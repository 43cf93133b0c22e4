"""Measurements that a comparison lacks: evaluations, sizes and speed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.cards.measured import read_bench
from distill.comparison.directory import BENCH_FILE, EVALUATIONS
from distill.comparison.models import ComparedModel
from distill.config.loading import load_recipe
from distill.config.paths import absolute_options, absolute_paths
from distill.config.schema import EvaluateRecipe
from distill.errors import RunError
from distill.evaluation.finished import metrics_lines, read_evaluation
from distill.evaluation.record import EVALUATION_METRICS_FILE, MODEL_FILE, protocol_rules
from distill.evaluation.run import evaluate_recipe
from distill.files import write_json
from distill.models.devices import usable_device
from distill.text import print_command, say
from distill.training.directory import environment

BENCH_SECONDS = 2.0  # of timed passes of each model


@dataclass(frozen=True)
class EvaluationData:
    """The data that models are evaluated on.

    images: a directory of photos. annotations: their COCO-format instances. max_images: the first photos; 0: all.
    """

    images: Path
    annotations: Path
    max_images: int = 0

    @property
    def overrides(self) -> list[str]:
        """The data as overrides of an evaluation's recipe."""
        first = [f"data.max_images={self.max_images}"] if self.max_images else []
        return [f"data.images={self.images}", f"data.annotations={self.annotations}", *first]


def evaluate_missing(
    models: Sequence[ComparedModel], recipes: Sequence[str], data: EvaluationData, out: Path, device: str | None
) -> list[str]:
    """Evaluate each model by each recipe by which it has no evaluation yet, below OUT/evaluations.

    Evaluations that an earlier comparison left there are used, and those that were interrupted go on. Models whose
    weights are not on this machine are left out.

    An evaluation that is found counts only if it is of as many photos as `data` asks for. If it is not, the model is
    evaluated again, or the comparison is refused before anything is evaluated.

    Args:
        recipes: names or paths, as `load_recipe` takes them.
        device: None: a GPU if there is one.
    Returns:
        a note for each evaluation that was found and not used.
    Raises:
        DistillError: a recipe, a model or data that cannot be used, an evaluation of something else in OUT, or
            evaluations of another number of photos.
    """
    loaded: dict[str, EvaluateRecipe] = {}
    for name in recipes:
        recipe = load_recipe(name, [*data.overrides, f"run={out}"], kinds=("evaluate",))
        assert isinstance(recipe, EvaluateRecipe)
        loaded[name] = recipe
    notes = [note for recipe in loaded.values() for note in _set_aside_other_photos(models, recipe.protocol, data)]
    for name, recipe in loaded.items():
        for model in models:
            has_evaluation = any(protocol.name == recipe.protocol for protocol in model.evaluations)
            if model.source is None or has_evaluation:
                continue
            folder = re.sub(r"[^\w.@-]+", "_", model.label)
            protocol = (recipe.protocol or Path(name).stem).replace("/", "_")
            directory = out / EVALUATIONS / folder / protocol
            if not _is_finished(directory, model, recipe):
                resume = ["resume=true"] if (directory / MODEL_FILE).is_file() else []
                _evaluate(model, name, [*data.overrides, f"run={directory}", *resume], device)
            model.add(read_evaluation(directory))
    return notes


def _set_aside_other_photos(models: Sequence[ComparedModel], protocol: str | None, data: EvaluationData) -> list[str]:
    """Take from the models the evaluations by a protocol that are of another number of photos than `data` asks for.

    Without a number, all evaluations stay, but none may be missing: it would be of all photos, and the others not.

    Returns:
        a note for each evaluation that was taken.
    Raises:
        RunError: a model cannot be evaluated again, or the number is missing.
    """
    notes = []
    found = [(model, key) for model in models for key in model.evaluations if key.name == protocol]
    others = [
        (model, key, limit)
        for model, key in found
        if (limit := model.evaluations[key].metrics.get("max_images") or 0) != data.max_images
    ]
    is_missing = len({id(model) for model, _ in found}) < sum(model.source is not None for model in models)
    for model, key, limit in others:
        place = model.evaluations[key].directory
        covers = f"the first {limit} photos" if limit else "all photos"
        if not data.max_images:
            if is_missing:
                raise RunError(
                    f"{place}: the evaluation of {model.label} is of {covers}, and the others would be of all: give "
                    f"--max-images {limit}, or leave it out"
                )
            continue
        wanted = f"--max-images {data.max_images}"
        if model.source is None:
            raise RunError(
                f"{wanted}: {place} is of {covers}, and the weights of {model.label} are not here to evaluate again: "
                f"leave the model out, or give {f'--max-images {limit}' if limit else 'no --max-images'}"
            )
        del model.evaluations[key]
        notes.append(f"{model.label}: {place} is of {covers}; evaluated again because of {wanted}")
    return notes


def measure_speed(models: Sequence[ComparedModel], out: Path, device: str | None) -> dict[str, Any] | None:
    """Measure parameters, MACs and latency at batch 1 in float32, and keep them in OUT/bench.json.

    A bench.json that has all models is only read. One of an earlier version lacks the spread of the latency; remove it
    to measure again.

    Returns:
        a document as `distill bench models` writes it; None if no model has its weights on this machine.
    """
    from distill.bench.models import ROUNDS, bench_models

    present = {model.name or model.source: model.sha256 for model in models if model.source is not None}
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
        least_repeats=ROUNDS,  # a slow encoder has a spread too
    )
    for row in found["models"]:
        row["weights_sha256"] = present[row["model"]]
    machine = environment()
    shown = {key: machine[key] for key in ("platform", "processor", "cpus", "threads", "gpus")}
    document = {"date": machine["started"][:10], "machine": shown, **found}
    write_json(path, document, indent=1, raises=RunError)
    return document


def _is_finished(directory: Path, model: ComparedModel, recipe: EvaluateRecipe) -> bool:
    """Return whether a directory holds a finished evaluation of these weights over this data.

    Raises:
        RunError: the finished evaluation is of other weights, data, multimask policy or rules.
    """
    if not (directory / EVALUATION_METRICS_FILE).is_file():
        return False
    metrics = read_evaluation(directory).metrics
    paths = absolute_options({f"data.{key}": metrics.get(key) for key in ("images", "annotations")}, type(recipe))
    metrics = {**metrics, "images": paths["data.images"], "annotations": paths["data.annotations"]}
    data = absolute_paths(recipe).data
    wanted = {
        "weights_sha256": model.sha256,
        "images": data.images,
        "annotations": data.annotations,
        "max_images": recipe.data.max_images,
        "multimask": recipe.multimask,
        "rules": protocol_rules(recipe),
    }
    if differing := [key for key, value in wanted.items() if metrics.get(key) != value]:
        changes = ", ".join(f"{key} was {metrics.get(key)} and is {wanted[key]}" for key in differing)
        raise RunError(f"{directory}: an evaluation of something else ({changes}); remove it, or give another --out")
    return True


def _evaluate(model: ComparedModel, name: str, overrides: Sequence[str], device: str | None) -> None:
    """Evaluate a model by the recipe of a name, and print the command that would do the same."""
    assert model.source is not None
    options = [*(["--name", model.name] if model.name else []), *(["--device", device] if device else [])]
    print_command("evaluate", *options, model.source, name, *overrides)
    recipe = load_recipe(name, overrides, kinds=("evaluate",))
    assert isinstance(recipe, EvaluateRecipe)
    metrics = evaluate_recipe(model.source, recipe, name=model.name, device=device)
    say("\n".join(metrics_lines(metrics)))
