"""Photographs that come with Python packages: free to use, available offline, the same on every machine."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
from PIL import Image

# (package, path). scikit-image's photographs are in the public domain or CC0; matplotlib's portrait is the US Navy's.
TRAIN_PHOTOGRAPHS = (
    ("skimage.data", "astronaut.png"),
    ("skimage.data", "chelsea.png"),
    ("skimage.data", "motorcycle_left.png"),
    ("skimage.data", "hubble_deep_field.jpg"),
    ("skimage.data", "ihc.png"),
    ("skimage.data", "camera.png"),
    ("skimage.data", "grass.png"),
    ("skimage.data", "gravel.png"),
    ("skimage.data", "brick.png"),
    ("skimage.data", "retina.jpg"),
)
HELD_OUT_PHOTOGRAPHS = (
    ("skimage.data", "coffee.png"),
    ("skimage.data", "rocket.jpg"),
    ("skimage.data", "coins.png"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)


def load_photographs(names: tuple[tuple[str, str], ...]) -> list[np.ndarray]:
    """Load photographs by package and path, each uint8 (H, W, 3) RGB."""
    photographs = []
    for package, path in names:
        with (files(package) / path).open("rb") as file:
            photographs.append(np.asarray(Image.open(file).convert("RGB")))
    return photographs
