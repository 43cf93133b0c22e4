from __future__ import annotations

import lightning
import pytest
import torch

from distill.batch import ImageBatch
from distill.config import MaskLossConfig, OptimConfig, PromptConfig
from distill.errors import DistillError
from distill.sam import ModelSpec, build_from_spec
from distill.stages.mask import MaskStage

GRID, IMAGE_SIZE = 8, 64


def square_batch() -> ImageBatch:
    """Two photos, the second one wide, with three instances that are squares."""
    low_res, pixels = 4 * GRID, torch.zeros(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    masks = torch.zeros(3, low_res, low_res)
    corners = [(0, 4, 4, 12), (0, 16, 16, 28), (1, 2, 8, 14)]
    boxes = []
    for row, (image, top, left, right) in enumerate(corners):
        masks[row, top : top + 8, left:right] = 1
        pixels[image, :, 2 * top : 2 * top + 16, 2 * left : 2 * right] = row - 1.5
        boxes.append([left * 4.0, top * 4.0, right * 4.0, top * 4.0 + 32])
    return ImageBatch(
        keys=["a", "b"],
        pixels=pixels,
        original_hw=torch.tensor([[64, 64], [32, 64]]),
        valid=torch.ones(2, GRID, GRID, dtype=torch.bool),
        masks=masks,
        mask_image_index=torch.tensor([0, 0, 1]),
        boxes_xyxy=torch.tensor(boxes),
    )


def tiny_stage(**options) -> MaskStage:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = build_from_spec(ModelSpec("efficientvit_sam_t", IMAGE_SIZE, 32, embedding_size=GRID, decoder_mlp_dim=64))
    optim = options.pop("optim", OptimConfig(lr=1e-3))
    return MaskStage(model, prompts=PromptConfig(), loss=options.pop("loss", MaskLossConfig()), optim=optim, **options)


def test_gradients_reach_every_trainable_tensor() -> None:
    stage = tiny_stage()
    stage.compute_terms(square_batch())["loss"].backward()
    missing = [name for name, p in stage.model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_frozen_parts_stay_as_they_are_and_in_eval_mode() -> None:
    stage = tiny_stage(optim=OptimConfig(lr=1e-2, encoder_lr_scale=0.0))
    before = {name: value.clone() for name, value in stage.model.image_encoder.state_dict().items()}
    fit(stage, steps=2)
    stage.train()
    assert not stage.model.image_encoder.training and stage.model.mask_decoder.training
    for name, value in stage.model.image_encoder.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_same_step_draws_the_same_prompts() -> None:
    stage = tiny_stage()
    stage.eval()
    batch = square_batch()
    assert stage.compute_terms(batch)["loss"] == stage.compute_terms(batch)["loss"]
    other = tiny_stage(seed=1)
    other.eval()
    assert other.compute_terms(batch)["loss"] != stage.compute_terms(batch)["loss"]


def test_padding_has_no_influence_on_the_loss() -> None:
    stage = tiny_stage()
    stage.eval()
    batch, marked = square_batch(), square_batch()
    marked.masks[2, 16:] = 1.0  # the lower half of the second photo is padding
    torch.manual_seed(0)
    clean = stage.compute_terms(batch)
    stage.prompt_config.box_share = 1.0  # points may be drawn from the marked mask, boxes not
    clean = stage.compute_terms(batch)
    assert torch.equal(clean["loss"], stage.compute_terms(marked)["loss"])


def test_photos_alone_are_refused() -> None:
    batch = square_batch()
    batch.masks = None
    with pytest.raises(DistillError, match="needs shards with masks"):
        tiny_stage().compute_terms(batch)


# points lie where the model is least sure, so the loss on them falls slowly
@pytest.mark.parametrize(
    ("loss", "share"), [(MaskLossConfig(), 0.7), (MaskLossConfig(mask="bce", num_points=200), 0.9)]
)
def test_the_loss_falls(loss: MaskLossConfig, share: float) -> None:
    stage = tiny_stage(loss=loss)
    before = stage.compute_terms(square_batch())["loss"].item()
    fit(stage, steps=40)
    assert stage.compute_terms(square_batch())["loss"].item() < share * before


def fit(stage: MaskStage, steps: int) -> None:
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(stage, torch.utils.data.DataLoader([square_batch()] * steps, batch_size=None))
