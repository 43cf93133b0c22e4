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
from distill.evaluation.run import describe_execution
from distill.evaluation.together import AskedEvaluation, evaluate_together
from distill.export.runtime_files import with_files
from distill.files import write_json
from distill.models.devices import usable_device
from distill.runtimes.execution import Execution
from distill.runtimes.exported import is_exported, num_bytes
from distill.text import print_command, say
from distill.training.directory import environment

BYTES_TOGETHER = 4 << 30  # of models that are in memory at a time; SAM's ViT-H has 2.6 GB
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
    models: Sequence[ComparedModel],
    recipes: Sequence[str],
    data: EvaluationData,
    out: Path,
    device: str | None,
    *,
    execution: Execution | None = None,
) -> list[str]:
    """Evaluate each model by each recipe by which it has no evaluation yet, below OUT/evaluations.

    Each photo is read once for all of them, unless the models are too large to be in memory together. Evaluations that
    an earlier comparison left there are used, and those that were interrupted go on. Models whose weights are not on
    this machine are left out.

    An evaluation that is found counts only if it is of as many photos as `data` asks for. If it is not, the model is
    evaluated again, or the comparison is refused before anything is evaluated.

    Args:
        recipes: names or paths, as `load_recipe` takes them.
        device: None: a GPU if there is one.
        execution: the runtime of all models and its precision; None: torch in float32.
    Returns:
        a note for each evaluation that was found and not used.
    Raises:
        DistillError: a recipe, a model or data that cannot be used, an evaluation of something else in OUT, or
            evaluations of another number of photos.
    """
    execution = execution or Execution()
    loaded = {name: _recipe(name, [*data.overrides, f"run={out}"]) for name in recipes}
    notes = [note for recipe in loaded.values() for note in _set_aside_other_photos(models, recipe.protocol, data)]
    found: list[tuple[ComparedModel, Path]] = []
    missing: list[tuple[ComparedModel, AskedEvaluation]] = []
    for name, recipe in loaded.items():
        for model in models:
            has_evaluation = any(protocol.name == recipe.protocol for protocol in model.evaluations)
            if model.source is None or has_evaluation:
                continue
            folder = re.sub(r"[^\w.@-]+", "_", model.label)
            protocol = (recipe.protocol or Path(name).stem).replace("/", "_")
            directory = out / EVALUATIONS / folder / protocol
            if any(directory == other for _, other in found):  # two recipes of one protocol
                continue
            found.append((model, directory))
            if not _is_finished(directory, model, recipe, execution):
                resume = ["resume=true"] if (directory / MODEL_FILE).is_file() else []
                overrides = [*data.overrides, f"run={directory}", *resume]
                _print_evaluate(model, name, overrides, device, execution)
                own_files = with_files(model.source, execution, name=model.name)
                missing.append((model, AskedEvaluation(model.source, _recipe(name, overrides), model.name, own_files)))
    for group in _groups(missing):
        metrics = evaluate_together([asked for _, asked in group], device=device)
        for (model, asked), of_model in zip(group, metrics, strict=True):
            say("\n".join([f"{model.label}, {asked.recipe.protocol}:", *metrics_lines(of_model)]))
    for model, directory in found:
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


def _recipe(name: str, overrides: Sequence[str]) -> EvaluateRecipe:
    recipe = load_recipe(name, overrides, kinds=("evaluate",))
    assert isinstance(recipe, EvaluateRecipe)
    return recipe


Missing = tuple[ComparedModel, AskedEvaluation]


def _groups(missing: Sequence[Missing]) -> list[list[Missing]]:
    """Put evaluations into groups whose models are in memory together, all evaluations of a model into one group."""
    groups: list[list[Missing]] = []
    room = 0
    for model in {id(model): model for model, _ in missing}.values():
        assert model.source is not None
        size = num_bytes(model.source)
        if not groups or size > room:
            groups.append([])
            room = BYTES_TOGETHER
        room -= size
        groups[-1] += [one for one in missing if one[0] is model]
    return groups


def measure_speed(models: Sequence[ComparedModel], out: Path, device: str | None) -> dict[str, Any] | None:
    """Measure parameters, MACs and latency at batch 1 in float32, and keep them in OUT/bench.json.

    A bench.json that has all models is only read. One of an earlier version lacks the spread of the latency; remove it
    to measure again.

    Returns:
        a document as `distill bench models` writes it, without exported folders; None if no model has its weights on
        this machine.
    """
    from distill.bench.models import ROUNDS, bench_models

    here = [model for model in models if model.source is not None and not is_exported(model.source)]
    present = {model.name or model.source: model.sha256 for model in here}
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


def _is_finished(directory: Path, model: ComparedModel, recipe: EvaluateRecipe, execution: Execution) -> bool:
    """Return whether a directory holds a finished evaluation of these weights over this data.

    Raises:
        RunError: the finished evaluation is of other weights, data, multimask policy, rules or runtime.
    """
    if not (directory / EVALUATION_METRICS_FILE).is_file():
        return False
    metrics = read_evaluation(directory).metrics
    paths = absolute_options({f"data.{key}": metrics.get(key) for key in ("images", "annotations")}, type(recipe))
    metrics = {**metrics, "images": paths["data.images"], "annotations": paths["data.annotations"]}
    data = absolute_paths(recipe).data
    assert model.source is not None
    wanted = {
        "weights_sha256": model.sha256,
        "images": data.images,
        "annotations": data.annotations,
        "max_images": recipe.data.max_images,
        "multimask": recipe.multimask,
        "rules": protocol_rules(recipe),
        "runtime": describe_execution(model.source, execution).get("runtime"),
    }
    if differing := [key for key, value in wanted.items() if metrics.get(key) != value]:
        changes = ", ".join(f"{key} was {metrics.get(key)} and is {wanted[key]}" for key in differing)
        raise RunError(f"{directory}: an evaluation of something else ({changes}); remove it, or give another --out")
    return True


def _print_evaluate(
    model: ComparedModel, name: str, overrides: Sequence[str], device: str | None, execution: Execution
) -> None:
    """Print the command that evaluates a model by the recipe of a name."""
    assert model.source is not None
    options = {"--name": model.name, "--device": device, "--runtime": execution.runtime}
    given = [word for option, value in options.items() if value for word in (option, value)]
    precision = ["--precision", execution.precision] if execution.precision != "fp32" else []
    print_command("evaluate", *given, *precision, model.source, name, *overrides)
