"""The paths of a recipe, made absolute: what a run records does not depend on the directory that it was started in."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from distill.config.options import options_of
from distill.config.schema import SET_FIELDS
from distill.config.settings import flatten
from distill.secret import FromEnvironment, is_reference

RecipeT = TypeVar("RecipeT")
SETS = "sets"  # the option of many sets, each a section with paths of its own


def absolute_paths(recipe: RecipeT) -> RecipeT:
    """Return a copy of a recipe with each local path made absolute, from the working directory of this process.

    Paths from the environment stay as they are, because a record holds their references.
    """
    found = copy.deepcopy(recipe)
    values = dict(flatten(asdict(recipe)))  # type: ignore[call-overload]
    for key, value in absolute_options(values, type(recipe)).items():
        if value != values[key]:
            *sections, name = key.split(".")
            section: Any = found
            for part in sections:
                section = section[part] if isinstance(section, dict) else getattr(section, part)
            if isinstance(section, dict):
                section[name] = value
            else:
                setattr(section, name, value)
    return found


def absolute_options(values: Mapping[str, Any], recipe_class: type) -> dict[str, Any]:
    """Return options by dotted key with each local path made absolute.

    Args:
        recipe_class: the dataclass that says which of them are paths.
    """
    paths = local_paths(values, recipe_class)
    return {
        key: os.path.abspath(value) if key in paths and not _is_reference(value) else value
        for key, value in values.items()
    }


def _is_reference(value: str) -> bool:
    """Return whether a path is, or was, taken from the environment, and so is recorded as it was written."""
    return isinstance(value, FromEnvironment) or is_reference(value)


def local_paths(values: Mapping[str, Any], recipe_class: type) -> set[str]:
    """Return the dotted keys of the options whose values are paths of this machine, and no names or addresses."""
    tests = {key: option.rule.path for key, option in options_of(recipe_class).items()}
    of_sets = tests.pop(SETS, None)
    found = set()
    for key, value in values.items():
        is_of_set = key.startswith(f"{SETS}.") and key.rpartition(".")[2] in SET_FIELDS
        is_path = of_sets if is_of_set else tests.get(key)
        if is_path is not None and isinstance(value, str) and is_path(value):
            found.add(key)
    return found
