"""The scenes that the quickstart teacher is trained on: real instances, shapes, and boxes over photographs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from distill.batch import ImageBatch
from distill.data.coco import CocoSet
from distill.data.rle import decode_mask
from distill.data.synthetic.scenes import (
    Cutout,
    Scene,
    compose,
    cut_instance,
    cut_shape,
    random_crop,
    vary_cutout,
    without_instances,
)
from distill.geometry import boxes_to_prompt_frame, letterbox, mask_to_low_res, mask_window, valid_mask

MAX_INSTANCES = 12  # masks per scene and step
MIN_CUTOUT_AREA = 300  # pixels of an instance that is pasted into other photos
MIN_AREA = 24  # pixels; half of the default of `compose`, since COCO's small objects are smaller
MIN_CONTRAST = 80.0  # RGB levels; a shape that nobody can see teaches nothing
SHAPE_SHARE = 0.4  # scenes without a labelled instance: shapes on a photo
PASTED_SHARE = 0.6  # of the labelled scenes: instances of other photos are pasted into them
CONTRAST_SHARE = 0.7  # of the scenes: all their cut-outs stand out by MIN_CONTRAST


class BoxScenes(Dataset[Scene]):
    """Scenes whose instances are random boxes, unrelated to the photo, with sides from 5 % of the photo's."""

    def __init__(self, photographs: list[np.ndarray], *, num_scenes: int, size: int) -> None:
        self.photographs = photographs
        self.num_scenes = num_scenes
        self.size = size

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> Scene:
        rng = np.random.default_rng((0, index))
        photo = self.photographs[rng.integers(len(self.photographs))]
        scene = random_crop(rng, without_instances(photo), long_side=self.size, min_share=0.3)
        height, width = scene.pixels.shape[:2]
        masks = np.zeros((MAX_INSTANCES, height, width), bool)
        for mask in masks:
            h, w = (np.array([height, width]) * np.exp(rng.uniform(np.log(0.05), 0, 2))).astype(int) + 1
            top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
            mask[top : top + h, left : left + w] = True
        return Scene(scene.pixels, masks)


class ComposedScenes(Dataset[Scene]):
    """Scenes of two kinds, each drawn from its own seed.

    SHAPE_SHARE of them are shapes on a photo without labels. The others are crops of labelled
    photos, most of them with more instances and shapes pasted on top.
    """

    def __init__(
        self,
        labelled: list[Scene],
        photographs: list[np.ndarray],
        *,
        num_scenes: int,
        size: int,
        seed: int,
    ) -> None:
        self.labelled = labelled
        self.photographs = photographs
        self.instances = [
            cut_instance(s.pixels, mask) for s in labelled for mask in s.masks if mask.sum() > MIN_CUTOUT_AREA
        ]
        self.num_scenes = num_scenes
        self.size = size
        self.seed = seed

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> Scene:
        rng = np.random.default_rng((self.seed, index))
        for _ in range(20):
            scene = self._draw(rng)
            if len(scene.masks):
                return scene
        raise RuntimeError("no scene with a visible instance in 20 draws")

    def _draw(self, rng: np.random.Generator) -> Scene:
        if rng.random() < SHAPE_SHARE:
            background, num_shapes, num_instances = without_instances(self._any_photo(rng)), int(rng.integers(2, 6)), 0
        else:
            background = self.labelled[rng.integers(len(self.labelled))]
            num_shapes = int(rng.integers(0, 2))
            num_instances = int(rng.integers(1, 5)) if rng.random() < PASTED_SHARE else 0
        scene = random_crop(rng, background, long_side=self.size, min_share=0.45, min_area=MIN_AREA)
        cutouts = [self._cutout(rng, shape=i < num_shapes) for i in range(num_shapes + num_instances)]
        order = rng.permutation(len(cutouts))
        min_contrast = MIN_CONTRAST if rng.random() < CONTRAST_SHARE else 0.0
        return compose(rng, scene, [cutouts[i] for i in order], min_contrast=min_contrast, min_area=MIN_AREA)

    def _any_photo(self, rng: np.random.Generator) -> np.ndarray:
        if rng.random() < 0.5:
            return self.photographs[rng.integers(len(self.photographs))]
        return self.labelled[rng.integers(len(self.labelled))].pixels

    def _cutout(self, rng: np.random.Generator, *, shape: bool) -> Cutout:
        size = int(self.size * (rng.uniform(0.2, 0.6) if shape else np.exp(rng.uniform(np.log(0.08), np.log(0.7)))))
        if shape:
            return vary_cutout(rng, cut_shape(rng, self._any_photo(rng), max(size, 16)), max(size, 16))
        return vary_cutout(rng, self.instances[rng.integers(len(self.instances))], max(size, 12))


@dataclass
class Collate:
    """A function from scenes to an ImageBatch at the sizes of a model, with up to MAX_INSTANCES masks of each scene."""

    image_size: int
    embedding_size: int

    def __call__(self, scenes: list[Scene]) -> ImageBatch:
        low_res, prompt_size = 4 * self.embedding_size, 16 * self.embedding_size
        masks, boxes, index = [], [], []
        for i, scene in enumerate(scenes):
            rng = np.random.default_rng(int(scene.pixels[::7, ::7].sum()))
            for j in rng.permutation(len(scene.masks))[:MAX_INSTANCES]:
                mask = scene.masks[j]
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
    """Load all photos of a COCO-format set that have masks."""
    scenes = []
    for photo in CocoSet(images, annotations):
        masks = [decode_mask(instance.rle).astype(bool) for instance in photo.instances]
        if masks:
            scenes.append(Scene(photo.load(), np.stack(masks)))
    return scenes
