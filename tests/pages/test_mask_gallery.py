from __future__ import annotations

import base64
import io
import re

import numpy as np
from PIL import Image

from distill.pages.mask_gallery import EXTRA, MISSED, OVERLAY, RIGHT, GalleryRow, render_gallery, render_row


def test_the_gallery_shows_prompt_truth_and_what_each_mask_got_wrong() -> None:
    photo = np.zeros((30, 40, 3), np.uint8)
    truth, mask = np.zeros((2, 30, 40), bool)
    truth[:, :20] = True
    mask[:, 10:30] = True
    row = GalleryRow(photo, {"box_xyxy": [0, 0, 20, 30]}, truth, {"a<b": mask}, {"a<b": 1 / 3}, "box", "small", "photo")
    html = render_gallery([render_row(row)] * 2, ["a<b"], ["box"])
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
    jpegs = re.findall(r"data:image/jpeg;base64,([^\")]+)", render_row(row))
    panel = max((np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), int) for data in jpegs), key=np.ptp)
    assert panel[100, 50].argmax() == 1 and panel[100, 150].argmax() == 0  # green on the object, red off it
