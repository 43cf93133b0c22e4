"""How a photo's instances are prompted: by their boxes, or by simulated clicks, one after the other.

The functions are coroutines that run on the event loop of worker_pool.run_concurrently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from distill.config.schema import EvaluatePromptConfig
from distill.data.coco import AnnotatedPhoto, Instance
from distill.data.rle import RLE
from distill.evaluation.edge_sam_rules import ErrorRequest, draw_clicks, resampled_truths
from distill.evaluation.predictors import EncodedPhoto, MaskCandidates, MaskPredictor, PhotoPrompts
from distill.evaluation.scoring.mask_scoring import (
    Click,
    MaskScore,
    ScoringRequest,
    first_clicks,
    read_resized,
    score_masks,
)
from distill.evaluation.worker_pool import WorkerPool
from distill.geometry import HW
from distill.models.multimask import Policy
from distill.prompts.clicks import PIXEL_CENTRE
from distill.prompts.types import NEGATIVE, POSITIVE

MASKS_PER_JOB = 4  # sent to a worker together


@dataclass(frozen=True)
class InstanceScore:
    """The score of one prompt's mask, as an evaluation records it.

    image: key of the photo. annotation_id, area, category_id: those of the annotation. iou, boundary_iou and
    predicted_iou are in 0..1; the model predicts the last. score: the rank of the mask among others, for AP.
    prompt: {"box_xyxy": [4]} or {"points_xy": [[2]], "labels": [1]} in original pixels. segmentation: the mask's code.
    click_ious: the IoU after each click, the first one after a box before all clicks; a click that was not made leaves
    the mask as it is. None for a single prompt.
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
    click_ious: list[float] | None = None


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

    prompt: boxes or simulated clicks. multimask: which of the masks counts; see multimask.Policy.
    prompt_batch_size: the largest number of prompts in one forward of the decoder.
    multimask_later: which of the masks counts from the second click on; None: the same.
    truth: the masks that count as true; see InstanceConfig.
    """

    prompt: EvaluatePromptConfig
    multimask: Policy = "single"
    prompt_batch_size: int = 64
    multimask_later: Policy | None = None
    truth: Literal["annotated", "resampled"] = "annotated"

    def policy(self, num_clicks: int) -> Policy:
        """Return which of the masks counts after so many clicks."""
        return self.multimask if num_clicks == 1 else self.multimask_later or self.multimask


@dataclass
class PromptScore:
    """A prompt, as InstanceScore has it, with the scored mask and the IoU that the model predicted for it."""

    mask: MaskScore
    predicted_iou: float
    prompt: dict[str, Any]
    click_ious: list[float] | None = None


async def score_instances(
    predictor: MaskPredictor, photo: AnnotatedPhoto, protocol: PromptProtocol, workers: WorkerPool
) -> PhotoScores:
    """Score a photo's instances, in their order. Raises DataError when the photo cannot be decoded."""
    encoded = await encode_photo(predictor, photo.path, photo.hw, workers)
    is_box = protocol.prompt.kind == "box" and not protocol.prompt.refine_clicks
    score = score_boxes if is_box else score_clicks
    found = PhotoScores(photo.key)
    for start in range(0, len(photo.instances), protocol.prompt_batch_size):
        instances = photo.instances[start : start + protocol.prompt_batch_size]
        if protocol.truth == "resampled":
            codes = [instance.rle for instance in instances]
            truths = await workers.map_chunks(resampled_truths, codes, MASKS_PER_JOB)
            instances = [i._replace(rle=truth) for i, truth in zip(instances, truths, strict=True)]
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
    candidates = await photo.predict(prompts, protocol.multimask, protocol.prompt_batch_size)
    masks = await score_candidates(candidates, hw, [instance.rle for instance in instances], workers)
    return [
        PromptScore(mask, float(candidates.predicted_iou[i, mask.chosen]), {"box_xyxy": boxes[i].tolist()})
        for i, mask in enumerate(masks)
    ]


async def score_clicks(
    photo: EncodedPhoto, instances: Sequence[Instance], hw: HW, protocol: PromptProtocol, workers: WorkerPool
) -> list[PromptScore]:
    """Prompt with simulated clicks on each instance, or with its box and then clicks. Score the masks after each."""
    options = protocol.prompt
    simulators = [ClickSimulator(instance, options) for instance in instances]
    if options.kind != "box":
        first = await workers.map_chunks(first_clicks, [instance.rle for instance in instances], MASKS_PER_JOB)
        for simulator, point in zip(simulators, first, strict=True):
            simulator.click(None if point is None else (point, POSITIVE))
    for number in range(1, num_rounds(options) + 1):
        active = [simulator for simulator in simulators if simulator.is_waiting]
        if not active:
            break
        prompts = _prompts_of(active)
        candidates = await photo.predict(prompts, protocol.policy(number), protocol.prompt_batch_size)
        is_centred = options.later_click == "centre" and number < num_rounds(options)
        clicked = _clicked(prompts) if is_centred else None
        truths = [simulator.instance.rle for simulator in active]
        masks = await score_candidates(candidates, hw, truths, workers, clicked_xy=clicked, stop_iou=options.stop_iou)
        clicks = [mask.click for mask in masks]
        if options.later_click == "uniform" and number < num_rounds(options):
            requests = [
                ErrorRequest(
                    of_prompt[mask.chosen], truth, hw, options.min_error_cells, (simulator.instance.id, number)
                )
                for of_prompt, mask, truth, simulator in zip(candidates.masks, masks, truths, active, strict=True)
            ]
            clicks = await workers.map_chunks(draw_clicks, requests, MASKS_PER_JOB)
        for i, (simulator, mask, click) in enumerate(zip(active, masks, clicks, strict=True)):
            simulator.update(mask, click, candidates, i)
    return [simulator.result() for simulator in simulators]


