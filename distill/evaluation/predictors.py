"""What an evaluation judges: a model, or one of two baselines that bound every score.

`oracle` answers with the truth and scores 1; `fill-box` answers a box with all of it and knows nothing of the photo.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from distill.data.coco import Instance
from distill.data.rle import encode_mask
from distill.errors import DistillError
from distill.evaluation.mask_scoring import Candidate, Frame, crop_positive
from distill.geometry import HW, boxes_to_prompt_frame, normalize_pad, points_to_prompt_frame
from distill.models.multimask import Policy, answer_candidates
from distill.models.sam import PromptableModel
from distill.prompts.types import Prompts
from distill.students.fuse import fuse

ORACLE, FILL_BOX = "oracle", "fill-box"
BASELINES = (ORACLE, FILL_BOX)

CPU_PROMPTS = 16  # of a forward of the decoder: more are no faster there, and hold more memory

logger = logging.getLogger(__name__)


@dataclass
class Asked:
    """P prompts about one photo, in its own pixels: boxes_xyxy (P, 4), or points_xy (P, K, 2) with labels (P, K).

    mask_logits: (P, 1, 4E, 4E), a model's own earlier answer. targets: what is meant, for baselines; None: unknown.
    """

    boxes_xyxy: np.ndarray | None = None
    points_xy: np.ndarray | None = None
    labels: np.ndarray | None = None
    mask_logits: Tensor | None = None
    targets: Sequence[Instance | None] = ()


@dataclass
class Reply:
    """K candidates for each of P prompts, predicted IoU float32 (P, K), and a model's logits (P, K, 4E, 4E)."""

    candidates: list[list[Candidate]]
    predicted_iou: np.ndarray
    logits: Tensor | None = None


class View(Protocol):
    """A photo as a subject has seen it."""

    def answer(self, asked: Asked, policy: Policy, prompt_batch_size: int) -> Reply: ...


class Subject(Protocol):
    """What answers prompts. image_size: the side at which it reads photos; None: it does not look at them."""

    image_size: int | None

    def look(self, resized: np.ndarray | None, hw: HW) -> View:
        """See a photo, uint8 (h, w, 3) with a longest side of `image_size`, once for all of its prompts."""
        ...


class ModelSubject:
    """A promptable model on the device that it shall run on.

    Args:
        fuse_norms: fold batch norms into convolutions, which changes an embedding by at most 1e-4 of its largest value.
    """

    def __init__(self, model: PromptableModel, *, fuse_norms: bool = False) -> None:
        self.model = _fused(model) if fuse_norms else model.eval()
        self.image_size: int | None = model.image_size
        self.device = next(model.parameters()).device
        if self.device.type == "cuda":
            self.model.image_encoder.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def look(self, resized: np.ndarray | None, hw: HW) -> ModelView:
        assert resized is not None
        pixels = normalize_pad(resized, self.model.image_size)[None].to(self.device)  # (1, 3, S, S)
        return ModelView(self.model, self.model.encode(pixels), hw)


@dataclass
class ModelView:
    """The embedding (1, C, E, E) of a photo of height and width `hw`."""

    model: PromptableModel
    embedding: Tensor
    hw: HW

    @torch.inference_mode()
    def answer(self, asked: Asked, policy: Policy, prompt_batch_size: int) -> Reply:
        prompts = self._prompts(asked)
        if self.embedding.device.type == "cpu":
            prompt_batch_size = min(prompt_batch_size, CPU_PROMPTS)
        logits, predicted_iou = answer_candidates(
            self.model, self.embedding, prompts, policy=policy, prompt_batch_size=prompt_batch_size
        )  # (P, K, 4E, 4E), (P, K)
        frame = Frame(self.model.prompt_size, self.model.low_res_size)
        candidates: list[list[Candidate]] = [
            [crop_positive(mask, frame) for mask in masks] for masks in logits.float().cpu().numpy()
        ]
        return Reply(candidates, predicted_iou.float().cpu().numpy(), logits)

    def _prompts(self, asked: Asked) -> Prompts:
        frame, like = (self.hw, self.model.prompt_size), self.embedding
        boxes, points, labels = asked.boxes_xyxy, asked.points_xy, asked.labels
        given = boxes if boxes is not None else points
        assert given is not None
        return Prompts(
            torch.zeros(len(given), dtype=torch.long, device=like.device),
            boxes_xyxy=None if boxes is None else torch.from_numpy(boxes_to_prompt_frame(boxes, *frame)).to(like),
            points_xy=None if points is None else torch.from_numpy(points_to_prompt_frame(points, *frame)).to(like),
            point_labels=None if labels is None else torch.from_numpy(labels).to(like.device),
            mask_logits=asked.mask_logits,
        )


@dataclass
class Oracle:
    """Answers with the mask that is meant, sure of it; with the whole box where a detector's box means no object."""

    hw: HW = (0, 0)
    image_size: int | None = None

    def look(self, resized: np.ndarray | None, hw: HW) -> Oracle:
        return Oracle(hw)

    def answer(self, asked: Asked, policy: Policy, prompt_batch_size: int) -> Reply:
        codes = [target.rle if target else None for target in asked.targets]
        return _sure([code or _filled(asked, i, self.hw) for i, code in enumerate(codes)])


@dataclass
class FillBox:
    """Answers a box with all pixels in it, sure of it. Raises DistillError when asked by points."""

    hw: HW = (0, 0)
    image_size: int | None = None

    def look(self, resized: np.ndarray | None, hw: HW) -> FillBox:
        return FillBox(hw)

    def answer(self, asked: Asked, policy: Policy, prompt_batch_size: int) -> Reply:
        if asked.boxes_xyxy is None:
            raise DistillError(f"'{FILL_BOX}' answers boxes alone: give a protocol with boxes, as eval/coco_box")
        return _sure([_filled(asked, i, self.hw) for i in range(len(asked.boxes_xyxy))])


def baseline(name: str) -> Subject:
    """The baseline of a name in BASELINES."""
    return Oracle() if name == ORACLE else FillBox()


def _filled(asked: Asked, row: int, hw: HW) -> Candidate:
    assert asked.boxes_xyxy is not None
    x1, y1, x2, y2 = asked.boxes_xyxy[row].round().astype(int).clip(0)
    mask = np.zeros(hw, bool)
    mask[y1:y2, x1:x2] = True
    return encode_mask(mask)


def _sure(codes: Sequence[Candidate]) -> Reply:
    return Reply([[code] for code in codes], np.ones((len(codes), 1), np.float32))


def _fused(model: PromptableModel) -> PromptableModel:
    """The model with its batch norms folded where that is exact, else as it is."""
    if not any(isinstance(part, nn.BatchNorm2d) for part in model.image_encoder.modules()):
        return model.eval()
    try:
        fused = fuse(model)
    except DistillError as error:
        logger.info("the encoder runs as it is: %s", error)
        return model.eval()
    assert isinstance(fused, PromptableModel)
    return fused
