"""Errors that a user can mend: every kind is one of ours, and hints name the near names."""

from __future__ import annotations

import pytest

from distill import errors
from distill.errors import DistillError, RecipeError, did_you_mean


def test_every_error_is_ours() -> None:
    kinds = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(kinds) > 5 and all(issubclass(kind, DistillError) for kind in kinds)


@pytest.mark.parametrize(
    ("problems", "message"),
    [
        (["a: unknown key"], "my.yaml: 1 error\n  a: unknown key"),
        (["a: unknown key", "b: not a number"], "my.yaml: 2 errors\n  a: unknown key\n  b: not a number"),
    ],
)
def test_a_recipes_error_lists_all_problems(problems: list[str], message: str) -> None:
    error = RecipeError("my.yaml", problems)
    assert str(error) == message and error.problems == problems


def test_near_names_are_named() -> None:
    assert did_you_mean("mobile_san", ["mobile_sam", "edge_sam", "vit"]).startswith("Did you mean 'mobile_sam'")
    assert did_you_mean("adamv", ["adamw", "adam", "sgd"]) == "Did you mean 'adam' or 'adamw'?"


def test_all_names_are_named_where_none_is_near() -> None:
    assert did_you_mean("xyz", ["b", "a"]) == "Known: a, b"
    many = [f"name{i:02d}" for i in range(25)]
    assert did_you_mean("xyz", many) == f"Known: {', '.join(many[:20])}, ..."
