"""Drawings: flat, textured shapes over each other, in batches, from which a decoder learns cheaply what a prompt means.

A drawing has the resolution of the low-res masks. A photo is not needed to learn where a click is, what a box encloses
and what lies in front: a tiny encoder reads a drawing in no time, so that the decoder meets many prompts.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from distill.batch import ImageBatch
from distill.data.synthetic.scenes import MIN_VISIBLE_SHARE, Scene, cut_instance, random_outline

NUM_DRAWINGS, NUM_SHAPES, NUM_PROMPTS = 16, 8, 96  # of a batch, of a drawing, of a batch
OUTLINE_SIZE = 48  # pixels of a stored outline's side
NUM_RANDOM_OUTLINES = 1500
OUTLINES_PER_SCENE = 20
MIN_OUTLINE_AREA = 150  # pixels of a labelled instance whose outline is worth keeping
SMALLEST, LARGEST = 0.06, 0.9  # side of a shape as a share of the drawing's
LONGEST = math.exp(0.6)  # the larger of width and height over their geometric mean
TURNED_SHARE = 0.5  # of the shapes: turned by any angle
ALIKE_SHARE = 0.4  # of the drawings: all shapes have nearly one colour, as cells have
ALIKE_SPREAD = 0.35  # standard deviation of their colours; it is 1 in the other drawings
MIN_CELLS = 6  # visible low-res cells of a shape that is a target
CELL_COVERED = 0.5  # share of a cell that belongs to a mask


class Drawings(Dataset[ImageBatch]):
    """Batches of drawings. The batch at an index is always the same.

    Args:
        bank: outlines (N, h, w), from `outlines`.
        grid: E of the model that reads them.
        first: added to each index, so that a resumed training sees the batches that come next.
    """

    def __init__(self, bank: Tensor, *, num_batches: int, grid: int, seed: int, first: int = 0) -> None:
        self.bank, self.num_batches, self.grid, self.seed, self.first = bank, num_batches, grid, seed, first

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, index: int) -> ImageBatch:
        generator = torch.Generator().manual_seed(self.seed * 2**32 + self.first + index)
        return draw(
            self.bank,
            num_drawings=NUM_DRAWINGS,
            num_shapes=NUM_SHAPES,
            num_prompts=NUM_PROMPTS,
            grid=self.grid,
            generator=generator,
        )


def outlines(scenes: list[Scene], seed: int = 0) -> Tensor:
    """Return outlines of labelled instances and random ones, stretched to a square: float32 (N, 48, 48) in [0, 1]."""
    rng = np.random.default_rng(seed)
    masks = [mask for scene in scenes for mask in scene.masks[:OUTLINES_PER_SCENE] if mask.sum() >= MIN_OUTLINE_AREA]
    tight = [cut_instance(mask, mask).mask for mask in masks]
    tight += [random_outline(rng, OUTLINE_SIZE) for _ in range(NUM_RANDOM_OUTLINES)]
    size = (OUTLINE_SIZE, OUTLINE_SIZE)
    resized = [Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR) for mask in tight]
    return torch.from_numpy(np.stack([np.asarray(image) for image in resized])).float() / 255


def draw(
    bank: Tensor, *, num_drawings: int, num_shapes: int, num_prompts: int, grid: int, generator: torch.Generator
) -> ImageBatch:
    """Draw a batch for a model with a grid of E cells a side.

    Args:
        bank: outlines (N, h, w).
        num_shapes: L of each drawing, later ones over earlier ones.
        num_prompts: how many of all visible shapes are targets, at most.
    Returns:
        `pixels` are (B, 3, 4E, 4E), of mean 0 and deviation near 1.
    """
    size, frame = 4 * grid, 16 * grid
    coverage = _place(bank, num_drawings * num_shapes, size, generator).view(num_drawings, num_shapes, size, size)
    visible, background = _hide(coverage)
    pixels = _paint(torch.cat([background[:, None], visible], 1), generator)
    areas = visible.sum((2, 3))
    targets = ((areas >= MIN_CELLS) & (areas >= MIN_VISIBLE_SHARE * coverage.sum((2, 3)))).nonzero()  # (n, 2)
    chosen = torch.randperm(len(targets), generator=generator)[:num_prompts].sort().values
    drawing, shape = targets[chosen].unbind(1)
    masks = visible[drawing, shape]
    return ImageBatch(
        keys=[str(i) for i in range(num_drawings)],
        pixels=pixels,
        original_hw=torch.full((num_drawings, 2), size),
        valid=torch.ones(num_drawings, grid, grid, dtype=torch.bool),
        masks=masks,
        mask_image_index=drawing,
        boxes_xyxy=_boxes(masks) * (frame / size),
    )


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator)


def _place(bank: Tensor, num: int, size: int, generator: torch.Generator) -> Tensor:
    """Place outlines at random: coverage (num, size, size) of cells, in [0, 1]."""
    chosen = bank[torch.randint(len(bank), (num,), generator=generator)][:, None]
    scale = SMALLEST * (LARGEST / SMALLEST) ** _uniform(generator, num)
    stretch = LONGEST ** (2 * _uniform(generator, num) - 1)
    flip = torch.where(_uniform(generator, num) < 0.5, 1.0, -1.0)
    turned = _uniform(generator, num) < TURNED_SHARE
    angle = 2 * math.pi * _uniform(generator, num) * turned
    x, y = 2 * _uniform(generator, 2, num) - 1
    width, height, cos, sin = scale * stretch * flip, scale / stretch, angle.cos(), angle.sin()
    rows = (cos, sin, -(cos * x + sin * y)), (-sin, cos, sin * x - cos * y)
    maps = torch.stack(
        [torch.stack(row, 1) / side[:, None] for row, side in zip(rows, (width, height), strict=True)], 1
    )
    points = F.affine_grid(maps, [num, 1, 2 * size, 2 * size], align_corners=False)
    drawn = F.grid_sample(chosen, points, align_corners=False) > CELL_COVERED
    return F.avg_pool2d(drawn.float(), 2)[:, 0]


def _hide(coverage: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is visible of each shape, (B, L, h, w), and of the background, (B, h, w)."""
    visible, free = torch.empty_like(coverage), torch.ones_like(coverage[:, 0])
    for layer in range(coverage.shape[1] - 1, -1, -1):
        visible[:, layer] = coverage[:, layer] * free
        free = free * (1 - coverage[:, layer])
    return visible, free


