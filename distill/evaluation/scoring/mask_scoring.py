"""The work on single photos and masks that worker processes do: reading, upsampling, comparing, clicking.

A model's mask travels to a worker as the part of its low-res logits that holds a positive value. It is upsampled to
the photo's own resolution only there, in the pixels that this part reaches.
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

from distill.data.images import decode_as_annotated, decode_image, read_photo
from distill.data.rle import RLE, decode_mask, encode_mask
from distill.evaluation.scoring.boundary_iou import boundary_iou
from distill.geometry import HW, mask_window, resize_longest_side, resized_hw
from distill.prompts.clicks import first_click, next_click

MARGIN = 3  # cells: two bilinear steps mix logits that are at most this far apart
MATRICES_KEPT = 32  # a side of 2000 pixels takes 2 MB

Click = tuple[list[float], int]  # XY in original pixels, and POSITIVE or NEGATIVE


@dataclass(frozen=True)
class Frame:
    """The sizes that place a model's masks over a photo: prompt_size (16 E) and low_res_size (4 E)."""

    prompt_size: int
    low_res_size: int


class LowResMask(NamedTuple):
    """The rows and columns of low-res logits that decide a mask, float32 (h, w), and the first of each."""

    logits: np.ndarray
    top: int
    left: int
    frame: Frame


CandidateMask = Union[LowResMask, RLE]


class ScoringRequest(NamedTuple):
    """The candidate masks for one prompt, and the true mask (None: there is no truth).

    hw: height and width of the photo. clicked_xy: (K, 2) clicks so far, in original pixels, if the next click is
    wanted; None if it is not. stop_iou: a mask with this IoU needs no next click.
    """

    candidates: Sequence[CandidateMask]
    hw: HW
    truth: RLE | None = None
    clicked_xy: np.ndarray | None = None
    stop_iou: float | None = None


class MaskScore(NamedTuple):
    """The candidate that fits the truth best: its index, its code, its scores in 0..1, and the next click.

    Without a truth, the first candidate is chosen and iou is None. boundary_iou is None without a truth, and where a
    click follows, because another mask will then replace this one.
    """

    chosen: int
    rle: RLE
    iou: float | None
    boundary_iou: float | None
    click: Click | None


def read_resized(path: Path, hw: HW | None, image_size: int) -> tuple[np.ndarray, HW]:
    """Read a photo as uint8 (h, w, 3), its longest side `image_size`. Return its own height and width too.

    Args:
        hw: height and width as annotated; None: those of the upright photo.
    Raises:
        DataError: the photo cannot be read or decoded, or it has another size.
    """
    resized, found_hw = read_in_sizes(path, hw, [image_size])
    return resized[image_size], found_hw


def read_in_sizes(path: Path, hw: HW | None, image_sizes: Sequence[int]) -> tuple[dict[int, np.ndarray], HW]:
    """Read a photo once, in several sizes. See `read_resized`."""
    data = read_photo(path)
    photo = decode_image(data, str(path)) if hw is None else decode_as_annotated(data, hw, str(path))
    return {size: resize_longest_side(photo, size) for size in image_sizes}, (photo.shape[0], photo.shape[1])


def crop_positive(logits: np.ndarray, frame: Frame) -> LowResMask:
    """Crop low-res logits (4E, 4E) to the part that decides which pixels are set."""
    positive = logits > 0
    window = mask_window(positive)
    if window is None:
        return LowResMask(np.zeros((0, 0), np.float32), 0, 0, frame)
    rows, columns = window
    top, left = max(0, rows.start - MARGIN), max(0, columns.start - MARGIN)
    part = logits[top : rows.stop + MARGIN, left : columns.stop + MARGIN]
    return LowResMask(np.ascontiguousarray(part), top, left, frame)


def mask_to_original(part: LowResMask, hw: HW) -> np.ndarray:
    """Upsample a mask to the photo's own resolution, bool (H, W).

    It is `masks_to_original(...) > 0` as two products of matrices: bilinear interpolation is separable, so both of its
    steps and the crop between them are one matrix for each side.
    """
    mask = np.zeros(hw, bool, order="F")  # the order of run-length codes
    if not part.logits.size:
        return mask
    rows, columns = resized_hw(hw, part.frame.prompt_size)
    height, width = part.logits.shape
    down = interpolation(hw[0], rows, part.frame)[:, part.top : part.top + height]  # (H, h)
    across = interpolation(hw[1], columns, part.frame)[:, part.left : part.left + width]  # (W, w)
    (top, bottom), (left, right) = _reached_pixels(down), _reached_pixels(across)
    pixels = down[top:bottom] @ torch.from_numpy(part.logits) @ across[left:right].T
    mask[top:bottom, left:right] = (pixels > 0).numpy()
    return mask


@lru_cache(MATRICES_KEPT)
def interpolation(num_pixels: int, num_resized: int, frame: Frame) -> Tensor:
    """Return one side of `masks_to_original` as a matrix, float32 (num_pixels, 4E): each logit's share in each pixel.

    Args:
        num_resized: pixels of the side in the prompt frame, where padding is cut off.
    """
    logits = torch.eye(frame.low_res_size, dtype=torch.float64)[None]  # (1, 4E, 4E): each alone
    resized = F.interpolate(logits, frame.prompt_size, mode="linear", align_corners=False)[..., :num_resized]
    shares = F.interpolate(resized, num_pixels, mode="linear", align_corners=False)  # (1, 4E, num_pixels)
    return shares[0].T.float().contiguous()


def score_masks(requests: Sequence[ScoringRequest]) -> list[MaskScore]:
    """Score the masks of several requests. Return the scores in their order."""
    return [_score(request) for request in requests]


def first_clicks(truths: Sequence[RLE]) -> list[list[float] | None]:
    """Return the first click on each object: XY in original pixels, or None for a mask without a pixel."""
    masks = [decode_mask(truth).astype(bool) for truth in truths]
    return [first_click(mask).tolist() if mask.any() else None for mask in masks]


def _score(request: ScoringRequest) -> MaskScore:
    codes = [_to_rle(candidate, request.hw) for candidate in request.candidates]
    if request.truth is None:
        return MaskScore(0, codes[0], None, None, None)
    ious = np.nan_to_num(coco_mask.iou(codes, [request.truth], [0])[:, 0])  # (K,); NaN where both masks are empty
    chosen = int(ious.argmax())
    predicted, truth = decode_mask(codes[chosen]).astype(bool), decode_mask(request.truth).astype(bool)
    click = None
    is_wanted = request.clicked_xy is not None and (request.stop_iou is None or ious[chosen] < request.stop_iou)
    if is_wanted and (found := next_click(predicted, truth, clicked_xy=request.clicked_xy)):
        click = found[0].tolist(), found[1]
    boundary = boundary_iou(predicted, truth) if click is None else None
    return MaskScore(chosen, codes[chosen], float(ious[chosen]), boundary, click)


def _to_rle(candidate: CandidateMask, hw: HW) -> RLE:
    return encode_mask(mask_to_original(candidate, hw)) if isinstance(candidate, LowResMask) else candidate


def _reached_pixels(shares: Tensor) -> tuple[int, int]:
    """Return the first pixel that any logit reaches and the one after the last; 0, 0 if all lie on padding."""
    reached = shares.any(1).nonzero()
    return (int(reached[0]), int(reached[-1]) + 1) if len(reached) else (0, 0)
