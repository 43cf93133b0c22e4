"""What an evaluation scores: a model, or one of the baselines that bound every score.

The baseline `oracle` predicts the true mask and scores 1. The baselines `fill-box` and `fill-ellipse` do not look at
the photo. They fill each box, or the ellipse inscribed in it, a better guess for round objects such as cells.
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
from distill.evaluation.prompt_queue import PromptQueue
from distill.evaluation.scoring.mask_scoring import CandidateMask, Frame, crop_positive
from distill.geometry import HW, boxes_to_prompt_frame, normalize_pad, points_to_prompt_frame
from distill.models.inference import Bfloat16Model, InferenceModel
from distill.models.multimask import Policy
from distill.models.sam import PromptableModel
from distill.prompts.types import Prompts
from distill.runtimes.sessions import Precision
from distill.students.fuse import fuse

ORACLE, FILL_BOX, FILL_ELLIPSE = "oracle", "fill-box", "fill-ellipse"
BASELINES = (ORACLE, FILL_BOX, FILL_ELLIPSE)

TINY = 1e-6  # pixels; half the side of an empty box
CPU_PROMPTS = 16  # prompts per forward of the decoder: more are no faster on a CPU, and take more memory
PHOTOS_AT_ONCE = 8  # photos per forward of the decoder on a GPU: COCO has seven instances a photo

logger = logging.getLogger(__name__)


@dataclass
class PhotoPrompts:
    """P prompts on one photo, in its own pixels: boxes_xyxy (P, 4), or points_xy (P, K, 2) with labels (P, K).

    mask_logits: (P, 1, 4E, 4E) that the same model predicted before, or None. targets: the instance that each prompt
    means, for the baselines; None where it is unknown.
    """

    boxes_xyxy: np.ndarray | None = None
    points_xy: np.ndarray | None = None
    labels: np.ndarray | None = None
    mask_logits: Tensor | None = None
    targets: Sequence[Instance | None] = ()


@dataclass
class MaskCandidates:
    """K candidate masks for each of P prompts.

    predicted_iou: float32 (P, K), as the model predicts it. logits: (P, K, 4E, 4E) of a model; None of a baseline.
    """

    masks: list[list[CandidateMask]]
    predicted_iou: np.ndarray
    logits: Tensor | None = None


class EncodedPhoto(Protocol):
    """A photo that is encoded once, for all of its prompts."""

    async def predict(self, prompts: PhotoPrompts, policy: Policy, prompt_batch_size: int) -> MaskCandidates:
        """Predict the candidate masks among which the policy leaves the choice.

        Args:
            prompt_batch_size: the largest number of prompts in one forward of the decoder.
        """
        ...


class MaskPredictor(Protocol):
    """A model or a baseline.

    image_size: the longest side at which it reads photos; None: it does not read them.
    photos_at_once: how many photos it answers together.
    """

    image_size: int | None
    photos_at_once: int

    def encode(self, resized: np.ndarray | None, hw: HW) -> EncodedPhoto:
        """Encode a photo.

        Args:
            resized: uint8 (h, w, 3) with a longest side of `image_size`; None without an image_size.
            hw: height and width of the original photo.
        """
        ...


class ModelPredictor:
    """A promptable model, on the device that it is on; or one whose files run elsewhere, as an InferenceModel.

    Args:
        fuse_norms: fold a torch model's batch norms into its convolutions, which changes an embedding by at most 1e-4
            of its largest value.
        precision: bf16 computes the products of a torch model in bfloat16.
        photos_at_once: how many photos the decoder answers in one call; None: 1 on a CPU, where more are no faster, and
            otherwise PHOTOS_AT_ONCE.
    """

    def __init__(
        self,
        model: PromptableModel | InferenceModel,
        *,
        fuse_norms: bool = False,
        precision: Precision = "fp32",
        photos_at_once: int | None = None,
    ) -> None:
        self.model: InferenceModel = model
        if isinstance(model, PromptableModel):
            model = _fused(model) if fuse_norms else model.eval()
            model.image_encoder.to(memory_format=torch.channels_last)  # convolutions are faster on CPUs too
            self.model = Bfloat16Model(model) if precision == "bf16" else model
        self.image_size: int | None = self.model.image_size
        self.device = self.model.device
        self.photos_at_once = photos_at_once or (1 if self.device.type == "cpu" else PHOTOS_AT_ONCE)
        self._queue = PromptQueue(self.model, self.photos_at_once)

    @torch.inference_mode()
    def encode(self, resized: np.ndarray | None, hw: HW) -> EmbeddedPhoto:
        """Compute the embedding of a photo, uint8 (h, w, 3)."""
        assert resized is not None
        pixels = normalize_pad(resized, self.model.image_size)[None].to(self.device)  # (1, 3, S, S)
        return EmbeddedPhoto(self.model, self.model.encode(pixels), hw, self._queue)


@dataclass
class EmbeddedPhoto:
    """The embedding (1, C, E, E) of a photo of height and width `hw`, and the model that computed it.

    queue: of the model, which decodes the prompts of several photos in one call.
    """

    model: InferenceModel
    embedding: Tensor
    hw: HW
    queue: PromptQueue

    async def predict(self, prompts: PhotoPrompts, policy: Policy, prompt_batch_size: int) -> MaskCandidates:
        """Decode the prompts, with those of other photos. On a CPU at most CPU_PROMPTS of them go together."""
        if self.embedding.device.type == "cpu":
            prompt_batch_size = min(prompt_batch_size, CPU_PROMPTS)
        logits, predicted_iou = await self.queue.answer(
            self.embedding, self._to_model(prompts), policy, prompt_batch_size
        )  # (P, K, 4E, 4E), (P, K)
        frame = Frame(self.model.prompt_size, self.model.low_res_size)
        masks: list[list[CandidateMask]] = [
            [crop_positive(mask, frame) for mask in of_prompt] for of_prompt in logits.float().cpu().numpy()
        ]
        return MaskCandidates(masks, predicted_iou.float().cpu().numpy(), logits)

    def _to_model(self, prompts: PhotoPrompts) -> Prompts:
        """Convert prompts to the prompt frame, on the model's device."""
        frame, like = (self.hw, self.model.prompt_size), self.embedding
        boxes, points, labels = prompts.boxes_xyxy, prompts.points_xy, prompts.labels
        given = boxes if boxes is not None else points
        assert given is not None
        return Prompts(
            torch.zeros(len(given), dtype=torch.long, device=like.device),
            boxes_xyxy=None if boxes is None else torch.from_numpy(boxes_to_prompt_frame(boxes, *frame)).to(like),
            points_xy=None if points is None else torch.from_numpy(points_to_prompt_frame(points, *frame)).to(like),
            point_labels=None if labels is None else torch.from_numpy(labels).to(like.device),
            mask_logits=prompts.mask_logits,
        )