def _paint(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Give each layer a colour, a slow gradient and noise. Return their sum by weights (B, L, h, w): (B, 3, h, w)."""
    num, layers, *hw = weights.shape

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    alike = (_uniform(generator, num) < ALIKE_SHARE)[:, None, None]
    colours = torch.where(alike, normal(num, 1, 3) + ALIKE_SPREAD * normal(num, layers, 3), normal(num, layers, 3))
    gradient = F.interpolate(normal(num * layers, 3, 3, 3), size=hw, mode="bicubic").view(num, layers, 3, *hw)
    strength, roughness = _uniform(generator, 2, num, layers, 1, 1, 1)
    texture = 0.4 * strength * gradient + 0.3 * roughness * normal(num, layers, 1, *hw)
    painted: Tensor = ((colours[..., None, None] + texture) * weights[:, :, None]).sum(1)
    return painted


def _boxes(masks: Tensor) -> Tensor:
    """Return the boxes (N, 4), XYXY in cells, of masks (N, h, w)."""
    covered = (masks > CELL_COVERED) | (masks >= masks.flatten(1).amax(1)[:, None, None])
    sides = []
    for line in (covered.any(1), covered.any(2)):  # columns, rows
        cells = torch.arange(line.shape[1])
        low, high = torch.where(line, cells, line.shape[1]).amin(1), torch.where(line, cells, -1).amax(1) + 1
        sides.append((low, high))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], 1).float()
