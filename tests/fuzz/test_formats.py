"""Damaged files of every format are refused in one line, or read: no traceback, hang, kill or silent belief.

This is the short run; `make fuzz` is the long one. A failing case is made smaller by Hypothesis before it is shown.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.formats import FORMATS, Case
from tests.fuzz.reading import ReadingProcess
from tests.fuzz.run import unmeant_rules
from tests.fuzz.sound import sound_case

MILLISECONDS = 500  # of the inputs of one format, roughly


@pytest.fixture(scope="module")
def reading() -> Iterator[ReadingProcess]:
    process = ReadingProcess()
    yield process
    process.close()


def short_run(form: str, reading: ReadingProcess, strategy: st.SearchStrategy[Case]) -> None:
    """Read damaged files of a format. Raises AssertionError for a fault and for an acceptance that nobody means."""

    @seed(f"short/{form}")
    @settings(
        max_examples=round(min(60, max(3, MILLISECONDS / FORMATS[form].cost))),
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def check(case: Case) -> None:
        verdict = reading.read(form, case)
        assert not verdict.is_fault, f"{verdict.kind}: {verdict.text} [{verdict.place}]"
        assert not unmeant_rules(form, case, verdict)

    check()


@pytest.mark.parametrize("form", FORMATS)
def test_damaged_files(form: str, reading: ReadingProcess):
    assert reading.read(form, sound_case(form)).kind == "accepted"
    short_run(form, reading, FORMATS[form].strategy())
