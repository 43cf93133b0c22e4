"""The table of what a resumed training does with a changed option is complete, and each option stands in it once."""

from __future__ import annotations

import pytest

from distill.config import resuming
from distill.config.options import options_of
from distill.config.resuming import Change, changes
from distill.config.schema import FeatureRecipe, MaskRecipe
from distill.config.trainer import TRAINER

EXACT = (*resuming.SAME_RUN, *resuming.REFUSED, *resuming.BY_CONTENT, *resuming.OBEYED)
KEYS = sorted({*options_of(FeatureRecipe), *options_of(MaskRecipe), *(f"trainer.{name}" for name in TRAINER)})


@pytest.mark.parametrize("key", [key for key in KEYS if key != "trainer"])
def test_every_option_is_decided_once(key: str) -> None:
    by_section = f"{key.partition('.')[0]}.*" in resuming.OBEYED
    assert EXACT.count(key) + (by_section and key not in EXACT) == 1


@pytest.mark.parametrize("table", ["SAME_RUN", "REFUSED", "BY_CONTENT", "NOT_FROM_OR_TO_ZERO", "HELD_OUT", "UNSET"])
def test_no_table_names_an_option_that_does_not_exist(table: str) -> None:
    assert set(getattr(resuming, table)) <= set(KEYS)


def test_an_option_that_a_version_did_not_have_is_at_its_default() -> None:
    defaults = {"seed": 0, "optim.lr": 1e-3, "optim.new": 7}
    before = {"seed": 0, "optim.lr": 1e-3, "optim.gone": 1, "trainer.max_steps": 3}
    assert changes(before, {"seed": 0, "optim.lr": 1e-3, "optim.new": 7, "trainer.max_steps": 3}, defaults) == []
    found = changes(
        before, {"seed": 0, "optim.lr": 1e-4, "optim.new": 8, "trainer.accumulate_grad_batches": 1}, defaults
    )
    expected = [("optim.lr", 1e-3, 1e-4), ("optim.new", 7, 8), ("trainer.max_steps", 3, None)]
    assert [(change.key, change.before, change.after) for change in found] == expected


def test_a_part_is_not_frozen_or_freed_on_the_way() -> None:
    assert Change("optim.encoder_lr_scale", 0.0, 1.0).is_refused
    assert Change("optim.encoder_lr_scale", 1.0, 0.0).is_refused
    assert not Change("optim.encoder_lr_scale", 1.0, 0.5).is_refused
