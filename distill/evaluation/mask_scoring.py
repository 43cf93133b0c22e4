"""What is done to one photo or mask alone, by worker processes: reading photos, laying masks out, comparing, clicking.

A model's mask travels as the part of its low-res logits that holds a positive one, and is laid out at the photo's own
resolution only here, in the pixels that this part reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

from distill.data.coco import read_photo
from distill.data.images import decode_as_annotated, decode_image
from distill.data.rle import RLE, decode_mask, encode_mask
from distill.evaluation.boundary_iou import boundary_iou
from distill.geometry import HW, resize_longest_side, resized_hw
from distill.prompts.clicks import first_click, next_click

MARGIN = 3  # cells: two bilinear steps mix logits that are at most this far apart
MATRICES_KEPT = 32  # a side of 2000 pixels takes 2 MB

Click = tuple[list[float], int]  # XY in original pixels, and POSITIVE or NEGATIVE


@dataclass(frozen=True)
class Frame:
    """How a model's masks lie over a photo: prompt_size (16 E) and low_res_size (4 E)."""

    prompt_size: int
    low_res_size: int


class LowResMask(NamedTuple):
    """The rows and columns of low-res logits that matter, float32 (h, w), and where they begin."""

    logits: np.ndarray
    top: int
    left: int
    frame: Frame


Candidate = Union[LowResMask, RLE]


class Question(NamedTuple):
    """Masks that are candidates for one prompt, and the truth (None: there is none to compare with).

    clicked_xy: (K, 2) clicks so far when another is wanted; None: none is.
    """

    candidates: Sequence[Candidate]
    hw: HW
    truth: RLE | None = None
    clicked_xy: np.ndarray | None = None


class Judgement(NamedTuple):
    """Which candidate fits the truth best, its code and scores in 0..1 (None without a truth), and the next click.

    boundary_iou is None too where a click follows, and so another answer.
    """

    chosen: int
    rle: RLE
    iou: float | None
    boundary_iou: float | None
    click: Click | None


def read_resized(path: Path, hw: HW | None, image_size: int) -> tuple[np.ndarray, HW]:
    """A photo as uint8 (h, w, 3), its longest side `image_size`, and its own height and width.

    Args:
        hw: as annotated; None: the photo's own, upright.
    Raises:
        DataError: the photo cannot be read or decoded, or is of another size.
    """
    data = read_photo(path)
    photo = decode_image(data, str(path)) if hw is None else decode_as_annotated(data, hw, str(path))
    return resize_longest_side(photo, image_size), (photo.shape[0], photo.shape[1])


def crop_positive(logits: np.ndarray, frame: Frame) -> LowResMask:
    """The part of low-res logits (4E, 4E) that decides which pixels are set."""
    positive = logits > 0
    rows, columns = positive.any(1).nonzero()[0], positive.any(0).nonzero()[0]
    if not len(rows):
        return LowResMask(np.zeros((0, 0), np.float32), 0, 0, frame)
    top, left = max(0, rows[0] - MARGIN), max(0, columns[0] - MARGIN)
    part = logits[top : rows[-1] + 1 + MARGIN, left : columns[-1] + 1 + MARGIN]
    return LowResMask(np.ascontiguousarray(part), int(top), int(left), frame)


def lay_out(part: LowResMask, hw: HW) -> np.ndarray:
    """A mask at the photo's own resolution, bool (H, W): `masks_to_original(...) > 0`, as two products of matrices.

    Bilinear interpolation is separable, so both of its steps and the crop between them are one matrix for each side.
    """
    mask = np.zeros(hw, bool, order="F")  # the order of run-length codes
    if not part.logits.size:
        return mask
    rows, columns = resized_hw(hw, part.frame.prompt_size)
    height, width = part.logits.shape
    down = interpolation(hw[0], rows, part.frame)[:, part.top : part.top + height]  # (H, h)
    across = interpolation(hw[1], columns, part.frame)[:, part.left : part.left + width]  # (W, w)
    (top, bottom), (left, right) = _reach(down), _reach(across)
    pixels = down[top:bottom] @ torch.from_numpy(part.logits) @ across[left:right].T
    mask[top:bottom, left:right] = (pixels > 0).numpy()
    return mask


@lru_cache(MATRICES_KEPT)
def interpolation(num_pixels: int, num_resized: int, frame: Frame) -> Tensor:
    """One side of `masks_to_original`: the share of each low-res logit in each pixel, float32 (num_pixels, 4E).

    Args:
        num_resized: pixels of the side in the prompt frame, where padding is cut off.
    """
    logits = torch.eye(frame.low_res_size, dtype=torch.float64)[None]  # (1, 4E, 4E): each alone
    resized = F.interpolate(logits, frame.prompt_size, mode="linear", align_corners=False)[..., :num_resized]
    shares = F.interpolate(resized, num_pixels, mode="linear", align_corners=False)  # (1, 4E, num_pixels)
    return shares[0].T.float().contiguous()


def judge(questions: Sequence[Question]) -> list[Judgement]:
    """The answers to several questions, in their order."""
    return [_judge(question) for question in questions]


def first_clicks(truths: Sequence[RLE]) -> list[list[float]]:
    """The first click on each object: XY in original pixels."""
    return [first_click(decode_mask(truth).astype(bool)).tolist() for truth in truths]


def _judge(question: Question) -> Judgement:
    codes = [_code(candidate, question.hw) for candidate in question.candidates]
    if question.truth is None:
        return Judgement(0, codes[0], None, None, None)
    ious = coco_mask.iou(codes, [question.truth], [0])[:, 0]  # (K,); the truth has pixels, so no union is empty
    chosen = int(ious.argmax())
    predicted, truth = decode_mask(codes[chosen]).astype(bool), decode_mask(question.truth).astype(bool)
    click = None
    if question.clicked_xy is not None and (found := next_click(predicted, truth, clicked_xy=question.clicked_xy)):
        click = found[0].tolist(), found[1]
    boundary = boundary_iou(predicted, truth) if click is None else None
    return Judgement(chosen, codes[chosen], float(ious[chosen]), boundary, click)


def _code(candidate: Candidate, hw: HW) -> RLE:
    return encode_mask(lay_out(candidate, hw)) if isinstance(candidate, LowResMask) else candidate


def _reach(shares: Tensor) -> tuple[int, int]:
    """The first pixel that any of the logits reaches, and the one after the last; 0, 0 where all lie on padding."""
    reached = shares.any(1).nonzero()
    return (int(reached[0]), int(reached[-1]) + 1) if len(reached) else (0, 0)
