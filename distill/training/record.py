"""Records of finished trainings: the stages that led to a run, kept in and read from run directories."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from distill.config.names import is_start_path
from distill.config.run_directory import read_recipe_tree
from distill.errors import RunError
from distill.files import write_json
from distill.models.checkpoint import STUDENT_FILE, TRAINING_SUFFIX, read_metadata
from distill.training.cost import Cost, read_cost
from distill.training.directory import SCALARS_FILE

TRAINING_KINDS = ("feature", "mask")
STAGES_FILE = "stages.json"  # of a run directory: the stages before this one
RELEASED_SUFFIXES = (".pt", ".pth")  # files that others published; no stage of ours made them


@dataclass(frozen=True)
class Training:
    """One finished stage: its run directory, its recipe as a tree, and its cost (None: not recorded).

    lost_start: what the student started from, if an earlier stage made it of which no record is left.
    """

    run: Path
    recipe: dict[str, Any]
    cost: Cost | None
    lost_start: str | None = None

    @property
    def teacher(self) -> str:
        """The name or path of the teacher; "?" if the recipe names none."""
        return str(self.recipe.get("teacher", {}).get("name", "?"))


def last_scores(run: Path) -> dict[str, float]:
    """Return the last training loss and the last validation scores of a run, by the names of metrics.jsonl."""
    path = run / SCALARS_FILE
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    wanted = {name for line in lines for name in line if name == "train/loss" or name.startswith("val/")}
    return {name: next(line[name] for line in reversed(lines) if name in line) for name in sorted(wanted)}


def write_earlier_stages(run: Path, init_from: str | None) -> None:
    """Keep in a run directory what is known of the stages before it, so that they may be moved or removed.

    Args:
        init_from: the recipe's `student.init_from`.
    """
    if (run / STAGES_FILE).is_file():  # of a run that goes on
        return
    stages, lost = _stages_behind(init_from, set())
    if stages or lost is not None:
        rows = [
            {
                "run": str(stage.run.absolute()),
                "recipe": stage.recipe,
                "cost": None if stage.cost is None else asdict(stage.cost),
                "lost_start": stage.lost_start,
            }
            for stage in stages
        ]
        write_json(run / STAGES_FILE, {"stages": rows, "lost_start": lost}, indent=1, raises=RunError)


def read_trainings(run: Path) -> list[Training]:
    """Read the stages that led to a run, the first one first.

    The run itself has kept the earlier ones; those of an older version are looked for where they were.

    Raises:
        RunError: a record cannot be read.
    """
    return _read_trainings(run, set())


def lost_start(trainings: Sequence[Training]) -> str | None:
    """Return what the first of some stages started from, if an earlier stage made it of which no record is left."""
    return trainings[0].lost_start if trainings else None


def _read_trainings(run: Path, seen: set[Path]) -> list[Training]:
    recipe = read_recipe_tree(run) if run.is_dir() and run.resolve() not in seen else {}
    if recipe.get("kind") not in TRAINING_KINDS:
        return []
    kept = run / STAGES_FILE
    if kept.is_file():
        stages, lost = _read_kept(kept)
    else:
        stages, lost = _stages_behind(recipe.get("student", {}).get("init_from"), seen | {run.resolve()})
    return [*stages, Training(run, recipe, read_cost(run), lost)]


def _read_kept(path: Path) -> tuple[list[Training], str | None]:
    """Read the earlier stages that a run has kept, and what it started from if nothing is known of that."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        stages = [
            Training(
                Path(row["run"]), dict(row["recipe"]), Cost(**row["cost"]) if row["cost"] else None, row["lost_start"]
            )
            for row in content["stages"]
        ]
        return stages, content["lost_start"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: not what distill wrote ({error}); restore it, or remove it") from error


def _stages_behind(init_from: str | None, seen: set[Path]) -> tuple[list[Training], str | None]:
    """Return the stages that trained what a student starts from; or else its path, if nothing is known of them."""
    if init_from is None or not is_start_path(init_from):
        return [], None
    start = Path(init_from)
    if stages := _read_trainings(_run_of(start), seen):
        return stages, None
    weights = start / STUDENT_FILE if start.is_dir() else start
    if not weights.exists():
        return [], None if start.suffix in RELEASED_SUFFIXES else init_from
    recipe = yaml.safe_load(read_metadata(weights).get("recipe", "")) if weights.suffix == ".safetensors" else None
    if not isinstance(recipe, dict) or recipe.get("kind") not in TRAINING_KINDS:
        return [], None  # a released model
    return [Training(weights.parent, recipe, None)], None


def _run_of(start: Path) -> Path:
    """Return the run directory that a checkpoint or a student's file lies in."""
    if start.suffix == TRAINING_SUFFIX:
        return start.parent.parent
    return start.parent if start.suffix == ".safetensors" else start
