from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
from PIL import Image

from distill.pages.html import (
    COLOURS,
    MAX_POINTS,
    Curve,
    Markup,
    colour_of,
    marker_of,
    notes,
    page,
    plot,
    read_curves,
    table,
)
from distill.pages.mask_gallery import EXTRA, MISSED, OVERLAY, RIGHT, GalleryRow, gallery, gallery_line


def test_curves_come_from_the_steps_that_logged_them(tmp_path: Path) -> None:
    rows = [{"step": 0, "train/loss": 2.0}, {"step": 5, "val/cosine": 0.5}, {"step": 9, "train/loss": 1.0}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_curves(path, ["train/loss", "val/box_miou"]) == [Curve("train/loss", [0, 9], [2.0, 1.0])]
    assert read_curves(tmp_path / "absent.jsonl", ["train/loss"]) == []


def test_text_is_text() -> None:
    assert ">a &lt; b</td>" in table(["x"], [["a < b"]])
    assert "<b>1</b>" in table(["x"], [[Markup("<b>1</b>")]])
    assert "<title>R&amp;D</title>" in page("R&D", [])
    assert "<li>a &lt; b</li>" in notes(["a < b"]) and notes([]) == ""


def test_columns_of_words_are_aligned_left() -> None:
    html = table(["model", "score", "interval"], [["a 1", "–", "[-0.1, +0.2]"], ["b", "0.5", ""]])
    assert html.count('class="words"') == 3  # heading and two cells of the first column


def test_a_page_links_its_sections() -> None:
    html = page("title", [("By size", "content")])
    assert '<a href="#by-size">By size</a>' in html and '<section id="by-size">' in html


def test_a_plot_is_inline_svg() -> None:
    assert plot([Curve("one", [0, 1], [0.0, 1.0])], "title", "unit").startswith("<figure><svg")


def test_a_long_curve_is_thinned() -> None:
    steps = list(range(100_000))
    long = plot([Curve("one", steps, [1.0] * len(steps))], "title", "unit")
    assert len(long) < 40_000 and MAX_POINTS < 1000


def test_models_have_looks_of_their_own() -> None:
    looks = [(colour_of(i), marker_of(i)) for i in range(49)]
    assert len(set(looks)) == 49
    assert len({colour for colour, _ in looks[: len(COLOURS)]}) == len(COLOURS)


def test_the_gallery_shows_prompt_truth_and_what_each_mask_got_wrong() -> None:
    photo = np.zeros((30, 40, 3), np.uint8)
    truth, mask = np.zeros((2, 30, 40), bool)
    truth[:, :20] = True
    mask[:, 10:30] = True
    row = GalleryRow(photo, {"box_xyxy": [0, 0, 20, 30]}, truth, {"a<b": mask}, {"a<b": 1 / 3}, "box", "small", "photo")
    html = gallery([gallery_line(row)] * 2, ["a<b"], ["box"])
    assert html.count("<img") == 6 and html.count("<b>0.33</b> a&lt;b") == 2
    png = base64.b64decode(re.findall(r"data:image/png;base64,([^\"]+)", html)[1])
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))
    shares = {tuple(colour): float((pixels == colour).all(-1).mean()) for colour in OVERLAY}
    assert abs(shares[OVERLAY[RIGHT]] - shares[OVERLAY[MISSED]]) < 0.03  # a half of the truth each
    assert abs(shares[OVERLAY[RIGHT]] - shares[OVERLAY[EXTRA]]) < 0.03
    assert sum(shares.values()) > 0.99  # and the rest is clear


def test_clicks_are_drawn_where_they_were() -> None:
    photo = np.zeros((40, 40, 3), np.uint8)
    truth = np.ones((40, 40), bool)
    prompt = {"points_xy": [[10.0, 20.0], [30.0, 20.0]], "labels": [1, 0]}
    row = GalleryRow(photo, prompt, truth, {"m": truth}, {"m": 1.0}, "click", "small", "photo")
    jpegs = re.findall(r"data:image/jpeg;base64,([^\")]+)", gallery_line(row))
    panel = max((np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), int) for data in jpegs), key=np.ptp)
    assert panel[100, 50].argmax() == 1 and panel[100, 150].argmax() == 0  # green on the object, red off it
