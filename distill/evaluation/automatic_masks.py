"""Segment everything: masks at a grid of points, by segment-anything's generator, scored by average recall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distill.config.schema import GridConfig
from distill.data.coco import AnnotatedPhoto, CocoSet
from distill.data.rle import RLE
from distill.errors import DistillError
from distill.evaluation.detector_boxes import result_row
from distill.evaluation.evaluator import Summary, photos_with_instances
from distill.evaluation.predictors import Fill, MaskPredictor, ModelPredictor, Oracle
from distill.evaluation.prompting import InstanceScore, PhotoScores
from distill.evaluation.scoring.average_precision import average_recall
from distill.evaluation.worker_pool import WorkerPool
from distill.models.automatic_masks import AutomaticMaskGenerator
from distill.models.sam import PromptableModel


def mask_generator(model: PromptableModel, config: GridConfig) -> AutomaticMaskGenerator:
    """Return the generator of all masks of a photo that a recipe configures."""
    return AutomaticMaskGenerator(
        model,
        points_per_side=config.points_per_side,
        points_per_batch=config.points_per_batch,
        pred_iou_thresh=config.predicted_iou_threshold,
        stability_score_thresh=config.stability_threshold,
        box_nms_thresh=config.box_nms_threshold,
        output_mode="coco_rle",
    )


class AutomaticMaskEvaluation:
    """The evaluation of the masks that a model finds without prompts, by average recall, whatever their category."""

    def __init__(self, coco_set: CocoSet, config: GridConfig, max_images: int = 0) -> None:
        self.coco_set, self.config = coco_set, config
        self.photos = photos_with_instances(coco_set, max_images)
        self.image_ids = coco_set.image_ids

    async def score_photo(self, predictor: MaskPredictor, photo: AnnotatedPhoto, workers: WorkerPool) -> PhotoScores:
        """Return the masks of a photo, the best first. Raises DistillError for a baseline that needs prompts."""
        if isinstance(predictor, Oracle):
            found = [proposal(photo.key, instance.rle, instance.area, 1.0, 1.0, []) for instance in photo.instances]
            return PhotoScores(photo.key, found)
        if isinstance(predictor, Fill):
            raise DistillError(f"'{predictor.name}' finds nothing by itself; give a model, or 'oracle'")
        assert isinstance(predictor, ModelPredictor)
        if not isinstance(predictor.model, PromptableModel):
            raise DistillError("masks of everything are found by torch in float32: leave --runtime and --precision out")
        pixels = await workers.run(photo.load)
        rows = mask_generator(predictor.model, self.config).generate(pixels)
        masks = [_proposal_of(photo.key, row) for row in rows]
        masks.sort(key=lambda mask: -(mask.score or 0.0))
        return PhotoScores(photo.key, masks[: self.config.max_masks])

    def summarize(self, found: Sequence[PhotoScores]) -> Summary:
        """Return average recall over the instances of all photos."""
        masks = [mask for of_photo in found for mask in of_photo.scores]
        results = [result_row(mask, self.image_ids[mask.image]) for mask in masks]
        metrics, intervals = average_recall(
            self.coco_set, results, [self.image_ids[photo.key] for photo in self.photos]
        )
        counts = {
            "masks_per_image": len(masks) / len(self.photos),
            "num_images": len(self.photos),
            "num_instances": sum(len(photo.instances) for photo in self.photos),
        }
        return Summary({**metrics, **counts}, intervals)


def proposal(
    image: str, rle: RLE, area: float, predicted_iou: float, stability: float, points_xy: list[Any]
) -> InstanceScore:
    """Return the record of a mask without a prompt. Its rank is the mean of predicted IoU and stability.

    Source: SAM paper, appendix D.3.
    """
    return InstanceScore(
        image=image,
        annotation_id=None,
        area=float(area),
        iou=None,
        predicted_iou=predicted_iou,
        prompt={"points_xy": points_xy, "labels": [1] * len(points_xy)},
        category_id=1,
        score=(predicted_iou + stability) / 2,
        segmentation=rle,
    )


def _proposal_of(image: str, row: dict[str, Any]) -> InstanceScore:
    return proposal(
        image,
        row["segmentation"],
        row["area"],
        row["predicted_iou"],
        row["stability_score"],
        row["point_coords"],
    )
