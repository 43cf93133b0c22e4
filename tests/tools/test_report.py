from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from distill.tools.report import Curve, GalleryRow, gallery, page, plot, read_curves, table


def test_curves_come_from_the_steps_that_logged_them(tmp_path: Path) -> None:
    rows = [{"step": 0, "train/loss": 2.0}, {"step": 5, "val/cosine": 0.5}, {"step": 9, "train/loss": 1.0}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_curves(path, ["train/loss", "val/box_miou"]) == [Curve("train/loss", [0, 9], [2.0, 1.0])]
    assert read_curves(tmp_path / "absent.jsonl", ["train/loss"]) == []


def test_text_is_text() -> None:
    assert "<td>a &lt; b</td>" in table(["x"], [["a < b"]])
    assert "<title>R&amp;D</title>" in page("R&D", [])


def test_a_plot_is_inline_svg() -> None:
    assert plot([Curve("one", [0, 1], [0.0, 1.0])], "title", "unit").startswith("<figure><svg")


def test_the_gallery_shows_the_prompt_and_every_mask() -> None:
    photo, mask = np.zeros((30, 40, 3), np.uint8), np.ones((30, 40), bool)
    row = GalleryRow(photo, (2, 2, 20, 20), {"truth": mask, "student": ~mask}, {"student": "IoU 0.50"})
    html = gallery([row, row])
    assert html.count("<img") == 6 and html.count("student IoU 0.50") == 2
