"""Errors that a user can mend. Each message is one clear line: what was wrong, where, and the mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DistillError(Exception):
    """A mistake in what the user gave us, or a condition of the machine. The command line prints it and exits 2."""


class RecipeError(DistillError):
    """One or more mistakes in a recipe; `problems` holds one line for each."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.problems = problems
        count = "1 error" if len(problems) == 1 else f"{len(problems)} errors"
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  {problem}" for problem in problems))


class CheckpointError(DistillError):
    """A model file that is missing, damaged, or of another model."""


class DataError(DistillError):
    """Photographs, annotations or shards that are missing, damaged or inconsistent."""


class CacheError(DistillError):
    """A teacher-embedding cache that is missing, stale or damaged."""


class RunError(DistillError):
    """A run directory that cannot be used, or a run that cannot go on."""


class Interrupted(BaseException):
    """A signal that ended the work: no error, and no code but the outermost should stop it.

    step: finished steps of the training; None outside of steps.
    message: for the user; "" if another process says it.
    exit_code: 128 and the signal's number, as shells report it.
    """

    def __init__(self, signum: int, *, step: int | None = None) -> None:
        super().__init__(signum)
        self.signum = signum
        self.step = step
        self.message = ""
        self.exit_code = 128 + signum


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return the hint that ends an error about an unknown name: the near names, else all names (up to 20)."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.6)
    if near:
        return "Did you mean " + " or ".join(f"'{choice}'" for choice in near) + "?"
    shown = ", ".join(choices[:20])
    return f"Known: {shown}{', ...' if len(choices) > 20 else ''}"
