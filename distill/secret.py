"""Values of the environment that a recipe uses: the program works with the value, and writes the reference to it.

`data.images: s3://bucket?key=${oc.env:TOKEN}` opens the address with the token in it. Whatever the program writes,
records and messages alike, keeps `s3://bucket?key=${oc.env:TOKEN}`.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from typing import Any

# OmegaConf's two ways to a variable of the environment; a default may follow the name.
REFERENCE = re.compile(r"\$\{\s*oc\.env\s*:\s*['\"]?(?P<name>[^,}'\"\s]+)['\"]?\s*[^{}]*\}")
RESOLVER = re.compile(r"\$\{\s*oc\.env\s*:")
SHORTEST = 4  # characters of a value that messages hide; hiding "1" would spoil every number

_hidden: dict[str, str] = {}  # value -> what messages show in its place; a process learns them from its recipes


class FromEnvironment(str):
    """A text that holds a value of the environment. It behaves as the text; `reference` is what records keep.

    reference: the text as the recipe has it, with `${oc.env:NAME}` in it.
    """

    reference: str

    def __new__(cls, value: str, reference: str) -> FromEnvironment:
        """Make the text, and hide it from messages from now on."""
        made = super().__new__(cls, value)
        made.reference = reference
        hide(value, reference)
        return made

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override] # copies and pickles keep the reference
        return str.__str__(self), self.reference

    def __repr__(self) -> str:
        return repr(self.reference)


def refers_to_environment(text: object) -> bool:
    """Return whether a value of a recipe, as it was written, holds `${oc.env:...}`."""
    return isinstance(text, str) and RESOLVER.search(text) is not None


def is_reference(text: object) -> bool:
    """Return whether a recorded value stands for one that the record does not hold."""
    return isinstance(text, str) and "${" in text


def hide(value: str, reference: str) -> None:
    """Keep a value, and those of the variables that the reference names, from messages."""
    for name, held in [(reference, value), *_variables(reference)]:
        if len(held) >= SHORTEST:
            _hidden[held] = name


def _variables(reference: str) -> Iterator[tuple[str, str]]:
    """Yield each variable that a text refers to, and its value, if it has one."""
    for found in REFERENCE.finditer(reference):
        if (value := os.environ.get(found["name"])) is not None:
            yield f"${{oc.env:{found['name']}}}", value


def conceal(text: str) -> str:
    """Return a message with the reference in the place of each value that came from the environment."""
    for value in sorted(_hidden, key=len, reverse=True):
        text = text.replace(value, _hidden[value])
    return text


def recorded(content: Any) -> Any:
    """Return a value, or nested dataclasses, dicts and lists of values, as records keep them: with references."""
    if isinstance(content, FromEnvironment):
        return content.reference
    if dataclasses.is_dataclass(content) and not isinstance(content, type):
        fields = {field.name: recorded(getattr(content, field.name)) for field in dataclasses.fields(content)}
        return dataclasses.replace(content, **fields)
    if isinstance(content, dict):
        return {key: recorded(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(recorded(value) for value in content)
    return content


def is_same(before: Any, now: Any) -> bool:
    """Return whether a recorded value and that of a recipe are the same: by reference, or by what it stands for.

    A record holds a path as an absolute one, and a reference as it was written.
    """
    if before == recorded(now) or before == now:
        return True
    if isinstance(now, FromEnvironment) and before == os.path.abspath(now):
        return True
    return refers_to_environment(before) and now in (expanded := _expand(before), os.path.abspath(expanded))


def _expand(reference: str) -> str:
    """Return a text with the variables of the environment in it, to be compared and never kept."""
    return REFERENCE.sub(lambda found: os.environ.get(found["name"], found[0]), reference)
