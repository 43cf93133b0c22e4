"""Steps of the mask stage on one or two ranks. `test_ddp.py` runs: ddp_mask_run.py NUM_RANKS OUT.pt.

It is like ddp_feature_run.py, with unequal numbers of instances in the photos, refinement, and both kinds of target.
"""

from __future__ import annotations

import sys

import lightning
import torch
from ddp_feature_run import LossCurve, batch, one_epoch, tiny_model
from torch.utils.data import DataLoader

from distill.batch import ImageBatch
from distill.config.schema import MaskLossConfig, OptimConfig, PromptConfig, TargetConfig
from distill.models.teacher import Teacher
from distill.stages.mask import MaskStage

NUM_STEPS = 3
NUM_INSTANCES = (1, 3)  # of the photos
WITHOUT_MASKS = 1  # the step in which the first photo has none


def masked_batch(step: int, photos: list[int]) -> ImageBatch:
    """Return the photos of a step. Each has its one instance several times or not at all."""
    photo_batch = batch(step, photos)
    assert photo_batch.masks is not None and photo_batch.boxes_xyxy is not None
    counts = [0 if (step, photo) == (WITHOUT_MASKS, 0) else NUM_INSTANCES[photo] for photo in photos]
    index = torch.arange(len(photos)).repeat_interleave(torch.tensor(counts))
    photo_batch.masks, photo_batch.boxes_xyxy = photo_batch.masks[index], photo_batch.boxes_xyxy[index]
    photo_batch.mask_image_index = index
    return photo_batch


class Data(lightning.LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        photos = [0, 1] if self.trainer.world_size == 1 else [self.trainer.global_rank]
        return DataLoader([masked_batch(step, photos) for step in range(NUM_STEPS)], batch_size=None)


def main(num_ranks: int, out: str) -> None:
    torch.set_num_threads(1)
    stage = MaskStage(
        tiny_model(0),
        Teacher(tiny_model(7), name="tiny", weights_sha256="0" * 64),
        prompts=PromptConfig(refine_clicks=1, mask_only_rounds=1, max_negative_points=1),
        targets=TargetConfig(truth_weight=1.0, teacher_weight=1.0),
        loss=MaskLossConfig(num_points=40, logit_weight=0.1, teacher_iou_weight=1.0, feature_weight=1.0),
        optim=OptimConfig(lr=1e-3),
    )
    curve = LossCurve()
    trainer = one_epoch(num_ranks, curve)
    trainer.fit(stage, datamodule=Data())
    if trainer.is_global_zero:
        torch.save({"losses": curve.losses, "weights": stage.model.state_dict()}, out)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