def num_rounds(options: EvaluatePromptConfig) -> int:
    """Return how many masks an instance gets at most, each from one prompt more."""
    return 1 + options.refine_clicks if options.kind == "box" else options.num_clicks


@dataclass
class ClickSimulator:
    """A simulated user who wants one instance and clicks on the error of the last mask.

    points_xy: clicks so far, XY in original pixels; labels: POSITIVE or NEGATIVE. logits: (4E, 4E) of the last mask,
    if the model gets them. ious: of the masks so far. is_waiting: a prompt has no mask yet.
    """

    instance: Instance
    options: EvaluatePromptConfig
    points_xy: list[list[float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    ious: list[float] = field(default_factory=list)
    mask: MaskScore | None = None
    predicted_iou: float = 0.0
    logits: Tensor | None = None
    is_waiting: bool = True

    def click(self, click: Click | None) -> None:
        """Add a click; None: there is no error to click on.

        Args:
            click: at the centre of a pixel, unless clicks are drawn in low-res cells.
        """
        is_drawn = self.options.later_click == "uniform" and bool(self.ious)
        if click is None and self.options.without_error == "corner":
            click = [PIXEL_CENTRE, PIXEL_CENTRE], NEGATIVE
        self.is_waiting = click is not None
        if click is not None:
            shift = PIXEL_CENTRE if self.options.click_at == "index" and not is_drawn else 0.0
            self.points_xy.append([value - shift for value in click[0]])
            self.labels.append(click[1])

    def update(self, mask: MaskScore, click: Click | None, candidates: MaskCandidates, row: int) -> None:
        """Take the scored mask for the prompts so far, and make the next click if there is one.

        Args:
            row: this instance's prompt among those of `candidates`.
        """
        assert mask.iou is not None
        self.mask, self.is_waiting = mask, False
        self.ious.append(mask.iou)
        self.predicted_iou = float(candidates.predicted_iou[row, mask.chosen])
        if candidates.logits is not None and self.options.feed_logits:
            self.logits = candidates.logits[row, mask.chosen]
        is_enough = self.options.stop_iou is not None and mask.iou >= self.options.stop_iou
        if len(self.ious) < num_rounds(self.options) and not is_enough:
            self.click(click)

    def result(self) -> PromptScore:
        """Return the score of the last mask, with all clicks."""
        assert self.mask is not None
        rounds = num_rounds(self.options)
        ious = [*self.ious, *[self.ious[-1]] * (rounds - len(self.ious))] if rounds > 1 else None
        prompt: dict[str, Any] = {"points_xy": self.points_xy, "labels": self.labels}
        if self.options.kind == "box":
            prompt = {"box_xyxy": list(self.instance.bbox_xyxy), **prompt}
        return PromptScore(self.mask, self.predicted_iou, prompt, ious)


def _prompts_of(simulators: Sequence[ClickSimulator]) -> PhotoPrompts:
    """Return the boxes and clicks of A instances that have equally many of them, K."""
    previous = [simulator.logits for simulator in simulators if simulator.logits is not None]
    by_box, by_click = simulators[0].options.kind == "box", bool(simulators[0].points_xy)
    boxes = [simulator.instance.bbox_xyxy for simulator in simulators]
    return PhotoPrompts(
        boxes_xyxy=np.array(boxes, np.float64) if by_box else None,  # (A, 4)
        points_xy=np.array([simulator.points_xy for simulator in simulators], np.float64) if by_click else None,
        labels=np.array([simulator.labels for simulator in simulators], np.int64) if by_click else None,  # (A, K)
        mask_logits=torch.stack(previous)[:, None] if previous else None,  # (A, 1, 4E, 4E)
        targets=[simulator.instance for simulator in simulators],
    )


def _clicked(prompts: PhotoPrompts) -> np.ndarray:
    """Return the clicks so far (P, K, 2); K is 0 after a box alone."""
    return np.zeros((len(prompts.targets), 0, 2)) if prompts.points_xy is None else prompts.points_xy


async def score_candidates(
    candidates: MaskCandidates,
    hw: HW,
    truths: Sequence[RLE | None],
    workers: WorkerPool,
    *,
    clicked_xy: np.ndarray | None = None,
    stop_iou: float | None = None,
) -> list[MaskScore]:
    """Score the candidates of P prompts in workers, a few prompts at a time.

    Args:
        clicked_xy: (P, K, 2) clicks so far, if the next click of each prompt is wanted.
        stop_iou: a mask with this IoU needs no next click.
    """
    requests = [
        ScoringRequest(masks, hw, truth, None if clicked_xy is None else clicked_xy[i], stop_iou)
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
        click_ious=of_prompt.click_ious,
    )
