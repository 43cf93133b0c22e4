from __future__ import annotations

from pathlib import Path

import pytest

from distill.errors import RunError
from distill.quickstart.pipeline import MARKER_FILE, QuickstartPipeline, quality, sentence


def test_a_directory_keeps_the_size_that_it_was_begun_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    QuickstartPipeline(out, 8, 2).begin()
    marker = (out / MARKER_FILE).read_text()
    QuickstartPipeline(out, 8, 2).begin()
    assert "goes on with what is there" in capsys.readouterr().out
    for other in ((9, 2), (8, 3)):
        with pytest.raises(RunError, match="give another directory"):
            QuickstartPipeline(out, *other).begin()
    assert (out / MARKER_FILE).read_text() == marker


def test_the_sentence_and_what_quality_is() -> None:
    assert quality({"box_miou": 0.8, "point_miou": 0.6, "params": 3}) == pytest.approx(0.7)
    summary = {"times_fewer_macs": 20.04, "speed": {"times_faster": 15.55}, "share_of_quality": 0.9876}
    expected = "20.0 times fewer MACs, 15.6 times faster, 98.8 % of the teacher's mask quality"
    assert sentence(summary) in (expected, expected.replace("15.6", "15.5"))
