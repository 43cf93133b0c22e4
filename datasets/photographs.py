"""Photographs that come with Python packages: free to use, offline, the same on every machine."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
from PIL import Image

# From scikit-image's wheel (skimage/data/README.txt names their sources: public domain or CC0).
TRAIN_PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "camera.png",
    "grass.png",
    "gravel.png",
    "brick.png",
    "retina.jpg",
)
HELD_OUT_PHOTOGRAPHS = ("coffee.png", "rocket.jpg", "coins.png", "moon.png")


def load_photographs(names: tuple[str, ...]) -> list[np.ndarray]:
    """Photographs of scikit-image by file name, each uint8 (H, W, 3) RGB."""
    folder = files("skimage.data")
    photographs = []
    for name in names:
        with (folder / name).open("rb") as file:
            photographs.append(np.asarray(Image.open(file).convert("RGB")))
    return photographs
