"""`distill evaluate`: judge a model by a protocol, over COCO-format annotations."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from distill.config import EvaluateRecipe
from distill.errors import RunError
from distill.tools.arguments import add_command

if TYPE_CHECKING:
    from distill.datasets.coco import CocoPhoto
    from distill.datasets.evaluation import InstanceScore
    from distill.sam import PromptableModel

RECIPE_FILE, MODEL_FILE = "recipe.yaml", "model.json"
INSTANCES_FILE, METRICS_FILE = "instances.jsonl", "metrics.json"

EPILOG = """\
examples:
  distill evaluate quickstart eval/coco_box data.images=val2017 data.annotations=instances_val2017.json run=runs/box
  distill evaluate runs/l0_mask eval/coco_point data.images=DIR data.annotations=FILE run=runs/l0_point
  distill evaluate --name sam_vit_b sam_vit_b_01ec64.pth eval/coco_box data.images=DIR data.annotations=FILE run=OUT

Writes to the run directory: metrics.json (IoU in 0..1; null: no such instance), instances.jsonl (one line per
instance), recipe.yaml and model.json. An evaluation that was stopped goes on with resume=true.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        subparsers,
        "evaluate",
        "prompted mask IoU of a model over COCO-format annotations",
        EPILOG,
        description="Judge a model: mask IoU from boxes or simulated clicks, at each photo's own resolution.",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a student.safetensors, a run directory, a .pt/.pth, `quickstart`"
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file or a packaged name, such as eval/coco_box")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="options that win over the recipe")
    parser.add_argument("--name", help="which published model a third-party .pt or .pth holds")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps ...; the default is a GPU if there is one")
    parser.set_defaults(run=evaluate)


def evaluate(arguments: argparse.Namespace) -> int:
    """Check everything, then ask, then write the metrics."""
    from distill.recipe import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides, kinds=("evaluate",))
    assert isinstance(recipe, EvaluateRecipe)
    run = Path(recipe.run)
    check_run_directory(run, resume=recipe.resume)

    from distill.checkpoint import load_model
    from distill.datasets.coco import CocoSet
    from distill.datasets.evaluation import Protocol, evaluate_model, photos_to_ask

    photos = photos_to_ask(CocoSet(recipe.data.images, recipe.data.annotations), recipe.data.max_images)
    model = move_to_device(load_model(arguments.model, name=arguments.name), arguments.device)
    record = Record(run, recipe, describe_model(arguments.model), photos)
    started = time.monotonic()
    with _progress(total=len(photos), done=len(record.finished_photos)) as advance:

        def on_photo(scores: list[InstanceScore]) -> None:
            record.add(scores)
            advance()

        protocol = Protocol(recipe.prompt, recipe.multimask, recipe.prompt_batch_size)
        metrics = evaluate_model(model, photos, protocol, finished=record.finished, on_photo=on_photo)
    record.close(metrics, seconds=time.monotonic() - started)
    _report(metrics, run / METRICS_FILE)
    return 0


def check_run_directory(run: Path, *, resume: bool) -> None:
    """Raises RunError when `run` holds something and may not be continued."""
    if run.exists() and not run.is_dir():
        raise RunError(f"run={run}: this is a file; give a directory, new or empty")
    if not run.is_dir() or not any(run.iterdir()):
        return
    if not resume:
        raise RunError(f"run={run}: the directory is not empty; continue it with resume=true, or give another run=")
    if not (run / RECIPE_FILE).is_file() or not (run / MODEL_FILE).is_file():
        raise RunError(f"run={run}: no evaluation was begun here ({MODEL_FILE} is missing); give another run=")


