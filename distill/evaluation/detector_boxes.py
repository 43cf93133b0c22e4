"""Masks from a detector's boxes, scored by average precision."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

from distill.data.coco import AnnotatedPhoto, CocoSet, Instance
from distill.data.detections import Detection, Detections
from distill.data.lvis import LvisSet
from distill.data.rle import rle_area
from distill.errors import DataError
from distill.evaluation.evaluator import Summary
from distill.evaluation.predictors import MaskPredictor, PhotoPrompts
from distill.evaluation.prompting import (
    InstanceScore,
    PhotoScores,
    PromptProtocol,
    encode_photo,
    score_candidates,
)
from distill.evaluation.scoring.average_precision import average_precision
from distill.evaluation.scoring.lvis_rules import MAX_DETECTIONS
from distill.evaluation.worker_pool import WorkerPool


@dataclass(frozen=True)
class DetectedPhoto:
    """A photo and the boxes that a detector found in it."""

    photo: AnnotatedPhoto
    detections: list[Detection]

    @property
    def key(self) -> str:
        return self.photo.key


class DetectionEvaluation:
    """The evaluation of masks in a detector's boxes, by average precision.

    The masks keep the detector's scores, as in published tables. Photos without a detection count too: their
    instances are missed.

    Raises:
        DataError: no photo has a detection.
    """

    def __init__(
        self, coco_set: CocoSet, detections: Detections, protocol: PromptProtocol, max_images: int = 0
    ) -> None:
        self.coco_set, self.detections, self.protocol = coco_set, detections, protocol
        photos = itertools.islice(coco_set, max_images or None)
        limit = MAX_DETECTIONS if isinstance(coco_set, LvisSet) else None  # beyond it, LVIS looks at none
        self.photos = [DetectedPhoto(photo, _best(detections.by_photo.get(photo.key, []), limit)) for photo in photos]
        if not any(photo.detections for photo in self.photos):
            raise DataError(
                f"{detections.path}: no box inside one of the {len(self.photos)} photos to evaluate; give "
                "their detections, or more photos: data.max_images"
            )
        self.image_ids = coco_set.image_ids

    async def score_photo(self, predictor: MaskPredictor, photo: DetectedPhoto, workers: WorkerPool) -> PhotoScores:
        """Return the mask in each of a photo's boxes, without a truth to compare it with."""
        found = PhotoScores(photo.key)
        if not photo.detections:
            return found
        encoded = await encode_photo(predictor, photo.photo.path, photo.photo.hw, workers)
        size = self.protocol.prompt_batch_size
        for start in range(0, len(photo.detections), size):
            detections = photo.detections[start : start + size]
            boxes = np.array([detection.box_xyxy for detection in detections], np.float64)  # (P, 4)
            targets = [nearest_instance(detection, photo.photo.instances) for detection in detections]
            prompts = PhotoPrompts(boxes_xyxy=boxes, targets=targets)
            candidates = await encoded.predict(prompts, self.protocol.multimask, size)
            masks = await score_candidates(candidates, photo.photo.hw, [None] * len(detections), workers)
            found.scores += [
                InstanceScore(
                    image=photo.key,
                    annotation_id=None,
                    area=float(rle_area(mask.rle)),
                    iou=None,
                    predicted_iou=float(candidates.predicted_iou[i, 0]),
                    prompt={"box_xyxy": list(detection.box_xyxy)},
                    category_id=detection.category_id,
                    score=detection.score,
                    segmentation=mask.rle,
                )
                for i, (detection, mask) in enumerate(zip(detections, masks, strict=True))
            ]
        return found

    def summarize(self, found: Sequence[PhotoScores]) -> Summary:
        """Return AP over the annotations of all photos, and how many boxes were left out."""
        image_ids = [self.image_ids[photo.key] for photo in self.photos]
        results = [result_row(score, self.image_ids[score.image]) for of_photo in found for score in of_photo.scores]
        precision = average_precision(self.coco_set, results, image_ids)
        counts = {
            "num_images": len(self.photos),
            "num_instances": sum(len(photo.photo.instances) for photo in self.photos),
            "num_detections": len(results),
            "num_outside": self.detections.num_outside,
            "num_foreign": self.detections.num_foreign,
        }
        return Summary({**precision.metrics, **counts}, precision.intervals())


def result_row(score: InstanceScore, image_id: int) -> dict[str, Any]:
    """Return a mask in COCO's results format.

    The row has no bbox: with one, pycocotools would take the area of the box for the area of the mask.
    """
    row: dict[str, Any] = {
        "image_id": image_id,
        "category_id": score.category_id,
        "segmentation": score.segmentation,
        "score": score.score,
        "image": score.image,
    }
    return row if score.annotation_id is None else {**row, "annotation_id": score.annotation_id}


def nearest_instance(detection: Detection, instances: Sequence[Instance]) -> Instance | None:
    """Return the instance that a box means: the one of its category with the largest box IoU. None if none overlaps."""
    same = [instance for instance in instances if instance.category_id == detection.category_id]
    if not same:
        return None
    boxes = torch.tensor([instance.bbox_xyxy for instance in same], dtype=torch.float64)  # (N, 4)
    ious = box_iou(boxes, torch.tensor([detection.box_xyxy], dtype=torch.float64))[:, 0]
    return same[int(ious.argmax())] if ious.max() > 0 else None


def _best(detections: list[Detection], limit: int | None) -> list[Detection]:
    """Return the `limit` detections with the highest scores, or all of them without a limit."""
    if limit is None or len(detections) <= limit:
        return detections
    return sorted(detections, key=lambda detection: detection.score, reverse=True)[:limit]
