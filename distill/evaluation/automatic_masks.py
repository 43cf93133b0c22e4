"""Segment everything: masks at a grid of points, by segment-anything's generator, scored by average recall."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from segment_anything import SamAutomaticMaskGenerator
from torch import Tensor

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
from distill.geometry import HW, letterbox, masks_to_original, points_to_prompt_frame
from distill.models.predictor import MASK_THRESHOLD
from distill.models.sam import PromptableModel
from distill.prompts.types import Prompts


class GridPredictor:
    """A stand-in for the SamPredictor of segment-anything's generator, over one of our models."""

    def __init__(self, model: PromptableModel) -> None:
        self.promptable = model
        self.device = next(model.parameters()).device
        self.model = SimpleNamespace(mask_threshold=MASK_THRESHOLD)
        self.transform = SimpleNamespace(apply_coords=self._to_prompt_frame)

    def set_image(self, photo: np.ndarray) -> None:
        """Embed a photo, uint8 (H, W, 3) RGB."""
        self.hw: HW = (photo.shape[0], photo.shape[1])
        pixels = letterbox(photo, self.promptable.image_size)[None].to(self.device)  # (1, 3, S, S)
        self.embedding = self.promptable.encode(pixels)

    def reset_image(self) -> None:
        """Forget the photo."""
        del self.embedding

    def predict_torch(
        self, points_xy: Tensor, labels: Tensor, *, multimask_output: bool, return_logits: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict three masks for each point.

        Args:
            points_xy: (P, 1, 2) in the prompt frame. labels: (P, 1).
        Returns:
            logits (P, 3, H, W) at the photo's own resolution, predicted IoU (P, 3), and low-res logits (P, 3, 4E, 4E).
        """
        assert multimask_output and return_logits
        image_index = torch.zeros(len(points_xy), dtype=torch.long, device=self.device)
        prompts = Prompts(image_index, points_xy=points_xy.to(self.embedding), point_labels=labels)
        low_res, predicted_iou = self.promptable.decode(self.embedding, prompts, multimask=True)
        return masks_to_original(low_res, self.hw, self.promptable.prompt_size), predicted_iou, low_res

    def _to_prompt_frame(self, points_xy: np.ndarray, hw: HW) -> np.ndarray:
        return points_to_prompt_frame(points_xy, hw, self.promptable.prompt_size)


def mask_generator(model: PromptableModel, config: GridConfig) -> SamAutomaticMaskGenerator:
    """Return segment-anything's generator of all masks of a photo, on one of our models."""
    stand_in = SimpleNamespace(image_encoder=SimpleNamespace(img_size=model.prompt_size))  # its predictor is replaced
    generator = SamAutomaticMaskGenerator(
        stand_in,
        points_per_side=config.points_per_side,
        points_per_batch=config.points_per_batch,
        pred_iou_thresh=config.predicted_iou_threshold,
        stability_score_thresh=config.stability_threshold,
        box_nms_thresh=config.box_nms_threshold,
        output_mode="coco_rle",
    )
    generator.predictor = GridPredictor(model)
    return generator


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
