"""The scenes that the quickstart teacher is trained on: windows of labelled photos, some with objects pasted in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from distill.batch import ImageBatch
from distill.data.coco import CocoSet
from distill.data.rle import decode_mask
from distill.data.synthetic.scenes import (
    MIN_VISIBLE_SHARE,
    Cutout,
    Scene,
    compose,
    cut_instance,
    vary_cutout,
    vary_light,
    without_instances,
)
from distill.geometry import boxes_to_prompt_frame, letterbox, mask_to_low_res, mask_window, valid_mask

MAX_INSTANCES = 10  # masks per scene and step
MAX_MASKS = 60  # of a photo that are kept in memory
MIN_CUTOUT_AREA = 300  # pixels of an instance that is pasted into other photos
MIN_AREA = 16  # pixels of a target in the scene
PASTED_SHARE = 0.25  # of the scenes: instances of other photos of the set are pasted in
UNLABELLED_SHARE = 0.3  # of these: the background has no targets of its own
MAX_PASTED = 5
PASTED_SIDE = 0.08, 0.7  # of the scene's side
WINDOW_SIDE = 0.3, 1.2  # of the photo's longest side; log-uniform, and more than 1 is the whole photo
CENTRED_SHARE = 0.7  # of the windows: they hold a place of an instance
MIN_WINDOW = 32  # pixels
CONTRAST = 25.0  # that half of the compositions ask for; see scenes.contrast
DRAWS = 50


@dataclass
class LabelledSet:
    """Labelled photos, and how often they are drawn.

    share: of all scenes; the shares of several sets need not add up to 1.
    """

    scenes: list[Scene]
    share: float


class TeacherScenes(Dataset[Scene]):
    """Scenes whose longest side is `size` pixels. The scene at an index is always the same.

    Args:
        window: bounds of the windows' sides, as shares of the photo's longest side.
        first: added to each index, so that a resumed training sees the scenes that come next.
    """

    def __init__(
        self,
        sets: Sequence[LabelledSet],
        *,
        num_scenes: int,
        size: int,
        seed: int,
        window: tuple[float, float] = WINDOW_SIDE,
        first: int = 0,
    ) -> None:
        shares = np.array([labelled.share for labelled in sets])
        self.scenes = [labelled.scenes for labelled in sets]
        self.odds = shares / shares.sum()
        self.cutouts = [_cutouts(labelled.scenes) for labelled in sets]
        self.num_scenes, self.size, self.seed, self.window, self.first = num_scenes, size, seed, window, first

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> Scene:
        rng = np.random.default_rng((self.seed, self.first + index))
        for _ in range(DRAWS):
            scene = self._draw(rng)
            if len(scene.masks):
                return some_masks(rng, scene, MAX_INSTANCES)
        raise RuntimeError(f"no scene with a visible instance in {DRAWS} draws")

    def _draw(self, rng: np.random.Generator) -> Scene:
        number = int(rng.choice(len(self.scenes), p=self.odds))
        scenes, cutouts = self.scenes[number], self.cutouts[number]
        photo = scenes[rng.integers(len(scenes))]
        if not cutouts or rng.random() >= PASTED_SHARE:
            return cut_window(rng, photo, self.size, self.window)
        if rng.random() < UNLABELLED_SHARE:
            photo = without_instances(photo.pixels)
        background = cut_window(rng, photo, self.size, self.window)
        pasted = [self._vary(rng, cutouts) for _ in range(int(rng.integers(1, MAX_PASTED + 1)))]
        return compose(rng, background, pasted, min_contrast=CONTRAST * rng.integers(2), min_area=MIN_AREA)

    def _vary(self, rng: np.random.Generator, cutouts: list[Cutout]) -> Cutout:
        side = int(self.size * np.exp(rng.uniform(*np.log(PASTED_SIDE))))
        return vary_cutout(rng, cutouts[rng.integers(len(cutouts))], max(side, 12))


def _cutouts(scenes: Sequence[Scene]) -> list[Cutout]:
    return [
        cut_instance(scene.pixels, mask) for scene in scenes for mask in scene.masks if mask.sum() > MIN_CUTOUT_AREA
    ]


def some_masks(rng: np.random.Generator, scene: Scene, num: int) -> Scene:
    """Return a scene with at most `num` of its masks, drawn at random."""
    return Scene(scene.pixels, scene.masks[rng.permutation(len(scene.masks))[:num]])


def cut_window(rng: np.random.Generator, scene: Scene, size: int, window: tuple[float, float] = WINDOW_SIDE) -> Scene:
    """Cut a random window, often around an instance, resize its longest side to `size`, flip it and vary its light."""
    height, width = scene.pixels.shape[:2]
    side = max(height, width) * np.exp(rng.uniform(*np.log(window)))
    h, w = (int(np.clip(side * np.exp(rng.uniform(-0.2, 0.2)), MIN_WINDOW, whole)) for whole in (height, width))
    top, left = _corner(rng, scene, h, w)
    scale = size / max(h, w)
    shape = max(1, round(w * scale)), max(1, round(h * scale))
    masks = scene.masks[:, top : top + h, left : left + w]
    areas = masks.sum((1, 2))
    kept = (areas * scale**2 >= MIN_AREA) & (areas >= MIN_VISIBLE_SHARE * scene.masks.sum((1, 2)))
    pixels = np.asarray(
        Image.fromarray(scene.pixels[top : top + h, left : left + w]).resize(shape, Image.Resampling.BILINEAR)
    )
    resized = np.zeros((int(kept.sum()), shape[1], shape[0]), bool)
    for place, mask in enumerate(masks[kept]):
        image = Image.fromarray(mask.astype(np.uint8) * 255).resize(shape, Image.Resampling.BILINEAR)
        resized[place] = np.asarray(image) > 127
    if rng.random() < 0.5:
        pixels, resized = pixels[:, ::-1], resized[:, :, ::-1]
    return Scene(vary_light(rng, pixels), resized[resized.any((1, 2))])


def _corner(rng: np.random.Generator, scene: Scene, h: int, w: int) -> tuple[int, int]:
    """Draw the top left corner of a window of h x w pixels inside the photo."""
    height, width = scene.pixels.shape[:2]
    if len(scene.masks) and rng.random() < CENTRED_SHARE:
        window = mask_window(scene.masks[rng.integers(len(scene.masks))])
        if window is not None:
            rows, cols = window
            row, col = rng.integers(rows.start, rows.stop), rng.integers(cols.start, cols.stop)
            top, left = row - rng.integers(0, h), col - rng.integers(0, w)
            return int(np.clip(top, 0, height - h)), int(np.clip(left, 0, width - w))
    return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))


@dataclass
class Collate:
    """A function from scenes to an ImageBatch at the sizes of a model."""

    image_size: int
    embedding_size: int

    def __call__(self, scenes: list[Scene]) -> ImageBatch:
        low_res, prompt_size = 4 * self.embedding_size, 16 * self.embedding_size
        masks, boxes, index = [], [], []
        for i, scene in enumerate(scenes):
            for mask in scene.masks:
                window = mask_window(mask)
                assert window is not None  # scenes keep visible instances alone
                rows, cols = window
                box = np.array([cols.start, rows.start, cols.stop, rows.stop], np.float32)
                boxes.append(boxes_to_prompt_frame(box, mask.shape, prompt_size))
                masks.append(mask_to_low_res(mask, low_res))
                index.append(i)
        sizes = [scene.pixels.shape[:2] for scene in scenes]
        return ImageBatch(
            keys=[str(i) for i in range(len(scenes))],
            pixels=torch.stack([letterbox(scene.pixels, self.image_size) for scene in scenes]),
            original_hw=torch.tensor(sizes),
            valid=torch.stack([valid_mask(size, self.embedding_size) for size in sizes]),
            masks=torch.from_numpy(np.stack(masks)),
            mask_image_index=torch.tensor(index),
            boxes_xyxy=torch.from_numpy(np.stack(boxes)).float(),
        )


def load_labelled(images: Path, annotations: Path) -> list[Scene]:
    """Load the photos of a COCO-format set that have masks, with MAX_MASKS of a photo at most."""
    scenes = []
    for number, photo in enumerate(CocoSet(images, annotations)):
        masks = [decode_mask(instance.rle).astype(bool) for instance in photo.instances]
        if masks:
            rng = np.random.default_rng(number)
            kept = [masks[place] for place in rng.permutation(len(masks))[:MAX_MASKS]]
            scenes.append(Scene(photo.load(), np.stack(kept)))
    return scenes
