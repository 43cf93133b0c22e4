"""How much a model answers as its teacher does, on photographs that nobody annotated.

The teacher is asked at a grid of points; its masks are the truth for the model, which is asked at the same points or
by the boxes of these masks. The embeddings are compared too, where both are of one size.
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
from distill.evaluation.bootstrap import mean_interval
from distill.evaluation.evaluator import Summary
from distill.evaluation.mask_scoring import read_resized
from distill.evaluation.metrics import image_cosines
from distill.evaluation.predictors import Asked, ModelSubject, ModelView, Subject
from distill.evaluation.prompting import Answer, PhotoScores, instance_score, judged
from distill.evaluation.summary import score_intervals, summarize
from distill.evaluation.worker_pool import Task, Workers
from distill.geometry import HW, valid_mask
from distill.models.multimask import Policy
from distill.prompts.types import POSITIVE

TEACHER_POLICY: Policy = "best"  # a point is ambiguous


class AgreementEvaluation:
    """Embedding cosine and mask IoU of a model and its teacher over a folder of photos."""

    def __init__(
        self,
        images_dir: str | Path,
        teacher: ModelSubject,
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

    def ask(self, subject: Subject, photo: FolderPhoto, workers: Workers) -> Task[PhotoScores]:
        if not isinstance(subject, ModelSubject):
            raise DistillError("agreement compares embeddings, and a baseline has none; give a model")
        sizes = dict.fromkeys((self.teacher.image_size, subject.image_size))
        read = yield [workers.submit(read_resized, photo.path, None, size) for size in sizes]
        resized = {size: pixels for size, (pixels, _) in zip(sizes, read, strict=True)}
        hw: HW = read[0][1]
        teacher = self.teacher.look(resized[self.teacher.image_size], hw)
        view = subject.look(resized[subject.image_size], hw)
        points = grid_points(hw, self.prompt.points_per_side)[:, None]  # (P, 1, 2)
        labels = np.full(points.shape[:2], POSITIVE, np.int64)
        reply = teacher.answer(Asked(points_xy=points, labels=labels), TEACHER_POLICY, self.prompt_batch_size)
        answers = yield from judged(reply, hw, [None] * len(points), workers)
        targets = [
            Instance(i, 0, rle_box_xyxy(answer.rle), answer.rle, float(rle_area(answer.rle)))
            for i, answer in enumerate(answers)
            if rle_area(answer.rle)
        ]
        answered = (yield from self._ask_for(targets, view, hw, points, workers)) if targets else []
        scores = [instance_score(photo.key, target, answer) for target, answer in answered]
        return PhotoScores(photo.key, scores, embedding_cosine(view, teacher))

    def summarize(self, found: Sequence[PhotoScores]) -> Summary:
        scores = [score for of_photo in found for score in of_photo.scores]
        cosines = [of_photo.cosine for of_photo in found if of_photo.cosine is not None]
        metrics, intervals = summarize(scores), score_intervals(scores)
        metrics |= {"num_images": len(found), "cosine": float(np.mean(cosines)) if cosines else None}
        if interval := mean_interval(cosines, range(len(cosines))):
            intervals["cosine"] = interval
        return Summary(metrics, intervals)

    def _ask_for(
        self, targets: list[Instance], view: ModelView, hw: HW, points: np.ndarray, workers: Workers
    ) -> Task[list[tuple[Instance, Answer]]]:
        """The model's answers about the teacher's masks."""
        if self.prompt.kind == "box":
            boxes = np.array([target.bbox_xyxy for target in targets])
            asked, prompts = Asked(boxes_xyxy=boxes), [{"box_xyxy": box} for box in boxes.tolist()]
        else:
            points = points[[target.id for target in targets]]
            asked = Asked(points_xy=points, labels=np.full(points.shape[:2], POSITIVE, np.int64))
            prompts = [{"points_xy": point, "labels": [POSITIVE]} for point in points.tolist()]
        reply = view.answer(asked, self.multimask, self.prompt_batch_size)
        judgements = yield from judged(reply, hw, [target.rle for target in targets], workers)
        return [
            (target, Answer(judgement, float(reply.predicted_iou[i, 0]), prompts[i]))
            for i, (target, judgement) in enumerate(zip(targets, judgements, strict=True))
        ]


def grid_points(hw: HW, points_per_side: int) -> np.ndarray:
    """The centres of n x n equal parts of a photo: (n * n, 2) XY in its pixels."""
    centres = (np.arange(points_per_side) + 0.5) / points_per_side
    x, y = np.meshgrid(centres * hw[1], centres * hw[0])
    return np.stack([x.ravel(), y.ravel()], 1)


@torch.inference_mode()
def embedding_cosine(view: ModelView, teacher: ModelView) -> float | None:
    """Mean cosine over the photo's valid positions; None when the embeddings have other channels."""
    if view.embedding.shape[1] != teacher.embedding.shape[1]:
        return None
    valid = valid_mask(teacher.hw, teacher.embedding.shape[-1])[None]  # (1, E, E)
    return image_cosines(view.embedding.float(), teacher.embedding.float(), valid.to(teacher.embedding.device)).item()
