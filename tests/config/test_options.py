"""An option's rule stands at its field: ranges with their messages, and every number has one."""

from __future__ import annotations

import typing
from dataclasses import dataclass

import pytest

from distill.config.options import option, options_of, required
from distill.config.schema import RECIPE_KINDS

NO_RANGE = {"grid.predicted_iou_threshold", "grid.stability_threshold"}  # any number is a threshold


@dataclass
class Section:
    """A section with one option of each rule."""

    name: str = required("the name: name=NAME", check=lambda name: ["too long"] if len(name) > 4 else [])
    least: int = option(1, at_least=1)
    share: float = option(0.5, at_least=0, at_most=1)
    decay: tuple[float, float] = option((0.9, 0.9), at_least=0, below=1)
    rate: float = option(0.1, above=0, below=float("inf"))
    items: list[str] = option(["a"])


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("name", "abcde", [("name", "too long")]),
        ("least", 0, [("least", "must be at least 1, got 0")]),
        ("least", None, []),
        ("share", 1, []),
        ("share", 1.5, [("share", "must be between 0 and 1, got 1.5")]),
        ("share", float("nan"), [("share", "must be between 0 and 1, got nan")]),
        ("decay", [0.5, 1.0], [("decay[1]", "must be at least 0 and below 1, got 1.0")]),
        ("rate", float("inf"), [("rate", "must be above 0, got inf")]),
        ("rate", 0, [("rate", "must be above 0, got 0")]),
        ("items", ["b"], []),
    ],
)
def test_findings(key, value, expected):
    assert list(options_of(Section)[key].rule.findings(key, value)) == expected


def test_the_default_of_a_list_is_not_shared():
    one, two = Section("a"), Section("b")
    one.items.append("b")
    assert two.items == ["a"]


@pytest.mark.parametrize("kind", RECIPE_KINDS)
def test_every_number_has_a_range(kind):
    for key, found in options_of(RECIPE_KINDS[kind]).items():
        types = {found.annotation, *typing.get_args(found.annotation)}
        if types & {int, float} and key not in NO_RANGE:
            bounds = (found.rule.at_least, found.rule.above, found.rule.at_most, found.rule.below)
            assert any(bound is not None for bound in bounds), f"{kind}: {key}"
