"""Scenes composed from photographs: cut-outs are pasted onto backgrounds, so their masks are known exactly.

Cut-outs are objects of a labelled photo. All random draws come from the generator that is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from distill.geometry import mask_window

MIN_VISIBLE_SHARE = 0.3  # an instance of which less is visible is no target
MIN_AREA = 48  # pixels; smaller targets are dropped
PLACES_TRIED = 10  # for a cut-out that does not stand out
RING_WIDTH = 4  # pixels around an object that count as its surroundings
SUPERSAMPLING = 2  # outlines are drawn larger and reduced, for smooth edges


@dataclass
class Cutout:
    """Pixels of an object, uint8 (h, w, 3), and its mask, bool (h, w)."""

    pixels: np.ndarray
    mask: np.ndarray


@dataclass
class Scene:
    """A photo, uint8 (H, W, 3) RGB, and the visible masks of its instances, bool (N, H, W)."""

    pixels: np.ndarray
    masks: np.ndarray


def without_instances(photo: np.ndarray) -> Scene:
    """Return a photo, uint8 (H, W, 3), as a scene without instances."""
    return Scene(photo, np.zeros((0, *photo.shape[:2]), bool))


def _polygon(radii: np.ndarray, size: int, rotation: float, squeeze: float) -> list[tuple[float, float]]:
    angles = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    x, y = radii * np.cos(angles), radii * np.sin(angles) * squeeze
    cos, sin = np.cos(rotation), np.sin(rotation)
    points = np.stack([cos * x - sin * y, sin * x + cos * y], 1) * (size / 2 - 1) + size / 2
    return [(float(px), float(py)) for px, py in points]


def random_outline(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a random filled outline inside a square, bool (size, size): a blob, star, ring, crescent or bar."""
    canvas = size * SUPERSAMPLING
    image = Image.new("L", (canvas, canvas))
    draw = ImageDraw.Draw(image)
    kind = rng.choice(["blob", "star", "ring", "crescent", "bar"])
    rotation, squeeze = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.0)
    if kind == "star":
        num_points = int(rng.integers(4, 8))
        radii = np.where(np.arange(2 * num_points) % 2, rng.uniform(0.3, 0.55), 1.0)
    elif kind == "bar":
        radii = np.where(np.arange(4) % 2, rng.uniform(0.15, 0.35), 1.0)
    else:
        angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
        radii = np.ones(90)
        for frequency in range(2, 6):
            radii += rng.normal(0, 0.35 / frequency) * np.cos(frequency * angles + rng.uniform(0, 2 * np.pi))
        radii = np.clip(radii, 0.15, None)
        radii /= radii.max()
    draw.polygon(_polygon(radii, canvas, rotation, squeeze), fill=255)
    if kind == "ring":
        draw.polygon(_polygon(radii * rng.uniform(0.5, 0.75), canvas, rotation, squeeze), fill=0)
    elif kind == "crescent":
        shift = rng.uniform(0.25, 0.5) * canvas / 2
        offset = np.array([np.cos(rotation), np.sin(rotation)]) * shift
        cut = np.asarray(_polygon(radii * 0.85, canvas, rotation, squeeze)) + offset
        draw.polygon([(float(px), float(py)) for px, py in cut], fill=0)
    return np.asarray(image.resize((size, size), Image.Resampling.BOX)) > 127


def cut_instance(photo: np.ndarray, mask: np.ndarray) -> Cutout:
    """Cut a labelled object out of a photo along its mask, bool (H, W) with at least one pixel."""
    window = mask_window(mask)
    assert window is not None
    return Cutout(photo[window], mask[window])


def _resize_mask(mask: np.ndarray, width_height: tuple[int, int]) -> np.ndarray:
    """Resize a bool mask: True where it covers more than half of a pixel."""
    resized = Image.fromarray(mask.astype(np.uint8) * 255).resize(width_height, Image.Resampling.BOX)
    return np.asarray(resized) > 127