@dataclass
class Oracle:
    """The baseline that predicts the true mask, with predicted IoU 1. A box that means no object is filled."""

    hw: HW = (0, 0)
    image_size: int | None = None
    photos_at_once: int = 1

    def encode(self, resized: np.ndarray | None, hw: HW) -> Oracle:
        """Keep the size of the photo."""
        return Oracle(hw)

    async def predict(self, prompts: PhotoPrompts, policy: Policy, prompt_batch_size: int) -> MaskCandidates:
        """Return the masks of the targets."""
        codes = [target.rle if target else None for target in prompts.targets]
        return _certain([code or _filled_box(prompts, i, self.hw) for i, code in enumerate(codes)])


@dataclass
class Fill:
    """A baseline that fills a shape in each box, with predicted IoU 1. name: FILL_BOX or FILL_ELLIPSE."""

    name: str
    hw: HW = (0, 0)
    image_size: int | None = None
    photos_at_once: int = 1

    def encode(self, resized: np.ndarray | None, hw: HW) -> Fill:
        """Keep the size of the photo."""
        return Fill(self.name, hw)

    async def predict(self, prompts: PhotoPrompts, policy: Policy, prompt_batch_size: int) -> MaskCandidates:
        """Return the filled shapes. Raises DistillError when the prompts are points."""
        if prompts.boxes_xyxy is None:
            raise DistillError(f"'{self.name}' answers boxes alone: give a protocol with boxes, as eval/coco_box")
        fill = _filled_ellipse if self.name == FILL_ELLIPSE else _filled_box
        return _certain([fill(prompts, i, self.hw) for i in range(len(prompts.boxes_xyxy))])


def baseline(name: str) -> MaskPredictor:
    """Return the baseline of a name in BASELINES."""
    return Oracle() if name == ORACLE else Fill(name)


def _filled_box(prompts: PhotoPrompts, row: int, hw: HW) -> CandidateMask:
    assert prompts.boxes_xyxy is not None
    x1, y1, x2, y2 = prompts.boxes_xyxy[row].round().astype(int).clip(0)
    mask = np.zeros(hw, bool)
    mask[y1:y2, x1:x2] = True
    return encode_mask(mask)


def _filled_ellipse(prompts: PhotoPrompts, row: int, hw: HW) -> CandidateMask:
    """Fill the inscribed ellipse of a box: the pixels whose centres lie in it."""
    assert prompts.boxes_xyxy is not None
    x1, y1, x2, y2 = (float(side) for side in prompts.boxes_xyxy[row])
    y = (np.arange(hw[0]) + 0.5 - (y1 + y2) / 2) / max((y2 - y1) / 2, TINY)
    x = (np.arange(hw[1]) + 0.5 - (x1 + x2) / 2) / max((x2 - x1) / 2, TINY)
    return encode_mask(y[:, None] ** 2 + x**2 <= 1)  # (H, W)


def _certain(codes: Sequence[CandidateMask]) -> MaskCandidates:
    """Return one candidate for each prompt, with predicted IoU 1."""
    return MaskCandidates([[code] for code in codes], np.ones((len(codes), 1), np.float32))


def _fused(model: PromptableModel) -> PromptableModel:
    """Fold the batch norms of a model where that is exact. Return the model unchanged where it is not."""
    if not any(isinstance(part, nn.BatchNorm2d) for part in model.image_encoder.modules()):
        return model.eval()
    try:
        fused = fuse(model)
    except DistillError as error:
        logger.info("the encoder runs as it is: %s", error)
        return model.eval()
    assert isinstance(fused, PromptableModel)
    return fused
