"""The rule for run directories, the same for trainings and evaluations: a directory that holds something is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill import outside
from distill.errors import RunError
from distill.lock import contents

RECIPE_FILE = "recipe.yaml"  # the resolved recipe; every run writes it before it starts


def check_run_directory(
    run: Path, *, resume: bool, what: str = "run", first_files: Sequence[str] = (RECIPE_FILE,)
) -> bool:
    """Return whether a run directory holds a run to continue. Writes nothing.

    Args:
        run: the recipe's `run`.
        resume: the recipe's `resume`; without it, only an absent or empty directory is accepted.
        what: what is continued, for the message.
        first_files: the files that such a run writes before anything else.
    Returns:
        False for an absent or empty directory.
    Raises:
        RunError: the path is a file, the directory holds something and `resume` is off, or one of `first_files` is
            missing.
    """
    if run.exists() and not run.is_dir():
        raise RunError(f"run '{run}' is a file; give a directory: run=DIR")
    if not contents(run):
        return False
    if not resume:
        raise RunError(f"run directory '{run}' is not empty; go on with it (resume=true), or give another (run=DIR)")
    for name in first_files:
        if not (run / name).is_file():
            raise RunError(f"resume=true, but '{run}' holds no {what} (no {name}); give another directory: run=DIR")
    return True


def read_recipe_tree(run: Path) -> dict[str, Any]:
    """Read the recipe of a run directory as a plain tree. Return an empty one if the directory has no recipe.

    Raises:
        RunError: the file is not YAML.
    """
    file = run / RECIPE_FILE
    if not file.is_file():
        return {}
    tree = outside.read_yaml(file, "recipe", "restore it", raises=RunError)
    return tree if isinstance(tree, dict) else {}
