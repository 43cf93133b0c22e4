"""What EdgeSAM's evaluation does in its own way: true masks that are resampled, and clicks drawn in the error.

Source: github.com/chongzhou96/EdgeSAM, commit 57a997a, evaluation/eval_mIoU.py (the loop over `refine_iter`),
training/data/coco_dataset.py (`__getitem__`) and edge_sam/utils/common.py (`sample_point_in_mask`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.data.rle import RLE, decode_mask, encode_mask
from distill.evaluation.scoring.mask_scoring import CandidateMask, Click, Frame, LowResMask
from distill.geometry import HW, resized_hw
from distill.prompts.seeded_noise import stable_seed
from distill.prompts.types import NEGATIVE, POSITIVE

SAM_FRAME = Frame(prompt_size=1024, low_res_size=256)


class ErrorRequest(NamedTuple):
    """A predicted and a true mask of a photo of height and width `hw`, in whose difference a click is drawn.

    min_cells: a smaller difference, in low-res cells, gets no click. seed: the parts that the draw depends on.
    """

    predicted: CandidateMask
    truth: RLE
    hw: HW
    min_cells: int
    seed: tuple[int, ...]


def resampled_truths(truths: Sequence[RLE]) -> list[RLE]:
    """Bring masks to 1024 pixels by nearest neighbours, and back by linear interpolation; all above 0 is set.

    So a mask grows by about a pixel where the photo is smaller than 1024 pixels.
    """
    found = []
    for truth in truths:
        mask = decode_mask(truth)
        back = F.interpolate(_enlarged(mask, SAM_FRAME), mask.shape, mode="bilinear", align_corners=False)
        found.append(encode_mask((back[0, 0] > 0).numpy()))
    return found


def draw_clicks(requests: Sequence[ErrorRequest]) -> list[Click | None]:
    """Draw a click for each request, uniformly from the cells of its error. None: the error is too small.

    A click lies at the upper left corner of its cell: XY in original pixels.
    """
    return [_draw(request) for request in requests]


def _draw(request: ErrorRequest) -> Click | None:
    frame = request.predicted.frame if isinstance(request.predicted, LowResMask) else SAM_FRAME
    truth = _low_res(decode_mask(request.truth), frame)
    valid = _low_res_values(np.ones(request.hw, np.uint8), frame)
    predicted = _predicted(request.predicted, frame)
    missing = truth & ~predicted & (valid == 1)
    error = missing | (predicted & ~truth & (valid > 0))
    cells = error.flatten().nonzero()[:, 0]
    if len(cells) < request.min_cells:
        return None
    generator = torch.Generator().manual_seed(stable_seed("edge_sam", *request.seed))
    cell = int(cells[torch.randint(len(cells), (1,), generator=generator)])
    row, column = divmod(cell, frame.low_res_size)
    rows, columns = resized_hw(request.hw, frame.prompt_size)
    step = frame.prompt_size / frame.low_res_size
    x, y = column * step * request.hw[1] / columns, row * step * request.hw[0] / rows
    return [x, y], POSITIVE if missing[row, column] else NEGATIVE


def _predicted(mask: CandidateMask, frame: Frame) -> Tensor:
    """Return which low-res cells a mask sets, bool (4E, 4E)."""
    if not isinstance(mask, LowResMask):
        return _low_res(decode_mask(mask), frame)
    found = torch.zeros(frame.low_res_size, frame.low_res_size, dtype=torch.bool)
    height, width = mask.logits.shape
    found[mask.top : mask.top + height, mask.left : mask.left + width] = torch.from_numpy(mask.logits > 0)
    return found


def _low_res(mask: np.ndarray, frame: Frame) -> Tensor:
    return _low_res_values(mask, frame) > 0


def _low_res_values(mask: np.ndarray, frame: Frame) -> Tensor:
    """Return a mask (H, W) in the low-res frame, padding included: float32 (4E, 4E) in 0..1."""
    enlarged = _enlarged(mask, frame)  # (1, 1, h, w)
    padding = frame.prompt_size - enlarged.shape[3], frame.prompt_size - enlarged.shape[2]
    padded = F.pad(enlarged, (0, padding[0], 0, padding[1]))
    size = (frame.low_res_size, frame.low_res_size)
    return F.interpolate(padded, size, mode="bilinear", align_corners=False)[0, 0]


def _enlarged(mask: np.ndarray, frame: Frame) -> Tensor:
    """Return a mask (H, W) in the prompt frame without padding: float32 (1, 1, h, w)."""
    height, width = mask.shape
    pixels = torch.from_numpy(np.ascontiguousarray(mask, np.float32))[None, None]
    return F.interpolate(pixels, resized_hw((height, width), frame.prompt_size), mode="nearest")
