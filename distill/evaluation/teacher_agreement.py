"""How well a model agrees with its teacher, on photos without annotations.

The teacher is prompted at a grid of points, and its masks are the truth. The model is prompted at the same points, or
by the boxes of these masks. A point may come with a second one that is off the object, for both models. The embeddings
are compared too, where both have equally many channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from distill.config.schema import AgreementPromptConfig
from distill.data.coco import Instance
from distill.data.folder import FolderPhoto, PhotoFolder
from distill.data.rle import rle_area, rle_box_xyxy
from distill.errors import DistillError
from distill.evaluation.evaluator import Summary
from distill.evaluation.predictors import EmbeddedPhoto, MaskPredictor, ModelPredictor, PhotoPrompts
from distill.evaluation.prompting import PhotoScores, PromptScore, instance_score, score_candidates
from distill.evaluation.scoring.bootstrap import mean_interval
from distill.evaluation.scoring.mask_scoring import read_in_sizes
from distill.evaluation.scoring.metrics import image_cosines
from distill.evaluation.summary import score_intervals, summarize
from distill.evaluation.worker_pool import WorkerPool
from distill.geometry import HW, grid_points, valid_mask
from distill.models.multimask import Policy
from distill.prompts.types import NEGATIVE, POSITIVE

TEACHER_POLICY: Policy = "best"  # a point is ambiguous: it may mean a part or the object
PAIR_POLICY: Policy = "single"  # SAM paper, appendix A: one mask for several prompts


class AgreementEvaluation:
    """The evaluation of a model against its teacher over a folder of photos: embedding cosine and mask IoU."""

    def __init__(
        self,
        images_dir: str | Path,
        teacher: ModelPredictor,
        prompt: AgreementPromptConfig,
        *,
        multimask: Policy = "single",
        prompt_batch_size: int = 64,
        max_images: int = 0,
    ) -> None:
        self.teacher, self.prompt = teacher, prompt
        self.multimask, self.prompt_batch_size = multimask, prompt_batch_size
        self.photos = list(itertools.islice(PhotoFolder(images_dir), max_images or None))
        self.image_ids = {photo.key: i for i, photo in enumerate(self.photos)}

    async def score_photo(self, predictor: MaskPredictor, photo: FolderPhoto, workers: WorkerPool) -> PhotoScores:
        """Score the model's masks of a photo against its teacher's. Raises DistillError for a baseline."""
        if not isinstance(predictor, ModelPredictor):
            raise DistillError("agreement compares embeddings, and a baseline has none; give a model")
        sizes = list(dict.fromkeys((self.teacher.model.image_size, predictor.model.image_size)))
        resized, hw = await workers.run(read_in_sizes, photo.path, None, sizes)
        by_teacher = self.teacher.encode(resized[self.teacher.model.image_size], hw)
        encoded = predictor.encode(resized[predictor.model.image_size], hw)
        points, labels = self._points(hw)
        prompts = PhotoPrompts(points_xy=points, labels=labels)
        policy = PAIR_POLICY if self.prompt.kind == "pair" else TEACHER_POLICY
        candidates = await by_teacher.predict(prompts, policy, self.prompt_batch_size)
        masks = await score_candidates(candidates, hw, [None] * len(points), workers)
        targets = [
            Instance(i, 0, rle_box_xyxy(mask.rle), mask.rle, float(rle_area(mask.rle)))
            for i, mask in enumerate(masks)
            if rle_area(mask.rle)
        ]
        found = (
            await self._score_targets(targets, encoded, points=points, labels=labels, workers=workers)
            if targets
            else []
        )
        scores = [
            instance_score(photo.key, target, of_prompt) for target, of_prompt in zip(targets, found, strict=True)
        ]
        return PhotoScores(photo.key, scores, embedding_cosine(encoded, by_teacher))

    def _points(self, hw: HW) -> tuple[np.ndarray, np.ndarray]:
        """Return the points (P, K, 2) XY in original pixels and their labels (P, K); K is 2 for pairs."""
        points = grid_points(hw, self.prompt.points_per_side)[:, None]  # (P, 1, 2)
        labels = np.full(points.shape[:2], POSITIVE, np.int64)
        if self.prompt.kind != "pair":
            return points, labels
        others = points + [self.prompt.pair_pixels, 0]  # to the right, or else to the left
        beyond = others[..., 0] >= hw[1]
        others[beyond, 0] = np.maximum(points[beyond, 0] - self.prompt.pair_pixels, 0.0)
        return np.concatenate([points, others], 1), np.concatenate([labels, np.full_like(labels, NEGATIVE)], 1)

    def summarize(self, found: Sequence[PhotoScores]) -> Summary:
        """Return mean IoU against the teacher's masks, and the mean cosine of the embeddings."""
        scores = [score for of_photo in found for score in of_photo.scores]
        cosines = [of_photo.cosine for of_photo in found if of_photo.cosine is not None]
        metrics, intervals = summarize(scores), score_intervals(scores)
        metrics |= {"num_images": len(found), "cosine": float(np.mean(cosines)) if cosines else None}
        if interval := mean_interval(cosines, range(len(cosines))):
            intervals["cosine"] = interval
        return Summary(metrics, intervals)

    async def _score_targets(
        self,
        targets: list[Instance],
        encoded: EmbeddedPhoto,
        *,
        points: np.ndarray,
        labels: np.ndarray,
        workers: WorkerPool,
    ) -> list[PromptScore]:
        """Prompt the model for each of the teacher's masks, and score its masks.

        Args:
            points, labels: (P, K, 2) and (P, K), the teacher's prompts. The id of a target is the index of its prompt.
        """
        if self.prompt.kind == "box":
            boxes = np.array([target.bbox_xyxy for target in targets])
            prompts, recorded = PhotoPrompts(boxes_xyxy=boxes), [{"box_xyxy": box} for box in boxes.tolist()]
        else:
            rows = [target.id for target in targets]
            prompts = PhotoPrompts(points_xy=points[rows], labels=labels[rows])
            recorded = [{"points_xy": points[row].tolist(), "labels": labels[row].tolist()} for row in rows]
        candidates = await encoded.predict(prompts, self.multimask, self.prompt_batch_size)
        masks = await score_candidates(candidates, encoded.hw, [target.rle for target in targets], workers)
        return [PromptScore(mask, float(candidates.predicted_iou[i, 0]), recorded[i]) for i, mask in enumerate(masks)]


@torch.inference_mode()
def embedding_cosine(student: EmbeddedPhoto, teacher: EmbeddedPhoto) -> float | None:
    """Return the mean cosine over the photo's valid positions, or None if the numbers of channels differ."""
    if student.embedding.shape[1] != teacher.embedding.shape[1]:
        return None
    valid = valid_mask(teacher.hw, teacher.embedding.shape[-1])[None]  # (1, E, E)
    return image_cosines(
        student.embedding.float(), teacher.embedding.float(), valid.to(teacher.embedding.device)
    ).item()
