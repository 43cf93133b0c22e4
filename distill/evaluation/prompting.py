"""How a photo's instances are prompted: by their boxes, or by simulated clicks, one after the other.

The functions are coroutines that run on the event loop of worker_pool.run_concurrently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.config.schema import EvaluatePromptConfig
from distill.data.coco import AnnotatedPhoto, Instance
from distill.data.rle import RLE
from distill.evaluation.mask_scoring import Click, MaskScore, ScoringRequest, first_clicks, read_resized, score_masks
from distill.evaluation.predictors import EncodedPhoto, MaskCandidates, MaskPredictor, PhotoPrompts
from distill.evaluation.worker_pool import WorkerPool
from distill.geometry import HW
from distill.models.multimask import Policy
from distill.prompts.types import POSITIVE

MASKS_PER_JOB = 4  # sent to a worker together


@dataclass(frozen=True)
class InstanceScore:
    """The score of one prompt's mask, as an evaluation records it.

    image: key of the photo. annotation_id, area, category_id: those of the annotation. iou, boundary_iou and
    predicted_iou are in 0..1; the model predicts the last. score: the rank of the mask among others, for AP.
    prompt: {"box_xyxy": [4]} or {"points_xy": [[2]], "labels": [1]} in original pixels. segmentation: the mask's code.
    """

    image: str
    annotation_id: int | None
    area: float
    iou: float | None
    predicted_iou: float
    prompt: dict[str, Any]
    category_id: int | None = None
    boundary_iou: float | None = None
    score: float | None = None
    segmentation: RLE | None = None


@dataclass
class PhotoScores:
    """The scores of one photo, in the order of its prompts.

    cosine: between the photo's embeddings by the model and by a teacher; None if it was not measured.
    """

    image: str
    scores: list[InstanceScore] = field(default_factory=list)
    cosine: float | None = None


@dataclass(frozen=True)
class PromptProtocol:
    """How a model is prompted.

    prompt: boxes or simulated clicks. multimask: which of the masks counts, after each click; see multimask.Policy.
    prompt_batch_size: the largest number of prompts in one forward of the decoder.
    """

    prompt: EvaluatePromptConfig
    multimask: Policy = "single"
    prompt_batch_size: int = 64


@dataclass
class PromptScore:
    """A prompt, as InstanceScore has it, with the scored mask and the IoU that the model predicted for it."""

    mask: MaskScore
    predicted_iou: float
    prompt: dict[str, Any]


async def score_instances(
    predictor: MaskPredictor, photo: AnnotatedPhoto, protocol: PromptProtocol, workers: WorkerPool
) -> PhotoScores:
    """Score a photo's instances, in their order. Raises DataError when the photo cannot be decoded."""
    encoded = await encode_photo(predictor, photo.path, photo.hw, workers)
    score = score_boxes if protocol.prompt.kind == "box" else score_clicks
    found = PhotoScores(photo.key)
    for start in range(0, len(photo.instances), protocol.prompt_batch_size):
        instances = photo.instances[start : start + protocol.prompt_batch_size]
        scores = await score(encoded, instances, photo.hw, protocol, workers)
        found.scores += [
            instance_score(photo.key, instance, of_prompt)
            for instance, of_prompt in zip(instances, scores, strict=True)
        ]
    return found


async def encode_photo(predictor: MaskPredictor, path: Path, hw: HW, workers: WorkerPool) -> EncodedPhoto:
    """Read a photo in a worker, and encode it."""
    if predictor.image_size is None:
        return predictor.encode(None, hw)
    resized, _ = await workers.run(read_resized, path, hw, predictor.image_size)
    return predictor.encode(resized, hw)


async def score_boxes(
    photo: EncodedPhoto, instances: Sequence[Instance], hw: HW, protocol: PromptProtocol, workers: WorkerPool
) -> list[PromptScore]:
    """Prompt with the box of each instance, and score the masks."""
    boxes = np.array([instance.bbox_xyxy for instance in instances], np.float64)  # (P, 4), original pixels
    prompts = PhotoPrompts(boxes_xyxy=boxes, targets=instances)
    candidates = photo.predict(prompts, protocol.multimask, protocol.prompt_batch_size)
    masks = await score_candidates(candidates, hw, [instance.rle for instance in instances], workers)
    return [
        PromptScore(mask, float(candidates.predicted_iou[i, mask.chosen]), {"box_xyxy": boxes[i].tolist()})
        for i, mask in enumerate(masks)
    ]


