"""YAML files of known keys: each value is taken with its type checked, and unknown keys are refused."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from distill import outside
from distill.errors import DataError, did_you_mean


def read_yaml(path: Path) -> YamlSection:
    """Read a YAML file that is a mapping. Raises DataError."""
    return YamlSection(path, "", outside.read_yaml(path, "set's description", "mend it"))


class YamlSection:
    """A mapping of a YAML file whose keys are taken one by one; `close` refuses the others.

    file: the YAML file. place: dotted keys that lead here. name: the last of them.
    """

    def __init__(self, file: Path, place: str, content: Any, name: str = "") -> None:
        self.file, self.place, self.name = file, place, name
        self._known: set[str] = set()
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise DataError(f"{file}: {place or 'the file'}: must hold `key: value` lines, got {reprlib.repr(content)}")
        self.content: dict[str, Any] = content

    def error(self, key: str, problem: str) -> DataError:
        """Return an error that names the file and the place in it."""
        place = ".".join(part for part in (self.place, key) if part)
        return DataError(f"{self.file}: {place}: {problem}")

    def has(self, key: str) -> bool:
        """Return whether a key that may be left out is there."""
        self._known.add(key)
        return key in self.content

    def take(self, key: str) -> Any:
        """Return the value of a key, which must be there."""
        if not self.has(key):
            raise self.error(key, f"missing; give {key}: VALUE")
        return self.content[key]

    def text(self, key: str) -> str:
        """Return a text that is not empty."""
        value = self.take(key)
        if not isinstance(value, str) or not value.strip():
            raise self.error(key, f"must be a text, got {reprlib.repr(value)}")
        return value

    def matching(self, key: str, pattern: re.Pattern[str], description: str) -> str:
        """Return a text that matches a pattern as a whole."""
        value = self.text(key)
        if not pattern.fullmatch(value):
            raise self.error(key, f"must be {description}, got '{value}'")
        return value

    def choice(self, key: str, choices: tuple[Any, ...]) -> Any:
        """Return one of some texts."""
        value = self.text(key)
        if value not in choices:
            raise self.error(key, f"unknown value '{value}'. {did_you_mean(value, choices)}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts, empty if the key is left out."""
        if not self.has(key):
            return ()
        value = self.take(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(key, f"must be a list of texts, as [a, b], got {reprlib.repr(value)}")
        return tuple(value)

    def count(self, key: str, *, at_least: int = 0) -> int | None:
        """Return a whole number, or None if the key is left out."""
        if not self.has(key):
            return None
        value = self.take(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
            raise self.error(key, f"must be a whole number, at least {at_least}, got {reprlib.repr(value)}")
        return value

    def path(self, key: str) -> str:
        """Return a relative path that stays below its folder."""
        return self.checked_path(key, self.text(key))

    def checked_path(self, key: str, value: str) -> str:
        """Return a relative path if it stays below its folder."""
        if PurePosixPath(value).is_absolute() or ".." in PurePosixPath(value).parts:
            raise self.error(key, f"must be a path below the set's folder, got '{value}'")
        return value

    def section(self, key: str) -> YamlSection:
        """Return a section inside this one."""
        return YamlSection(self.file, ".".join(part for part in (self.place, key) if part), self.take(key), key)

    def sections(self, key: str) -> Iterator[YamlSection]:
        """Yield the sections of a section, whose names are free; none if the key is left out."""
        if self.has(key):
            outer = self.section(key)
            yield from (outer.section(name) for name in outer.content)

    def close(self) -> None:
        """Refuse the keys that nothing asked for. Raises DataError."""
        for key in self.content:
            if key not in self._known:
                raise self.error(key, f"unknown key. {did_you_mean(key, self._known)}")
