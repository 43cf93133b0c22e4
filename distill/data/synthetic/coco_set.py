"""The quickstart's own labelled set: shapes cut from photographs and pasted onto others, in COCO's format.

The photographs come with scikit-image. No training scene uses those of the held-out split, neither as its background
nor inside a shape.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distill.data.coco import annotation_of
from distill.data.rle import encode_mask
from distill.data.synthetic.scenes import Scene, compose, cut_shape, random_crop, vary_cutout, without_instances
from distill.files import write_text

LONG_SIDE = 320  # pixels
SHAPES_PER_PHOTO = (2, 4)  # at least, below
SHAPE_SIZE = (110, 220)  # pixels, longest side
MIN_CONTRAST = 80.0  # RGB levels; a shape that nobody can see teaches nothing in minutes
MIN_CROP_SHARE = 0.5
JPEG_QUALITY = 92
CATEGORY: dict[str, Any] = {"id": 1, "name": "cut-out"}


def compose_scene(rng: np.random.Generator, photographs: list[np.ndarray]) -> Scene:
    """Compose a window of a photograph with two or three shapes of other photographs, at least one of them visible."""
    while True:
        first, *others = rng.permutation(len(photographs))
        background = without_instances(photographs[first])
        background = random_crop(rng, background, long_side=LONG_SIDE, min_share=MIN_CROP_SHARE)
        cutouts = []
        for other in others[: rng.integers(*SHAPES_PER_PHOTO)]:
            size = int(rng.integers(*SHAPE_SIZE))
            cutouts.append(vary_cutout(rng, cut_shape(rng, photographs[other], size), size))
        scene = compose(rng, background, cutouts, min_contrast=MIN_CONTRAST)
        if len(scene.masks):
            return scene


def write_coco_set(
    directory: Path,
    photographs: list[np.ndarray],
    *,
    num_photos: int,
    seed: int,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Write `directory`/photos/*.jpg and `directory`/annotations.json, in COCO's instance format.

    The same seed gives the same set. The annotations are written last, so a set that has them is complete.

    Args:
        photographs: each uint8 (H, W, 3) RGB.
        advance: called with the number of photos written since the last call.
    """
    photos = directory / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(num_photos):
        scene = compose_scene(np.random.default_rng((seed, number)), photographs)
        height, width = scene.pixels.shape[:2]
        name = f"{number:06d}.jpg"
        Image.fromarray(scene.pixels).save(photos / name, quality=JPEG_QUALITY)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for mask in scene.masks:
            annotations.append(annotation_of(len(annotations) + 1, number, encode_mask(mask), CATEGORY["id"]))
        advance(1)
    content = {"images": images, "annotations": annotations, "categories": [CATEGORY]}
    write_text(directory / "annotations.json", json.dumps(content))
