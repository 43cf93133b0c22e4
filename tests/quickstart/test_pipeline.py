from __future__ import annotations

from pathlib import Path

import pytest

from distill.cli.quickstart import TRAIN_PHOTOS
from distill.errors import RunError
from distill.quickstart.pipeline import MARKER_FILE, QuickstartPipeline


def test_a_directory_keeps_the_size_that_it_was_begun_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    QuickstartPipeline(out, TRAIN_PHOTOS).begin()
    marker = (out / MARKER_FILE).read_text()
    QuickstartPipeline(out, TRAIN_PHOTOS).begin()
    assert "goes on with what is there" in capsys.readouterr().out
    with pytest.raises(RunError, match="give another directory"):
        QuickstartPipeline(out, TRAIN_PHOTOS + 1).begin()
    assert (out / MARKER_FILE).read_text() == marker
