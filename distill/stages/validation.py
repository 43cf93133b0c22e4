"""Validation of both stages on held-out photos: agreement with the teacher, and masks from one box or one click."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from distill.batch import ImageBatch
from distill.config.schema import ValidationConfig
from distill.evaluation.scoring.metrics import EmbeddingCosine, MaskIoU
from distill.geometry import mask_iou, valid_masks
from distill.models.multimask import Decoder, answer
from distill.models.sam import LOW_RES_PER_CELL, PROMPT_PIXELS_PER_CELL, PromptableModel
from distill.models.teacher import Teacher
from distill.prompts.clicks import first_click
from distill.prompts.types import POSITIVE, Prompts
from distill.stages.teacher_targets import teacher_embeddings
from distill.stages.validation_pictures import Picture, photo_from_pixels, render_pictures

LOW_RES_CELL = PROMPT_PIXELS_PER_CELL // LOW_RES_PER_CELL  # side of a low-res cell in pixels of the prompt frame
TRUTH_COVERAGE = 0.5  # a low-res cell belongs to the truth when the mask covers more than half of it


@dataclass
class ValidationInstances:
    """The N instances of a batch that are prompted, each with its two prompts.

    truth, valid: (N, 4E, 4E) bool. image_index: (N,). areas: (N,) in original pixels.
    boxes_xyxy: (N, 4) and clicks_xy: (N, 2), prompt frame.
    """

    truth: Tensor
    valid: Tensor
    image_index: Tensor
    areas: Tensor
    boxes_xyxy: Tensor
    clicks_xy: Tensor

    def box_prompts(self) -> Prompts:
        return Prompts(self.image_index, boxes_xyxy=self.boxes_xyxy)

    def click_prompts(self) -> Prompts:
        labels = torch.full((len(self.image_index), 1), POSITIVE, device=self.clicks_xy.device)
        return Prompts(self.image_index, points_xy=self.clicks_xy[:, None], point_labels=labels)


class Validator(nn.Module):
    """The scores of one validation run. A stage calls `update` per batch and `log` at the end.

    Masks are compared at low resolution, so the numbers are cheap and follow those of `distill evaluate`, which
    compares at the photo's own. An instance that covers no low-res cell by half is left out.
    """

    def __init__(self, config: ValidationConfig, teacher: Teacher | None = None) -> None:
        super().__init__()
        self.config = config
        self.teacher = teacher
        self.cosine = EmbeddingCosine()
        self.box_iou = MaskIoU()
        self.point_iou = MaskIoU()
        self.pictures: list[Picture] = []

    @torch.no_grad()
    def update(self, model: PromptableModel, batch: ImageBatch) -> None:
        """Embed a batch, prompt its instances by box (token 0) and by click (best of three), and add the scores."""
        embeddings = model.encode(batch.pixels).float()  # (B, C, E, E)
        targets = teacher_embeddings(batch, self.teacher)
        if targets is not None:
            self.cosine.update(embeddings, targets, batch.valid)
        instances = choose_instances(batch, self.config.max_instances)
        if instances is None:
            return
        box_masks = self._score(self.box_iou, model, embeddings, instances, by_box=True)
        self._score(self.point_iou, model, embeddings, instances, by_box=False)
        if len(self.pictures) < self.config.num_pictures:
            logits = {"student": box_masks}
            same_frame = self.teacher is not None and self.teacher.embedding_size == model.embedding_size
            if self.teacher is not None and targets is not None and same_frame:
                of_teacher, _ = answer(self.teacher, targets, instances.box_prompts(), policy="single")
                logits = {"teacher": of_teacher, **logits}
            self._keep_pictures(batch, instances, logits)

    def compute(self) -> dict[str, float]:
        """Return val/cosine, val/box_miou and val/point_miou over all ranks, if measured, and reset them."""
        with warnings.catch_warnings():  # a metric without a measurement gives NaN, and is left out below
            warnings.filterwarnings("ignore", "The ``compute`` method of metric")
            scores = {
                "val/cosine": self.cosine.compute(),
                "val/box_miou": self.box_iou.compute()["miou"],
                "val/point_miou": self.point_iou.compute()["miou"],
            }
        for metric in (self.cosine, self.box_iou, self.point_iou):
            metric.reset()
        return {name: float(score) for name, score in scores.items() if not score.isnan()}

    def log(self, stage: lightning.LightningModule) -> None:
        """Log the scores through the stage and the pictures to its TensorBoard loggers, and drop them."""
        stage.log_dict(self.compute(), sync_dist=True)  # equal on all ranks already
        pictures, self.pictures = self.pictures, []
        if not pictures or not stage.trainer.is_global_zero:
            return
        for logger in stage.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("val/masks", render_pictures(pictures), stage.global_step)

    def _score(
        self, metric: MaskIoU, model: Decoder, embeddings: Tensor, instances: ValidationInstances, *, by_box: bool
    ) -> Tensor:
        """Add the IoU of each instance's predicted mask to `metric`. Return the logits (N, 4E, 4E)."""
        prompts = instances.box_prompts() if by_box else instances.click_prompts()
        logits, _ = answer(model, embeddings, prompts, policy="single" if by_box else "best")
        metric.update(mask_iou((logits > 0) & instances.valid, instances.truth), instances.areas)
        return logits

    def _keep_pictures(self, batch: ImageBatch, instances: ValidationInstances, logits: dict[str, Tensor]) -> None:
        """Keep one picture for each photo, of its largest instance, up to `num_pictures`."""
        for image in torch.unique(instances.image_index).tolist()[: self.config.num_pictures - len(self.pictures)]:
            row = int(instances.areas.where(instances.image_index == image, -1.0).argmax())
            height, width = batch.original_hw[image].tolist()
            photo = photo_from_pixels(batch.pixels[image], (height, width))
            scale = batch.pixels.shape[-1] / (instances.truth.shape[-1] * LOW_RES_CELL)  # prompt to input frame
            masks = {"truth": instances.truth[row].float() - TRUTH_COVERAGE}
            masks.update((name, values[row]) for name, values in logits.items())
            self.pictures.append(
                Picture(
                    photo,
                    box_xyxy=instances.boxes_xyxy[row].cpu().numpy() * scale,
                    click_xy=instances.clicks_xy[row].cpu().numpy() * scale,
                    masks={name: _to_input_frame(mask, photo, batch.pixels.shape[-1]) for name, mask in masks.items()},
                )
            )


