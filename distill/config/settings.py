"""The settings of recipes as they are written: YAML files and overrides, read into dotted keys. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distill.errors import DataError
from distill.outside import MOST_YAML_BYTES, parse_yaml, read_bytes

OVERRIDE = re.compile(r"(?P<key>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)=(?P<value>.*)", re.DOTALL)
COMMENT = re.compile(r"[^#\"']*\s#(?P<text>.*)")  # behind a value without quotes


@dataclass(frozen=True)
class Setting:
    """One value of a recipe: its dotted key, the file line or override that it comes from, and its comment there."""

    key: str
    value: Any
    origin: str
    comment: str = ""


@dataclass
class Problems:
    """The errors found so far, one line each and none twice, in order; and the keys that have an error."""

    lines: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)

    def add(self, message: str, *, origin: str = "", key: str = "") -> None:
        line = ": ".join(part for part in (origin, key, message) if part)
        if line not in self.lines:
            self.lines.append(line)
        self.keys.add(key)


def read_file(path: Path, problems: Problems) -> list[Setting]:
    """Return the settings of a recipe's file in their order. What cannot be read becomes a problem."""
    try:
        text = read_bytes(path, "recipe", "give a recipe", most=MOST_YAML_BYTES).decode("utf-8")
        tree = _parse(text, str(path))
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        problems.add(f"not a text file: {error}", origin=str(path))
        return []
    except DataError as error:
        problems.add(str(error))
        return []
    if node is None:
        return []
    if not isinstance(node, yaml.MappingNode) or not isinstance(tree, dict):
        problems.add("a recipe is a mapping of `key: value` lines", origin=str(path))
        return []
    lines, written = dict(key_lines(node)), text.splitlines()
    settings = []
    for key, value in flatten(tree, empty=True):
        line = lines.get(key, 1)
        comment = COMMENT.match(written[line - 1])
        settings.append(Setting(key, value, f"{path}:{line}", comment["text"].strip() if comment else ""))
    return settings


def _parse(text: str, origin: str) -> Any:
    """Parse YAML as OmegaConf reads it: `1e-3` is a number, and no key stands twice. Raises DataError."""
    mend = "give a recipe of `key: value` lines"
    tree = parse_yaml(text, origin, mend)
    if tree is None:
        return {}
    if not isinstance(tree, dict):  # OmegaConf asserts that it is one
        return tree
    try:
        return OmegaConf.to_container(OmegaConf.create(text))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, LookupError, AttributeError) as error:
        raise DataError(f"{origin}: not YAML: {' '.join(str(error).split())[:300]}") from error
    except RecursionError as error:
        raise DataError(f"{origin}: lists or sections in it are nested too deeply; {mend}") from error


def key_lines(node: yaml.MappingNode, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yield every dotted key of a YAML mapping with its line number."""
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}"
        yield key, key_node.start_mark.line + 1
        if isinstance(value_node, yaml.MappingNode):
            yield from key_lines(value_node, f"{key}.")


def flatten(tree: Mapping[Any, Any], prefix: str = "", *, empty: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and leaves of nested mappings. A list is a leaf.

    Args:
        empty: a mapping without keys is a leaf too.
    """
    for name, value in tree.items():
        if isinstance(value, Mapping) and (value or not empty):
            yield from flatten(value, f"{prefix}{name}.", empty=empty)
        else:
            yield f"{prefix}{name}", value


def read_overrides(overrides: Sequence[str], problems: Problems) -> list[Setting]:
    """Return the settings of `dotted.key=value` texts. What cannot be read becomes a problem."""
    settings = []
    for text in overrides:
        origin = f"override '{text}'"
        match = OVERRIDE.fullmatch(text)
        if match is None:
            problems.add("an override is written dotted.key=value", origin=origin)
            continue
        try:
            parsed = _parse(f"value: {match['value']}", origin)
            tree = {match["key"]: parsed["value"]}
        except DataError as error:
            reason = str(error).removeprefix(f"{origin}: ").replace("not YAML", "the value is not YAML")
            problems.add(reason, origin=origin)
            continue
        settings += [Setting(key, leaf, origin) for key, leaf in flatten(tree, empty=True)]
    return settings
