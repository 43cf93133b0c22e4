"""What a run was resumed with: refused where the record would not be true, and else written into it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import WeightAveraging

from distill.config.loading import load_recipe, resolved_yaml
from distill.config.paths import absolute_options, absolute_paths
from distill.config.resuming import HELD_OUT, Change, changes
from distill.config.run_directory import RECIPE_FILE
from distill.config.schema import RECIPE_KINDS, FeatureRecipe, MaskRecipe
from distill.config.settings import flatten
from distill.errors import RunError
from distill.files import write_json
from distill.secret import recorded
from distill.training.checkpoint_file import AVERAGED_FROM, RECIPE_KEY
from distill.training.checkpoints import forget_best

CHANGES_FILE = "changes.json"
TEACHER_FILES = ("teacher.name", "teacher.checkpoint")
UNKNOWN_TEACHER = ""  # the hash of the teacher's weights in checkpoints of earlier versions


class RunRecipe(lightning.Callback):
    """The recipe of a run with all that was changed of it while it went on. As a callback it stays in the checkpoints.

    options: by dotted key, as the next steps have them, with absolute paths.
    changed: what the run was resumed with this time. history: what it was resumed with before, as written.
    step: the step from which `changed` holds.
    """

    def __init__(
        self, recipe: FeatureRecipe | MaskRecipe, *, checkpoint: Mapping[str, Any] | None = None, step: int = 0
    ) -> None:
        self.recipe = recipe
        self.step = step
        self.options = absolute_options(options_of_recipe(recipe), type(recipe))
        self.changed: list[Change] = []
        self.history: list[dict[str, Any]] = []
        self.teacher_sha256 = self._begun_teacher = UNKNOWN_TEACHER
        if checkpoint is None:
            return
        kept = checkpoint.get(RECIPE_KEY)
        if kept is None:  # of an earlier version, which had the recipe in the directory alone
            begun = load_recipe(Path(recipe.run) / RECIPE_FILE, kinds=tuple(RECIPE_KINDS), check_paths=False)
            kept = {"options": options_of_recipe(begun), "history": [], "teacher_sha256": UNKNOWN_TEACHER}
        defaults = dict(flatten(asdict(type(recipe)())))
        begun_options = absolute_options(kept["options"], type(recipe))
        self.changed = changes(begun_options, self.options, defaults)
        self.history = kept["history"]
        self._begun_teacher = kept["teacher_sha256"]

    def check(self) -> None:
        """Raise RunError if the run was begun with another value of an option that decided what was learned so far."""
        if refused := [change for change in self.changed if change.is_refused]:
            begun = ", ".join(f"{change.key}={change.before}, not {change.after}" for change in refused)
            raise RunError(
                f"resume=true, but '{self.recipe.run}' was begun with {begun}; give the old value, or another "
                "directory: run=DIR"
            )

    def check_teacher(self, sha256: str) -> None:
        """Keep the hash of the teacher's weights. Raise RunError if the run was begun with other weights."""
        self.teacher_sha256 = sha256
        renamed = [change for change in self.changed if change.key in TEACHER_FILES]
        if self._begun_teacher == sha256:
            self.forget_moved(*TEACHER_FILES)
            return
        if self._begun_teacher == UNKNOWN_TEACHER and not renamed:
            return
        begun = ", ".join(f"{change.key}={change.before}, not {change.after}" for change in renamed)
        raise RunError(
            f"resume=true, but '{self.recipe.run}' was begun with {begun or 'a teacher of other weights'}; "
            "give the old teacher, or another directory: run=DIR"
        )

    def forget_moved(self, *keys: str) -> None:
        """Count options as unchanged whose files have another path and the same content."""
        self.changed = [change for change in self.changed if change.key not in keys]

    @property
    def all_changes(self) -> list[dict[str, Any]]:
        """Return every change of the run, with the step from which it held: the content of changes.json."""
        return [*self.history, *({"step": self.step, **change.as_recorded} for change in self.changed)]

    def yaml(self, *, absolute: bool) -> str:
        """Return the recipe as its last steps have it, with a comment for each change.

        Args:
            absolute: make its paths absolute, for a reader in another working directory. The weights, which are
                published, get them as they were given.
        """
        recipe = absolute_paths(self.recipe) if absolute else self.recipe
        return "".join(f"# {_in_words(entry)}\n" for entry in self.all_changes) + resolved_yaml(recipe)

    def messages(self) -> list[str]:
        """Return a line for each option that the run was resumed with."""
        return [_in_words({"step": self.step, **change.as_recorded}) for change in self.changed]

    def write_changes(self, run: Path) -> None:
        """Write changes.json, or remove one that a lost part of the run left behind."""
        if self.all_changes:
            write_json(run / CHANGES_FILE, self.all_changes, raises=RunError)
        else:
            (run / CHANGES_FILE).unlink(missing_ok=True)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[RECIPE_KEY] = {
            "options": recorded(self.options),
            "history": self.all_changes,
            "teacher_sha256": self.teacher_sha256,
        }

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        callbacks: list[lightning.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        averages = any(isinstance(callback, WeightAveraging) for callback in callbacks)
        if AVERAGED_FROM in checkpoint and not averages:
            pl_module.load_state_dict(checkpoint[AVERAGED_FROM])  # in place of the average
        if any(change.key in HELD_OUT for change in self.changed):
            forget_best(checkpoint["callbacks"])


def options_of_recipe(recipe: object) -> dict[str, Any]:
    """Return the options of a recipe by dotted key, as a recipe's file has them: tuples are lists."""
    pairs = flatten(asdict(recipe))  # type: ignore[call-overload]
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in pairs
        if not (value is None and key.startswith("trainer."))  # as if it was left out
    }


def _in_words(entry: Mapping[str, Any]) -> str:
    after, before = (json.dumps(entry[name]) for name in ("after", "before"))
    return f"from step {entry['step']} on: {entry['key']}={after} (before: {before})"
