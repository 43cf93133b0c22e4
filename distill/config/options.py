"""How an option of a recipe is declared: its default, and beside it what its value must satisfy.

`option(0.1, at_least=0, below=1)` in a dataclass is a field with a default and a range. `distill.config.checks` reads
the rules of a recipe from its fields, so that an option is added in one line.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from omegaconf import MISSING

T = TypeVar("T")
RULE = "rule"  # the key of a field's metadata


@dataclass(frozen=True)
class Rule:
    """What the value of one option must satisfy beyond its type.

    at_least, above: lower bounds. at_most, below: upper bounds. None means no bound. In a list they hold for each item.
    check: a function that yields a message for each further mistake in a value.
    path: a function that says whether a value is a path of this machine, for an option that may hold one.
    give: how to set the option, for the message about a missing one: "the directory to write: run=DIR".
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    check: Callable[[Any], Iterable[str]] | None = None
    path: Callable[[str], bool] | None = None
    give: str = ""

    def findings(self, key: str, value: Any) -> Iterator[tuple[str, str]]:
        """Yield the key and the message of each mistake in the value of the option `key`. None has no mistake."""
        if value is None:
            return
        items = (
            {f"{key}[{i}]": item for i, item in enumerate(value)} if isinstance(value, list | tuple) else {key: value}
        )
        for item_key, item in items.items():
            if not self._is_inside(item):
                yield item_key, f"must be {self._range()}, got {item}"
        for message in self.check(value) if self.check is not None else ():
            yield key, message

    def _is_inside(self, value: Any) -> bool:
        """Return whether a value is inside every bound; NaN is inside none."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def _range(self) -> str:
        """Return the finite bounds in words."""
        if self.at_least is not None and self.at_most is not None:
            return f"between {self.at_least} and {self.at_most}"
        bounds = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        finite = {word: bound for word, bound in bounds.items() if bound is not None and math.isfinite(bound)}
        return " and ".join(f"{word} {bound}" for word, bound in finite.items())


def option(
    default: T,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    check: Callable[[Any], Iterable[str]] | None = None,
    path: Callable[[str], bool] | None = None,
    give: str = "",
) -> T:
    """Return a dataclass field with a default and a rule. The arguments are those of `Rule`."""
    metadata = {
        RULE: Rule(at_least=at_least, above=above, at_most=at_most, below=below, check=check, path=path, give=give)
    }
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def required(
    give: str = "",
    *,
    check: Callable[[Any], Iterable[str]] | None = None,
    path: Callable[[str], bool] | None = None,
) -> Any:
    """Return a dataclass field without a default, which a recipe must set. The arguments are those of `Rule`."""
    return option(MISSING, check=check, path=path, give=give)


@dataclass(frozen=True)
class Option:
    """One option of a recipe: the type that its dataclass states, and its rule."""

    annotation: Any
    rule: Rule


def options_of(section: type) -> dict[str, Option]:
    """Return every option of a recipe's dataclass, sections included, by dotted key."""
    found: dict[str, Option] = {}
    annotations = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        annotation = annotations[field.name]
        if dataclasses.is_dataclass(annotation):
            inner = options_of(typing.cast(type, annotation))
            found |= {f"{field.name}.{key}": leaf for key, leaf in inner.items()}
        else:
            found[field.name] = Option(annotation, field.metadata.get(RULE, Rule()))
    return found
