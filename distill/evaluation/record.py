"""The run directory of an evaluation: the scores so far, photo by photo, and the files at the end.

`evaluation.finished` reads these files back.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import yaml

from distill.config.run_directory import RECIPE_FILE, check_run_directory, read_recipe_tree
from distill.errors import RunError
from distill.evaluation.written import read_metrics, read_object
from distill.files import TEMPORARY_SUFFIX, write_errors, write_json, write_text
from distill.lock import contents
from distill.outside import reason
from distill.secret import FromEnvironment, is_same, recorded

if TYPE_CHECKING:
    from distill.config.loading import EvaluationRecipe
    from distill.evaluation.evaluator import EvaluationProtocol, Photo, Summary
    from distill.evaluation.prompting import InstanceScore, PhotoScores

MODEL_FILE, DATA_FILE = "model.json", "data.json"
INSTANCES_FILE, RESULTS_FILE, EVALUATION_METRICS_FILE = "instances.jsonl", "results.json", "metrics.json"
MODEL_KEYS = {"model", "weights_sha256"}
OWN_FIELD = ("kind", "num_clicks")  # options of prompts that have a field of their own in metrics.json
PARTIAL_DIR = "partial"  # of an evaluation that runs: one line per photo, one file per process and start


class Ranks(Protocol):
    """The processes of an evaluation, as lightning.Fabric has them."""

    @property
    def global_rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...

    def barrier(self) -> None:
        """Wait for all processes."""
        ...


class OneProcess:
    """The ranks of an evaluation in one process."""

    global_rank, world_size = 0, 1

    def barrier(self) -> None:
        """Return at once: there is no other process."""


class Record:
    """The run directory of an evaluation, in one of its processes.

    A photo is finished when its line is complete. So a kill loses only the photos under way, and a restart may have
    another number of processes. metrics.json is written last, so an evaluation that has it is finished.

    Args:
        model, data: the inputs beside the recipe that the scores depend on, kept in model.json and data.json.
    Raises:
        RunError: the directory belongs to something else, or to another model, recipe or data.
    """

    def __init__(
        self, run: Path, recipe: EvaluationRecipe, model: dict[str, Any], data: dict[str, Any], ranks: Ranks
    ) -> None:
        from distill.config.loading import resolved_yaml
        from distill.config.paths import absolute_paths

        recipe = absolute_paths(recipe)  # its readers may be in another working directory
        self.run, self.recipe, self.model, self.data, self.ranks = run, recipe, model, data, ranks
        leftovers = _leftovers(run)
        if leftovers is None:
            check_run_directory(run, resume=recipe.resume, what="evaluation", first_files=(RECIPE_FILE, MODEL_FILE))
        recipe_text = resolved_yaml(replace(recipe, resume=False))
        if leftovers is None and (run / MODEL_FILE).is_file():
            self._check_begun(recipe_text)
        ranks.barrier()  # all processes have checked the directory before one writes
        if ranks.global_rank == 0:
            with write_errors(run, RunError):
                run.mkdir(parents=True, exist_ok=True)
                for path in leftovers or ():
                    path.unlink()
            for name, content in ((MODEL_FILE, model), (DATA_FILE, data)):
                write_json(run / name, recorded(content), raises=RunError)
            write_text(run / RECIPE_FILE, recipe_text, raises=RunError)  # the last: it says that the others are there
        ranks.barrier()

    def _check_begun(self, recipe_text: str) -> None:
        """Raise RunError if the directory's evaluation was begun with another model, recipe or data."""
        from distill.config.paths import absolute_options
        from distill.config.settings import flatten

        run, model = self.run, self.model
        named = model["weights_sha256"] is None  # a baseline: its name alone says which
        begun_model = read_object(run / MODEL_FILE, "record of the model")
        _check_same("model", begun_model, model, run, may_differ=() if named else MAY_DIFFER)
        begun = dict(flatten(read_recipe_tree(run)))
        begun = absolute_options(begun, type(self.recipe))  # those of earlier versions are relative
        begun = {**_defaults(type(self.recipe)), **begun}  # and lack the options that are new since then
        now = dict(flatten(yaml.safe_load(recipe_text)))
        given = {key: value for key, value in flatten(asdict(self.recipe)) if isinstance(value, FromEnvironment)}
        _check_same("recipe", begun, {**now, **given}, run)
        if (run / DATA_FILE).is_file():
            _check_same("set of files", read_object(run / DATA_FILE, "record of the data"), self.data, run)

    @property
    def is_finished(self) -> bool:
        """Whether metrics.json is written."""
        return (self.run / EVALUATION_METRICS_FILE).is_file()

    def read_metrics(self) -> dict[str, Any]:
        """Return the content of metrics.json of a finished evaluation."""
        return read_metrics(self.run / EVALUATION_METRICS_FILE)

    def begin(self, evaluation: EvaluationProtocol[Photo]) -> list[Photo]:
        """Return the photos that are left to this process: every n-th of those that no process has finished."""
        with write_errors(self.run, RunError):
            (self.run / PARTIAL_DIR).mkdir(exist_ok=True)
        finished = self.finished()
        left = [photo for photo in evaluation.photos if photo.key not in finished]
        rank = self.ranks.global_rank
        starts = (self.run / PARTIAL_DIR / f"rank{rank}_{start}.jsonl" for start in itertools.count())
        self._lines = next(path for path in starts if not path.exists())
        self.ranks.barrier()  # all processes have read the same lines before one adds another
        return left[rank :: self.ranks.world_size]

    def add(self, found: PhotoScores) -> None:
        """Append the line of one photo. Raises RunError when the disk is full: the lines so far are kept."""
        note = "finished photos are kept, and resume=true goes on with them"
        with write_errors(self._lines, RunError, note=note), open(self._lines, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(found)) + "\n")

    def finished(self) -> dict[str, PhotoScores]:
        """Read the scores of all processes, by photo. A line that a kill cut short is left out."""
        from distill.evaluation.prompting import PhotoScores

        found = {}
        for path in sorted((self.run / PARTIAL_DIR).glob("*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = msgspec.json.decode(line, type=PhotoScores)
                except msgspec.ValidationError as error:
                    raise RunError(
                        f"{path}: not the scores of a photo ({reason(error)}); give another run=DIR"
                    ) from error
                except msgspec.DecodeError:
                    continue
                found[row.image] = row
        return found

    def close(self, evaluation: EvaluationProtocol[Any], seconds: float, num_photos: int) -> dict[str, Any]:
        """Write the files when all processes are done, and return the content of metrics.json.

        Only the first process calls it.
        """
        finished = self.finished()
        found = [finished[photo.key] for photo in evaluation.photos]
        self._write_rows(found, evaluation.image_ids)
        metrics = write_metrics(
            self,
            evaluation.summarize(found),
            {
                "date": date.today().isoformat(),
                "seconds": round(seconds, 1),
                "photos_per_second": round(num_photos / max(seconds, 1e-9), 3),
            },
        )
        shutil.rmtree(self.run / PARTIAL_DIR)
        return metrics

    def _write_rows(self, found: list[PhotoScores], image_ids: Mapping[str, int]) -> None:
        from distill.evaluation.detector_boxes import result_row

        scores = [score for of_photo in found for score in of_photo.scores]
        results = [result_row(score, image_ids[score.image]) for score in scores]
        write_text(self.run / RESULTS_FILE, json.dumps(results) + "\n")
        kept = [] if self.recipe.kind == "everything" else scores  # thousands of masks without a prompt
        write_text(self.run / INSTANCES_FILE, "".join(map(_line, kept)))


def write_metrics(record: Record, summary: Summary, further: Mapping[str, Any]) -> dict[str, Any]:
    """Write metrics.json: the metrics, their intervals, and the protocol, data and model that they belong to.

    Args:
        further: what else to keep, such as the seconds that it took.
    Returns:
        the content.
    """
    content = {
        **summary.metrics,
        "intervals": {name: list(interval) for name, interval in summary.intervals.items()},
        **recorded({**describe_protocol(record.recipe), **record.data}),
        **record.model,
        **further,
    }
    write_json(record.run / EVALUATION_METRICS_FILE, content)
    return content


def describe_protocol(recipe: EvaluationRecipe) -> dict[str, Any]:
    """Return the protocol of a recipe and its data, as metrics.json keeps them."""
    prompt: Any = getattr(recipe, "prompt", None)
    data: Any = getattr(recipe, "data", recipe)  # a recipe of many sets has no data of its own
    kind = getattr(prompt, "kind", None)
    return {
        "kind": recipe.kind,
        "protocol": recipe.protocol,
        "prompt": kind,
        "num_clicks": getattr(prompt, "num_clicks", None) if kind == "point" else None,
        "multimask": getattr(recipe, "multimask", None),
        "rules": protocol_rules(recipe),
        "resolution": "original",
        "images": getattr(data, "images", None),
        "annotations": getattr(data, "annotations", None),
        "detections": getattr(data, "detections", None),
        "max_images": data.max_images,
    }


def protocol_rules(recipe: EvaluationRecipe) -> str | None:
    """Return the options of prompts and instances that are not the defaults, as the command line has them.

    Return None if all are. The kind of prompt, the clicks and `multimask` have fields of their own.
    """
    from distill.config.schema import EvaluatePromptConfig, EvaluateRecipe, InstanceConfig

    if not isinstance(recipe, EvaluateRecipe):
        return None
    pairs = [("multimask_later", recipe.multimask_later, None)]
    for section, given, default in (
        ("prompt", recipe.prompt, EvaluatePromptConfig()),
        ("instances", recipe.instances, InstanceConfig()),
    ):
        usual = asdict(default)
        pairs += [
            (f"{section}.{key}", value, usual[key]) for key, value in asdict(given).items() if key not in OWN_FIELD
        ]
    texts = [f"{key}={json.dumps(value)}" for key, value, usual in pairs if value != usual]
    return " ".join(texts) or None


def _leftovers(run: Path) -> list[Path] | None:
    """Return the files of an evaluation whose start was cut short, as by a full disk: its recipe is missing.

    Return None for a directory that is empty, or holds something else.
    """
    found = contents(run)
    temporary = tuple(f"{name}." for name in (MODEL_FILE, DATA_FILE, RECIPE_FILE))
    for path in found:
        is_temporary = path.suffix == TEMPORARY_SUFFIX and path.name.startswith(temporary)
        if not path.is_file() or not (is_temporary or path.name in (MODEL_FILE, DATA_FILE)):
            return None
    if run / DATA_FILE in found and run / MODEL_FILE not in found:  # which would be written before it
        return None
    if run / MODEL_FILE in found and set(read_object(run / MODEL_FILE, "record of the model")) != MODEL_KEYS:
        return None
    return found or None


def _defaults(recipe_class: type[EvaluationRecipe]) -> dict[str, Any]:
    """Return the options of a recipe that have a default, by dotted key."""
    from omegaconf import OmegaConf

    from distill.config.settings import flatten

    tree = yaml.safe_load(OmegaConf.to_yaml(OmegaConf.structured(recipe_class)))
    return {key: value for key, value in flatten(tree) if value != "???"}


# Options that may differ between an evaluation and its continuation: they spell paths or change only the speed.
MAY_DIFFER = ("run", "model", "prompt_batch_size", "photos_at_once", "num_workers", "grid.points_per_batch")


def _check_same(
    what: str, begun: dict[str, Any], now: dict[str, Any], run: Path, *, may_differ: Sequence[str] = MAY_DIFFER
) -> None:
    """Raise RunError if two (nested) mappings differ in more than the keys that may."""
    from distill.config.settings import flatten

    old, new = dict(flatten(begun)), dict(flatten(now))
    keys = [key for key in {**old, **new} if key not in may_differ and not is_same(old.get(key), new.get(key))]
    if keys:
        differences = ", ".join(f"{key} was {old.get(key)} and is {recorded(new.get(key))}" for key in keys)
        raise RunError(f"run={run}: begun with another {what} ({differences}); make them equal, or give another run=")


def _line(score: InstanceScore) -> str:
    row = asdict(score)
    del row["segmentation"]  # in results.json
    if score.click_ious is None:
        del row["click_ious"]
    return json.dumps(row) + "\n"