class Record:
    """The run directory of an evaluation. A photo counts as finished when all its instances have their line.

    Raises RunError when the directory belongs to another model or recipe.
    """

    def __init__(self, run: Path, recipe: EvaluateRecipe, model: dict[str, Any], photos: list[CocoPhoto]) -> None:
        from distill.recipe import resolved_yaml

        self.run, self.recipe, self.model = run, recipe, model
        recipe_text = resolved_yaml(replace(recipe, resume=False))
        if (run / MODEL_FILE).is_file():
            _check_same("model", json.loads((run / MODEL_FILE).read_text()), model, run)
            _check_same("recipe", yaml.safe_load((run / RECIPE_FILE).read_text()), yaml.safe_load(recipe_text), run)
        self.finished = read_finished(run / INSTANCES_FILE, photos)
        self.finished_photos = {score.image for score in self.finished}
        run.mkdir(parents=True, exist_ok=True)
        _write(run / RECIPE_FILE, recipe_text)
        _write(run / MODEL_FILE, json.dumps(model, indent=2) + "\n")
        _write(run / INSTANCES_FILE, "".join(map(_line, self.finished)))

    def add(self, scores: list[InstanceScore]) -> None:
        """Append the lines of one photo."""
        with open(self.run / INSTANCES_FILE, "a", encoding="utf-8") as file:
            file.write("".join(map(_line, scores)))

    def close(self, metrics: dict[str, float | int | None], *, seconds: float) -> None:
        """Write metrics.json: the numbers, and the protocol that gave them."""
        prompt = self.recipe.prompt
        protocol = {
            "prompt": prompt.kind,
            "num_clicks": prompt.num_clicks if prompt.kind == "point" else None,
            "multimask": self.recipe.multimask,
            "resolution": "original",
            "images": self.recipe.data.images,
            "annotations": self.recipe.data.annotations,
            "max_images": self.recipe.data.max_images,
        }
        document = {**metrics, **protocol, **self.model, "seconds": round(seconds, 1)}
        _write(self.run / METRICS_FILE, json.dumps(document, indent=2) + "\n")


def read_finished(path: Path, photos: list[CocoPhoto]) -> list[InstanceScore]:
    """The scores of the photos that instances.jsonl holds completely; a line that a kill cut short is left out."""
    from distill.datasets.evaluation import InstanceScore

    by_photo: dict[str, dict[int, InstanceScore]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            score = InstanceScore(**json.loads(line))
        except (json.JSONDecodeError, TypeError):
            continue
        by_photo.setdefault(score.image, {})[score.annotation_id] = score
    finished = []
    for photo in photos:
        scores = by_photo.get(photo.key, {})
        if set(scores) == {instance.id for instance in photo.instances}:
            finished += [scores[instance.id] for instance in photo.instances]
    return finished


def describe_model(source: str) -> dict[str, Any]:
    """What tells a model from all others: where it came from, and the hash of its file."""
    from distill.checkpoint import find_weights, sha256_file

    return {"model": source, "weights_sha256": sha256_file(find_weights(source))}


def _check_same(what: str, begun: dict[str, Any], now: dict[str, Any], run: Path) -> None:
    """Two (nested) mappings agree; the paths `run` and `model` may be spelled differently."""
    old, new = dict(_flatten(begun)), dict(_flatten(now))
    keys = [key for key in {**old, **new} if key not in ("run", "model") and old.get(key) != new.get(key)]
    if keys:
        differences = ", ".join(f"{key} was {old.get(key)} and is {new.get(key)}" for key in keys)
        raise RunError(f"run={run}: begun with another {what} ({differences}); make them equal, or give another run=")


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _line(score: InstanceScore) -> str:
    return json.dumps(asdict(score)) + "\n"


def _write(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def move_to_device(model: PromptableModel, device: str | None) -> PromptableModel:
    """The model on a device, by default a GPU if there is one. Raises RunError when the device is not there."""
    import torch

    try:
        return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError) as error:  # torch raises AssertionError for a backend it was built without
        reason = str(error).splitlines()[0]
        raise RunError(f"--device {device}: not usable on this machine ({reason}); try --device cpu") from error


@contextmanager
def _progress(*, total: int, done: int) -> Iterator[Any]:
    """A bar on stderr with the time that is left; gives a function that is called after each photo."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("photos"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        "left",
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("photos", total=total, completed=done)
        yield lambda: progress.advance(task)


def _report(metrics: dict[str, float | int | None], path: Path) -> None:
    for name, value in metrics.items():
        shown = "no such instance" if value is None else f"{value:.4f}" if isinstance(value, float) else value
        print(f"{name:14} {shown}")
    print(f"written to {path}")