def choose_instances(batch: ImageBatch, max_instances: int) -> ValidationInstances | None:
    """Return the first instances of each photo, up to `max_instances`. Return None if the batch has none."""
    if batch.masks is None or batch.mask_image_index is None or batch.boxes_xyxy is None:
        return None
    visible = (batch.masks > TRUTH_COVERAGE).flatten(1).any(1)  # (N,)
    rows = [
        ((batch.mask_image_index == image) & visible).nonzero()[:max_instances, 0] for image in range(len(batch.keys))
    ]
    chosen = torch.cat(rows)
    if not len(chosen):
        return None
    masks, image_index = batch.masks[chosen], batch.mask_image_index[chosen]
    truth = masks > TRUTH_COVERAGE
    original_hw = batch.original_hw[image_index]  # (N, 2)
    cell_area = (original_hw.amax(1) / masks.shape[-1]) ** 2  # original pixels in a low-res cell
    clicks = np.stack([first_click(mask) for mask in truth.cpu().numpy()]) * LOW_RES_CELL
    return ValidationInstances(
        truth=truth,
        valid=valid_masks(original_hw, masks.shape[-1]),
        image_index=image_index,
        areas=masks.sum((1, 2)) * cell_area,
        boxes_xyxy=batch.boxes_xyxy[chosen],
        clicks_xy=torch.from_numpy(clicks).to(batch.boxes_xyxy),
    )


def _to_input_frame(logits: Tensor, photo: np.ndarray, image_size: int) -> np.ndarray:
    """Return where low-res logits (4E, 4E) are above 0 on the photo in the input frame: bool (h, w)."""
    size = (image_size, image_size)
    enlarged = F.interpolate(logits[None, None].float(), size, mode="bilinear", align_corners=False)[0, 0]
    return (enlarged[: photo.shape[0], : photo.shape[1]] > 0).cpu().numpy()
