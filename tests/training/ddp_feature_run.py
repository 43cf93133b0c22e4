"""One epoch of the feature stage on one or two ranks. `test_ddp.py` runs: ddp_feature_run.py NUM_RANKS OUT.pt.

Two ranks take one photo of each pair, and one rank takes both: the epoch is the same.
"""

from __future__ import annotations

import sys

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader

from distill.batch import ImageBatch
from distill.config.schema import FeatureLossConfig, OptimConfig, ValidationConfig
from distill.geometry import valid_masks
from distill.models.sam import ModelSpec, PromptableModel, build_from_spec
from distill.models.teacher import Teacher
from distill.stages.feature import FeatureStage
from distill.stages.validation import Validator

SPEC = ModelSpec("efficientvit_sam_t", 64, embedding_dim=32, embedding_size=8, decoder_mlp_dim=64, norm_eps=1e-6)
NUM_STEPS = 5
PHOTO_HW = ((48, 64), (64, 40))  # of unequal valid share, so that a mean over positions of the batch would differ


def tiny_model(seed: int) -> PromptableModel:
    torch.manual_seed(seed)
    return build_from_spec(SPEC)


def batch(step: int, photos: list[int]) -> ImageBatch:
    """Return some of the two photos of a step, each with one instance."""
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(step))[photos]
    original_hw = torch.tensor(PHOTO_HW)[photos]
    masks = torch.zeros(2, 32, 32)
    masks[0, 2:20, 2:12], masks[1, 4:10, 4:18] = 1, 1
    boxes = torch.tensor([[8.0, 8, 48, 80], [16, 16, 72, 40]])
    return ImageBatch(
        keys=[f"{step}-{photo}" for photo in photos],
        pixels=pixels,
        original_hw=original_hw,
        valid=valid_masks(original_hw, 8),
        teacher_pixels=pixels,
        masks=masks[photos],
        mask_image_index=torch.arange(len(photos)),
        boxes_xyxy=boxes[photos],
    )


class Data(lightning.LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        photos = [0, 1] if self.trainer.world_size == 1 else [self.trainer.global_rank]
        return DataLoader([batch(step, photos) for step in range(NUM_STEPS)], batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return self.train_dataloader()


class FixedBatchStatistics(lightning.Callback):
    """Batch norm over one photo is not batch norm over two: both runs keep the statistics that they start with."""

    def on_train_epoch_start(self, trainer, stage):
        for module in stage.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


class LossCurve(lightning.Callback):
    """The loss of every step, mean over the ranks."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, stage, outputs, batch, batch_index):
        self.losses.append(trainer.strategy.reduce(outputs["loss"].detach().clone(), reduce_op="mean").item())


def one_epoch(num_ranks: int, curve: LossCurve) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        devices=num_ranks,
        strategy="ddp" if num_ranks > 1 else "auto",
        max_epochs=1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[curve, FixedBatchStatistics()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def main(num_ranks: int, out: str) -> None:
    torch.set_num_threads(1)
    teacher = Teacher(tiny_model(7), name="tiny", weights_sha256="0" * 64)
    stage = FeatureStage(
        tiny_model(0),
        teacher,
        loss=FeatureLossConfig(mse=1.0, cosine=1.0, huber=1.0, relation=1.0),
        optim=OptimConfig(lr=1e-3, warmup_steps=1),
        validator=Validator(ValidationConfig(), teacher),
    )
    curve = LossCurve()
    trainer = one_epoch(num_ranks, curve)
    trainer.fit(stage, datamodule=Data())
    scores = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    if trainer.is_global_zero:
        torch.save({"losses": curve.losses, "scores": scores, "weights": stage.model.state_dict()}, out)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
