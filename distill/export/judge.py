"""The gate of exported files: on real photos, their masks must be those of torch in float32.

Cosine says little: a file of an embedding's cosine 0.98 can lose half of every mask. So boxes and clicks of annotated
instances are answered by both, and the IoU of the masks counts, in the photo's own pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.data.coco import CocoSet
from distill.data.rle import decode_mask
from distill.errors import DataError
from distill.geometry import (
    HW,
    boxes_to_prompt_frame,
    letterbox,
    mask_iou,
    masks_to_original,
    points_to_prompt_frame,
    valid_mask,
)
from distill.models.sam import MASK_THRESHOLD, PromptableModel
from distill.prompts.clicks import first_click
from distill.prompts.types import BOX_HIGH, BOX_LOW, PAD, POSITIVE, Prompts

NUM_PHOTOS = 10  # of a judge's set, spread evenly over it
INSTANCES_PER_PHOTO = 6
MIN_SIDE = 32  # pixels: no mask of a smaller photo tells anything
LEAST_IOU = {"fp32": 0.999, "fp16": 0.99, "bf16": 0.99, "int8": 0.98}

Arrays = Mapping[str, np.ndarray]
Encode = Callable[[np.ndarray], np.ndarray]  # pixels (1, 3, S, S) -> embedding (1, C, E, E)
Decode = Callable[[Arrays], Arrays]


@dataclass(frozen=True)
class JudgeSet:
    """A COCO-format set: the directory of its photos, and its annotations."""

    images: Path
    annotations: Path


@dataclass(frozen=True)
class Agreement:
    """How well a file's masks agree with those of torch in float32.

    boxes, clicks: mean IoU of the masks for boxes, and for one click at each instance's centre.
    worst_box, worst_click: the smallest IoU, and worst_photo: the photo of the smallest of both.
    cosine: between the embeddings, over the photo's cells, mean over photos.
    same_choice: the share of clicks for which both predict the highest IoU for the same of three masks.
    """

    boxes: float
    worst_box: float
    clicks: float
    worst_click: float
    worst_photo: str
    cosine: float
    same_choice: float
    num_photos: int
    num_prompts: int

    @property
    def least(self) -> float:
        """Return the lower of both means."""
        return min(self.boxes, self.clicks)

    def as_json(self) -> dict[str, Any]:
        """Return the numbers for report.json."""
        return asdict(self)

    def line(self) -> str:
        """Return the numbers for a person."""
        return (
            f"mask IoU with torch {self.boxes:.4f} for boxes (worst {self.worst_box:.3f}), {self.clicks:.4f} for "
            f"clicks (worst {self.worst_click:.3f}), cosine {self.cosine:.4f}, {self.num_prompts} prompts on "
            f"{self.num_photos} photos"
        )


@dataclass
class JudgedPhoto:
    """A photo, its prompts as the decoder's points, and torch's answers.

    coords, labels: (2 P, N, 2) and (2 P, N) in the prompt frame: first P boxes, then P clicks.
    masks: bool (2 P, H, W). chosen: (2 P,) which of the four masks of each prompt they are.
    """

    key: str
    hw: HW
    pixels: np.ndarray
    coords: np.ndarray
    labels: np.ndarray
    embedding: Tensor
    masks: Tensor
    chosen: Tensor


class Judge:
    """The photos and prompts of the gate, answered once by torch.

    Args:
        sets: annotated photos; the prompts come from their instances.
        num_photos: how many photos of all sets together count.
    Raises:
        DataError: a set cannot be read, has no instance, or has a photo that is too small.
    """

    def __init__(self, model: PromptableModel, sets: Sequence[JudgeSet], *, num_photos: int = NUM_PHOTOS) -> None:
        self.model = model
        self.sets = tuple(sets)
        share = max(1, num_photos // len(sets))
        self.photos = [photo for one in sets for photo in self._read(one, share)]
        self._hardest = self.photos

    def agreement(self, encode: Encode | None, decode: Decode, *, num_photos: int | None = None) -> Agreement:
        """Compare a file's answers with torch's.

        Args:
            encode: the exported encoder; None for torch's own embeddings, so that the decoder is judged alone.
            decode: the exported decoder, of low-res masks of all four tokens, or one.
            num_photos: how many photos to ask, those of the lowest IoU in the last answer of all; None for all.
        """
        ious, same, cosines = [], [], []
        photos = self.photos if num_photos is None else self._hardest[:num_photos]
        for photo in photos:
            embedding = photo.embedding if encode is None else torch.from_numpy(encode(photo.pixels)).float()
            cosines.append(_cosine(embedding, photo.embedding, photo.hw))
            low_res, scores = _decode(decode, embedding.numpy(), photo, self.model)
            iou, is_same = _compare(low_res, scores, photo, self.model.prompt_size)
            ious.append(iou)
            same.append(is_same)
        if num_photos is None:
            order = sorted(range(len(photos)), key=lambda i: float(ious[i].mean()))
            self._hardest = [photos[i] for i in order]
        by_kind = torch.cat([iou.reshape(2, -1) for iou in ious], 1)  # (2, P of all photos)
        worst = min(range(len(photos)), key=lambda i: float(ious[i].min()))
        return Agreement(
            boxes=float(by_kind[0].mean()),
            worst_box=float(by_kind[0].min()),
            clicks=float(by_kind[1].mean()),
            worst_click=float(by_kind[1].min()),
            worst_photo=photos[worst].key,
            cosine=sum(cosines) / len(cosines),
            same_choice=float(torch.cat(same).float().mean()),
            num_photos=len(photos),
            num_prompts=by_kind.numel(),
        )

    def _read(self, source: JudgeSet, num_photos: int) -> list[JudgedPhoto]:
        annotated = [photo for photo in CocoSet(source.images, source.annotations) if photo.instances]
        if not annotated:
            raise DataError(f"{source.annotations}: no photo has an instance; the judge's prompts come from instances")
        num = min(num_photos, len(annotated))
        chosen = [annotated[i * len(annotated) // num] for i in range(num)]
        small = [photo for photo in chosen if min(photo.hw) < MIN_SIDE]
        if small:
            raise DataError(
                f"{small[0].path}: {small[0].hw[1]} x {small[0].hw[0]} pixels; a photo of the judge has at least "
                f"{MIN_SIDE} on each side: leave it out of the annotations"
            )
        return [self._answer(photo) for photo in chosen]

    @torch.no_grad()
    def _answer(self, annotated: Any) -> JudgedPhoto:
        largest = sorted(annotated.instances, key=lambda one: -one.area)[:INSTANCES_PER_PHOTO]
        size, hw = self.model.prompt_size, annotated.hw
        boxes = boxes_to_prompt_frame(np.array([one.bbox_xyxy for one in largest], np.float64), hw, size)
        clicks = np.stack([first_click(decode_mask(one.rle)) for one in largest])
        clicks = points_to_prompt_frame(clicks.reshape(-1, 1, 2).astype(np.float64), hw, size)
        count = len(largest)
        pixels = letterbox(annotated.load(), self.model.image_size)[None]
        embedding = self.model.encode(pixels)
        index = torch.zeros(count, dtype=torch.long)
        box_prompts = Prompts(index, boxes_xyxy=torch.from_numpy(boxes).float())
        ones = torch.ones(count, 1)
        click_prompts = Prompts(index, points_xy=torch.from_numpy(clicks).float(), point_labels=ones)
        of_boxes, _ = self.model.decode(embedding, box_prompts, multimask=False)
        of_clicks, scores = self.model.decode(embedding, click_prompts, multimask=True)
        best = scores.argmax(1)  # (P,)
        low_res = torch.cat([of_boxes, of_clicks.take_along_dim(best[:, None, None, None], 1)])  # (2 P, 1, 4E, 4E)
        masks = masks_to_original(low_res, hw, size)[:, 0] > MASK_THRESHOLD
        coords = np.concatenate([boxes.reshape(count, 2, 2), np.pad(clicks, [(0, 0), (0, 1), (0, 0)])])
        labels = np.repeat([[BOX_LOW, BOX_HIGH], [POSITIVE, PAD]], count, axis=0)
        chosen = torch.cat([torch.zeros_like(best), best + 1])
        points = coords.astype(np.float32), labels.astype(np.float32)
        return JudgedPhoto(annotated.key, hw, pixels.numpy(), *points, embedding, masks, chosen)


def _decode(decode: Decode, embedding: np.ndarray, photo: JudgedPhoto, model: PromptableModel) -> tuple[Tensor, Tensor]:
    """Return the low-res logits (2 P, K, 4E, 4E) and predicted IoU (2 P, K) of an exported decoder."""
    side, count = model.low_res_size, len(photo.coords)
    answers = decode(
        {
            "image_embeddings": embedding,
            "point_coords": photo.coords,
            "point_labels": photo.labels,
            "mask_input": np.zeros((count, 1, side, side), np.float32),
            "has_mask_input": np.zeros(count, np.float32),
        }
    )
    return torch.from_numpy(answers["low_res_masks"]).float(), torch.from_numpy(answers["iou_predictions"]).float()


def _compare(low_res: Tensor, scores: Tensor, photo: JudgedPhoto, prompt_size: int) -> tuple[Tensor, Tensor]:
    """Return the IoU (2 P,) of the masks that torch chose, and for the clicks (P,) whether both choose the same."""
    chosen = photo.chosen.clamp(max=low_res.shape[1] - 1)
    picked = low_res.take_along_dim(chosen[:, None, None, None], 1)  # (2 P, 1, 4E, 4E)
    masks = masks_to_original(picked, photo.hw, prompt_size)[:, 0] > MASK_THRESHOLD  # (2 P, H, W)
    iou = mask_iou(masks, photo.masks, both_empty=1.0)
    count = len(chosen) // 2
    if scores.shape[1] == 1:
        return iou, torch.ones(count, dtype=torch.bool)
    return iou, scores[count:, 1:].argmax(1) + 1 == photo.chosen[count:]


def _cosine(found: Tensor, expected: Tensor, hw: HW) -> float:
    valid = valid_mask(hw, expected.shape[-1])
    similarity = torch.nn.functional.cosine_similarity(found, expected, dim=1)[0]  # (E, E)
    return float(similarity[valid].nan_to_num(0).mean())