async def score_clicks(
    photo: EncodedPhoto, instances: Sequence[Instance], hw: HW, protocol: PromptProtocol, workers: WorkerPool
) -> list[PromptScore]:
    """Prompt with `num_clicks` simulated clicks on each instance, and score the last masks.

    From the second click on, the model gets its previous logits too. An instance without an error left gets no more
    clicks and keeps its mask.
    """
    simulators = [ClickSimulator(instance) for instance in instances]
    first = await workers.map_chunks(first_clicks, [instance.rle for instance in instances], MASKS_PER_JOB)
    for simulator, point in zip(simulators, first, strict=True):
        simulator.click((point, POSITIVE))
    num_clicks = protocol.prompt.num_clicks
    for num_click in range(1, num_clicks + 1):
        active = [simulator for simulator in simulators if len(simulator.points_xy) == num_click]
        if not active:
            break
        prompts = _prompts_of(active)
        candidates = photo.predict(prompts, protocol.multimask, protocol.prompt_batch_size)
        clicked = prompts.points_xy if num_click < num_clicks else None
        truths = [simulator.instance.rle for simulator in active]
        masks = await score_candidates(candidates, hw, truths, workers, clicked_xy=clicked)
        for i, (simulator, mask) in enumerate(zip(active, masks, strict=True)):
            simulator.update(mask, candidates, i)
    return [simulator.result() for simulator in simulators]


@dataclass
class ClickSimulator:
    """A simulated user who wants one instance and clicks on the largest error of the last mask.

    points_xy: clicks so far, XY in original pixels; labels: POSITIVE or NEGATIVE. logits: (4E, 4E) of the last mask.
    """

    instance: Instance
    points_xy: list[list[float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    mask: MaskScore | None = None
    predicted_iou: float = 0.0
    logits: Tensor | None = None

    def click(self, click: Click | None) -> None:
        """Add a click; None: there is no error to click on."""
        if click is not None:
            self.points_xy.append(click[0])
            self.labels.append(click[1])

    def update(self, mask: MaskScore, candidates: MaskCandidates, row: int) -> None:
        """Take the scored mask for the clicks so far, and make the next click.

        Args:
            row: this instance's prompt among those of `candidates`.
        """
        self.mask = mask
        self.predicted_iou = float(candidates.predicted_iou[row, mask.chosen])
        self.logits = None if candidates.logits is None else candidates.logits[row, mask.chosen]
        self.click(mask.click)

    def result(self) -> PromptScore:
        """Return the score of the last mask, with all clicks."""
        assert self.mask is not None
        return PromptScore(self.mask, self.predicted_iou, {"points_xy": self.points_xy, "labels": self.labels})


def _prompts_of(simulators: Sequence[ClickSimulator]) -> PhotoPrompts:
    """Return the clicks of A instances that have equally many of them, K."""
    previous = [simulator.logits for simulator in simulators if simulator.logits is not None]
    return PhotoPrompts(
        points_xy=np.array([simulator.points_xy for simulator in simulators], np.float64),  # (A, K, 2)
        labels=np.array([simulator.labels for simulator in simulators], np.int64),
        mask_logits=torch.stack(previous)[:, None] if previous else None,  # (A, 1, 4E, 4E)
        targets=[simulator.instance for simulator in simulators],
    )


async def score_candidates(
    candidates: MaskCandidates,
    hw: HW,
    truths: Sequence[RLE | None],
    workers: WorkerPool,
    *,
    clicked_xy: np.ndarray | None = None,
) -> list[MaskScore]:
    """Score the candidates of P prompts in workers, a few prompts at a time.

    Args:
        clicked_xy: (P, K, 2) clicks so far, if the next click of each prompt is wanted.
    """
    requests = [
        ScoringRequest(masks, hw, truth, None if clicked_xy is None else clicked_xy[i])
        for i, (masks, truth) in enumerate(zip(candidates.masks, truths, strict=True))
    ]
    return await workers.map_chunks(score_masks, requests, MASKS_PER_JOB)


def instance_score(image: str, instance: Instance, of_prompt: PromptScore) -> InstanceScore:
    """Return the record of a prompt for an annotated instance."""
    return InstanceScore(
        image=image,
        annotation_id=instance.id,
        area=instance.area,
        iou=of_prompt.mask.iou,
        predicted_iou=of_prompt.predicted_iou,
        prompt=of_prompt.prompt,
        category_id=instance.category_id,
        boundary_iou=of_prompt.mask.boundary_iou,
        score=of_prompt.predicted_iou,
        segmentation=of_prompt.mask.rle,
    )