def vary_cutout(rng: np.random.Generator, cutout: Cutout, size: int) -> Cutout:
    """Resize a cut-out to a longest side of `size`, flip it at random and change its light."""
    height, width = cutout.mask.shape
    scale = size / max(height, width)
    shape = max(2, round(width * scale)), max(2, round(height * scale))
    pixels = np.asarray(Image.fromarray(cutout.pixels).resize(shape, Image.Resampling.BILINEAR))
    mask = _resize_mask(cutout.mask, shape)
    if rng.random() < 0.5:
        pixels, mask = pixels[:, ::-1], mask[:, ::-1]
    return Cutout(vary_light(rng, pixels), mask)


def vary_light(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Change gain per channel, contrast and brightness at random, uint8 (H, W, 3) -> the same."""
    gain = rng.uniform(0.8, 1.2) * rng.uniform(0.92, 1.08, 3)
    shifted = (pixels.astype(np.float32) - 128) * gain + 128 + rng.uniform(-25, 25)
    return np.clip(shifted, 0, 255).astype(np.uint8)


def paste(rng: np.random.Generator, scene: Scene, cutout: Cutout, *, min_contrast: float = 0.0) -> Scene:
    """Paste a cut-out at a random place with its centre inside the photo. Masks below it lose what it covers.

    A place is drawn again if the cut-out differs from its surroundings by less than `min_contrast` (see `contrast`).
    """
    for _ in range(PLACES_TRIED):
        pasted = _paste_once(rng, scene, cutout)
        if not min_contrast or contrast(pasted.pixels, pasted.masks[-1]) >= min_contrast:
            break
    return pasted


def contrast(pixels: np.ndarray, mask: np.ndarray) -> float:
    """Measure how much an object stands out: the distance of its mean RGB (0 to 255) from the mean of a ring around it.

    The contrast is 0 for a mask without a pixel, and for one that fills the photo.
    """
    wide = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.BoxBlur(RING_WIDTH))
    ring = (np.asarray(wide) > 0) & ~mask
    if not mask.any() or not ring.any():
        return 0.0
    return float(np.linalg.norm(pixels[mask].mean(0) - pixels[ring].mean(0)))


def _paste_once(rng: np.random.Generator, scene: Scene, cutout: Cutout) -> Scene:
    height, width = scene.pixels.shape[:2]
    h, w = cutout.mask.shape
    top, left = int(rng.integers(0, height)) - h // 2, int(rng.integers(0, width)) - w // 2
    y0, y1, x0, x1 = max(0, top), min(height, top + h), max(0, left), min(width, left + w)
    seen = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
    placed = np.zeros((height, width), bool)
    placed[y0:y1, x0:x1] = cutout.mask[seen]
    soft = np.asarray(Image.fromarray(placed.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(0.7)))
    alpha = soft[y0:y1, x0:x1, None].astype(np.float32) / 255
    pixels = scene.pixels.copy()
    pixels[y0:y1, x0:x1] = (alpha * cutout.pixels[seen] + (1 - alpha) * pixels[y0:y1, x0:x1]).astype(np.uint8)
    return Scene(pixels, np.concatenate([scene.masks & ~placed, placed[None]]))


def drop_hidden(scene: Scene, full_areas: np.ndarray, *, min_area: int = MIN_AREA) -> Scene:
    """Leave out instances of which little is visible. `full_areas` (N,) are their areas before anything hid them."""
    areas = scene.masks.sum((1, 2))
    keep = (areas >= min_area) & (areas >= MIN_VISIBLE_SHARE * full_areas)
    return Scene(scene.pixels, scene.masks[keep])


def compose(
    rng: np.random.Generator,
    background: Scene,
    cutouts: list[Cutout],
    *,
    min_contrast: float = 0.0,
    min_area: int = MIN_AREA,
) -> Scene:
    """Paste the cut-outs onto a background in their order, each where it stands out. Leave out instances they hide."""
    scene = background
    full_areas = list(background.masks.sum((1, 2)))
    for cutout in cutouts:
        scene = paste(rng, scene, cutout, min_contrast=min_contrast)
        full_areas.append(scene.masks[-1].sum())
    return drop_hidden(scene, np.asarray(full_areas), min_area=min_area)
