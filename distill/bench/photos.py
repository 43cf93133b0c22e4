"""Photos with masks of SA-1B's kind for `distill bench`: drawn by a seed, and written as image shards."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from distill.data.rle import RLE, encode_mask
from distill.data.shards.sa1b import annotation_row, sample_annotation
from distill.data.shards.writer import ShardWriter

PHOTO_HW = (1500, 2000)  # SA-1B's photos were reduced to a shortest side of 1500 pixels
NUM_MASKS = 100  # SA-1B: 11 M photos with 1.1 B masks
JPEG_QUALITY = 90
SAMPLES_PER_SHARD = 16
OUTLINE_POINTS = 256
MASK_RADII = (15, 450)  # pixels; the logarithm of a radius is drawn evenly


def write_shards(directory: Path, num_photos: int, *, hw: tuple[int, int] = PHOTO_HW, seed: int = 0) -> None:
    """Write shards that hold one photo with NUM_MASKS masks `num_photos` times, each time under another key."""
    rng = np.random.default_rng(seed)
    image = draw_photo(rng, hw)
    rows = [annotation_row(number, draw_mask(rng, hw), hw) for number in range(NUM_MASKS)]
    with ShardWriter(directory, SAMPLES_PER_SHARD) as writer:
        for number in range(num_photos):
            key = f"sa_{number}"
            writer.add(key, image, sample_annotation(key, hw, rows))


def draw_photo(rng: np.random.Generator, hw: tuple[int, int]) -> bytes:
    """Draw a JPEG with detail at every scale."""
    pixels = np.zeros((*hw, 3))
    for octave in range(2, 9):
        small = rng.normal(size=(hw[0] >> octave or 1, hw[1] >> octave or 1, 3)) * 2 ** (octave / 2)
        planes = [Image.fromarray(small[..., i].astype(np.float32)).resize(hw[::-1]) for i in range(3)]
        pixels += np.stack([np.asarray(plane) for plane in planes], -1)
    pixels = 128 + pixels * (48 / pixels.std())
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def draw_mask(rng: np.random.Generator, hw: tuple[int, int]) -> RLE:
    """Draw a blob with a wavy outline, cut at the photo's edges. Its centre lies on the photo."""
    largest = min(MASK_RADII[1], 0.3 * min(hw))
    radius = np.exp(rng.uniform(*np.log([min(MASK_RADII[0], largest), largest])))
    angles = np.linspace(0, 2 * np.pi, OUTLINE_POINTS, endpoint=False)
    waves = np.sum([rng.normal() / k * np.sin(k * angles + rng.uniform(0, 2 * np.pi)) for k in range(2, 12)], 0)
    radii = radius * (1 + 0.2 * waves).clip(0.3)
    x, y = rng.uniform(0, hw[1]), rng.uniform(0, hw[0])
    canvas = Image.new("L", hw[::-1])
    outline = zip(x + radii * np.cos(angles), y + radii * np.sin(angles), strict=True)
    ImageDraw.Draw(canvas).polygon([(float(px), float(py)) for px, py in outline], fill=1)
    return encode_mask(np.asarray(canvas))
