"""Validation that both stages share: what is asked, what it scores, and the pictures."""

from __future__ import annotations

import lightning
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from distill.batch import ImageBatch
from distill.config.schema import FeatureLossConfig, OptimConfig, ValidationConfig
from distill.geometry import mask_iou, valid_masks
from distill.models.sam import ModelSpec, PromptableModel, build_from_spec
from distill.models.teacher import Teacher
from distill.prompts.types import Prompts
from distill.stages.feature import FeatureStage
from distill.stages.validation import Validator, choose_instances

SPEC = ModelSpec("efficientvit_sam_t", 64, embedding_dim=32, embedding_size=8, decoder_mlp_dim=64, norm_eps=1e-6)


def tiny_model(seed: int) -> PromptableModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_from_spec(SPEC)


def tiny_teacher(seed: int = 7) -> Teacher:
    return Teacher(tiny_model(seed), name="tiny", weights_sha256="0" * 64)


def labelled_batch() -> ImageBatch:
    """Return two photos: one with two rectangles, one with three and a fourth that covers no cell by half."""
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    original_hw = torch.tensor([[240, 320], [320, 320]])
    boxes = torch.tensor([[0, 0, 5, 5], [8, 8, 18, 14], [2, 2, 8, 20], [10, 4, 30, 9], [20, 20, 25, 31], [1, 1, 2, 2]])
    masks = torch.zeros(6, 32, 32)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    masks[5] *= 0.4
    return ImageBatch(
        keys=["a", "b"],
        pixels=pixels,
        original_hw=original_hw,
        valid=valid_masks(original_hw, 8),
        teacher_pixels=pixels,
        masks=masks,
        mask_image_index=torch.tensor([0, 0, 1, 1, 1, 1]),
        boxes_xyxy=boxes * 4.0,  # a low-res cell is 4 pixels of the prompt frame
    )


def test_instances_are_the_first_visible_ones_of_each_photo():
    instances = choose_instances(labelled_batch(), max_instances=2)
    assert instances is not None
    assert instances.image_index.tolist() == [0, 0, 1, 1]
    assert choose_instances(labelled_batch(), 10).image_index.tolist() == [0, 0, 1, 1, 1]
    # a cell of a 320-pixel photo is 10 x 10 original pixels
    assert instances.areas.tolist() == [2500, 6000, 10800, 10000]
    # the first rectangle covers cells 0..4: its middle is the middle of cell 2
    assert instances.clicks_xy[0].tolist() == [10, 10]
    assert not instances.valid[0, 24:].any() and instances.valid[2].all()


def test_photos_without_masks_have_nothing_to_ask():
    batch = labelled_batch()
    batch.masks = batch.masks[5:]
    batch.mask_image_index, batch.boxes_xyxy = batch.mask_image_index[5:], batch.boxes_xyxy[5:]
    assert choose_instances(batch, 10) is None
    batch.masks = None
    assert choose_instances(batch, 10) is None


def test_a_student_of_the_teachers_weights_agrees():
    validator = Validator(ValidationConfig(), tiny_teacher(7))
    validator.update(tiny_model(7), labelled_batch())
    assert validator.compute()["val/cosine"] == pytest.approx(1, abs=1e-5)


def test_scores_are_those_of_the_model_asked_by_hand():
    model, batch = tiny_model(0), labelled_batch()
    validator = Validator(ValidationConfig())
    validator.update(model, batch)
    scores = validator.compute()
    instances = choose_instances(batch, 10)
    with torch.no_grad():
        embeddings = model.encode(batch.pixels)
        logits, _ = model.decode(
            embeddings, Prompts(instances.image_index, boxes_xyxy=instances.boxes_xyxy), multimask=False
        )
        by_box = mask_iou((logits[:, 0] > 0) & instances.valid, instances.truth)
        clicks = Prompts(
            instances.image_index,
            points_xy=instances.clicks_xy[:, None],
            point_labels=torch.ones(5, 1, dtype=torch.long),
        )
        logits, predicted_iou = model.decode(embeddings, clicks, multimask=True)
        best = logits[torch.arange(5), predicted_iou.argmax(1)]
        by_click = mask_iou((best > 0) & instances.valid, instances.truth)
    assert scores == pytest.approx(
        {"val/box_miou": by_box.mean().item(), "val/point_miou": by_click.mean().item()}, abs=1e-6
    )
    assert validator.compute() == {}  # starts anew


def test_a_run_logs_scores_and_pictures(tmp_path):
    validator = Validator(ValidationConfig(num_pictures=1), tiny_teacher())
    stage = FeatureStage(
        tiny_model(0), tiny_teacher(), loss=FeatureLossConfig(), optim=OptimConfig(), validator=validator
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        logger=TensorBoardLogger(tmp_path, name=None, version=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = DataLoader([labelled_batch()], batch_size=None)
    trainer.fit(stage, batches, batches)
    assert {"val/cosine", "val/box_miou", "val/point_miou"} <= set(trainer.callback_metrics)
    assert set(stage.state_dict()) == {f"model.{name}" for name in stage.model.state_dict()}
    events = EventAccumulator(str(tmp_path)).Reload()
    assert {"val/cosine", "train/loss", "train/mse"} <= set(events.Tags()["scalars"])
    (picture,) = events.Images("val/masks")
    assert (picture.width, picture.height) == (4 * 192, 14 + 192)
    assert validator.pictures == []
