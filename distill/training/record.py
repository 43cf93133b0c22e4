"""Records of finished trainings: the stages that led to a run, kept in and read from run directories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from distill.config.names import is_start_path
from distill.config.run_directory import RECIPE_FILE, read_recipe_tree
from distill.config.schema import DataConfig, OptimConfig
from distill.errors import RunError
from distill.files import write_json
from distill.models.checkpoint import STUDENT_FILE, TRAINING_SUFFIX, read_recipe
from distill.outside import Count, convert, read_json, read_scalars
from distill.secret import conceal, recorded
from distill.training.cost import Cost, read_cost
from distill.training.directory import SCALARS_FILE

TRAINING_KINDS = ("feature", "mask")
STAGES_FILE = "stages.json"  # of a run directory: the stages before this one
MEND = "restore it, or remove it"
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


class _Teacher(msgspec.Struct, frozen=True):
    name: str = "?"


class _Student(msgspec.Struct, frozen=True):
    init_from: str | None = None


class _Data(msgspec.Struct):
    images: str
    batch_size: Count = DataConfig.batch_size


class _Optim(msgspec.Struct, frozen=True):
    lr: Annotated[float, Meta(ge=0, le=1e9)] = OptimConfig.lr


class _Tree(msgspec.Struct):
    """What is read of the recipe of a finished training. The rest of it is only shown."""

    kind: Literal["feature", "mask"]
    data: _Data
    teacher: _Teacher = _Teacher()
    student: _Student = _Student()
    optim: _Optim = _Optim()


class _Stage(msgspec.Struct):
    run: str
    recipe: dict[str, Any]
    cost: Cost | None
    lost_start: str | None


class _Stages(msgspec.Struct):
    """The content of stages.json."""

    stages: list[_Stage]
    lost_start: str | None


def check_tree(tree: dict[str, Any], origin: str) -> dict[str, Any]:
    """Check the recipe of a finished training and give the sections that are read their defaults.

    Raises:
        RunError: an option that cards and comparisons show has another type.
    """
    known = msgspec.to_builtins(convert(tree, _Tree, f"{origin}: its recipe", MEND, raises=RunError))
    sections = {name: {**values, **tree.get(name, {})} for name, values in known.items() if isinstance(values, dict)}
    return {**tree, **sections}


def last_scores(run: Path) -> dict[str, float]:
    """Return the last training loss and the last validation scores of a run, by the names of metrics.jsonl."""
    path = run / SCALARS_FILE
    lines = read_scalars(path) if path.is_file() else []
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
                "run": conceal(str(stage.run.absolute())),
                "recipe": stage.recipe,
                "cost": None if stage.cost is None else asdict(stage.cost),
                "lost_start": stage.lost_start,
            }
            for stage in stages
        ]
        write_json(run / STAGES_FILE, {"stages": rows, "lost_start": recorded(lost)}, indent=1, raises=RunError)


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
    recipe = check_tree(recipe, str(run / RECIPE_FILE))
    kept = run / STAGES_FILE
    if kept.is_file():
        stages, lost = _read_kept(kept)
    else:
        stages, lost = _stages_behind(recipe["student"].get("init_from"), seen | {run.resolve()})
    return [*stages, Training(run, recipe, read_cost(run), lost)]


def _read_kept(path: Path) -> tuple[list[Training], str | None]:
    """Read the earlier stages that a run has kept, and what it started from if nothing is known of that."""
    content = read_json(path, _Stages, "record of earlier stages", MEND, raises=RunError)
    stages = [
        Training(Path(row.run), check_tree(row.recipe, str(path)), row.cost, row.lost_start) for row in content.stages
    ]
    return stages, content.lost_start


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
    recipe = read_recipe(weights) if weights.suffix == ".safetensors" else {}
    if recipe.get("kind") not in TRAINING_KINDS:
        return [], None  # a released model
    return [Training(weights.parent, check_tree(recipe, str(weights)), None)], None


def _run_of(start: Path) -> Path:
    """Return the run directory that a checkpoint or a student's file lies in."""
    if start.suffix == TRAINING_SUFFIX:
        return start.parent.parent
    return start.parent if start.suffix == ".safetensors" else start
