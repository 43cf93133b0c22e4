"""Records of finished trainings: the stages that led to a run, read from run directories."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.config.run_directory import read_recipe_tree
from distill.models.checkpoint import STUDENT_FILE, TRAINING_SUFFIX
from distill.training.cost import Cost, read_cost
from distill.training.directory import SCALARS_FILE

TRAINING_KINDS = ("feature", "mask")


@dataclass(frozen=True)
class Training:
    """One finished stage: its run directory, its recipe as a tree, and its cost (None: not recorded)."""

    run: Path
    recipe: dict[str, Any]
    cost: Cost | None

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


def read_trainings(run: Path) -> list[Training]:
    """Read the stages that led to a run, the first one first. Each stage names the run that it started from."""
    trainings: list[Training] = []
    seen: set[Path] = set()
    while (
        run.is_dir() and run.resolve() not in seen and (recipe := read_recipe_tree(run)).get("kind") in TRAINING_KINDS
    ):
        seen.add(run.resolve())
        trainings.append(Training(run, recipe, read_cost(run)))
        run = _run_of(Path(str(recipe.get("student", {}).get("init_from"))))
    return trainings[::-1]


def _run_of(start: Path) -> Path:
    """Return the run directory that a stage started from, whichever of its files was named."""
    if start.suffix == TRAINING_SUFFIX:
        return start.parent.parent
    return start.parent if start.name == STUDENT_FILE else start
