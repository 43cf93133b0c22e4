"""Options that take their text from the environment: the loaded recipe works with it, and knows how it was written."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from distill.config.settings import flatten
from distill.errors import RecipeError
from distill.secret import FromEnvironment, is_reference, refers_to_environment

RecipeT = TypeVar("RecipeT")

OPTION = re.compile(r"\$\{\s*(?P<key>[A-Za-z_]\w*(?:\.\w+)*)\s*\}")  # a reference to another option, by dotted key
MOST_STEPS = 10  # from an option to the end of its references


def keep_references(recipe: RecipeT, tree: DictConfig) -> RecipeT:
    """Return a recipe whose texts from the environment know their references (`distill.secret`).

    An option that refers to another one, as `${data.images}`, gets the reference of that one.

    Args:
        recipe: a recipe's dataclass, resolved.
        tree: the same recipe as it was written.
    Raises:
        RecipeError: a complete list or section comes from the environment, and has texts.
    """
    written = OmegaConf.to_container(tree, resolve=False)
    if not _refers(written):
        return recipe
    assert isinstance(written, dict)
    kept: RecipeT = _pair(recipe, _expand_options(written, dict(flatten(written))), "")
    return kept


def _expand_options(written: Any, options: Mapping[str, Any], *, depth: int = MOST_STEPS) -> Any:
    """Return what was written with the text of other options in the place of references to them."""
    if isinstance(written, dict):
        return {name: _expand_options(item, options) for name, item in written.items()}
    if isinstance(written, (list, tuple)):
        return [_expand_options(item, options) for item in written]
    if not isinstance(written, str) or depth == 0 or not OPTION.search(written):
        return written
    expanded = OPTION.sub(lambda found: _text_of(options.get(found["key"], found[0]), found[0]), written)
    return written if expanded == written else _expand_options(expanded, options, depth=depth - 1)


def _text_of(value: Any, reference: str) -> str:
    """Return the text of an option that another one holds; a list or section has none, and stays a reference."""
    return reference if isinstance(value, (dict, list, tuple)) or value is None else str(value)


def _refers(written: Any) -> bool:
    if isinstance(written, dict):
        return any(map(_refers, written.values()))
    if isinstance(written, (list, tuple)):
        return any(map(_refers, written))
    return refers_to_environment(written)


def _pair(value: Any, written: Any, key: str) -> Any:
    """Return a value with the references of what was written in its place."""
    if is_reference(written):
        if isinstance(value, str):
            return FromEnvironment(value, written)
        if _holds_text(value):
            mend = "write each item, as [${oc.env:NAME}]"
            raise RecipeError("recipe", [f"{key}: takes a complete list or section from the environment; {mend}"])
        return value
    if dataclasses.is_dataclass(value) and isinstance(written, dict):
        for field in dataclasses.fields(value):
            name = field.name
            setattr(value, name, _pair(getattr(value, name), written.get(name), f"{key}.{name}".lstrip(".")))
    elif isinstance(value, dict) and isinstance(written, dict):
        return {name: _pair(item, written.get(name), f"{key}.{name}") for name, item in value.items()}
    elif isinstance(value, (list, tuple)) and isinstance(written, (list, tuple)):
        return type(value)(_pair(item, old, key) for item, old in zip(value, written, strict=True))
    return value


def _holds_text(value: Any) -> bool:
    if isinstance(value, (dict, list, tuple)):
        return any(map(_holds_text, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str)
