"""The feature stage trains a tiny student, on the CPU, towards a tiny teacher."""

from __future__ import annotations

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

from distill.batch import ImageBatch
from distill.config.schema import FeatureLossConfig, OptimConfig
from distill.errors import DistillError
from distill.geometry import valid_masks
from distill.models.sam import ModelSpec, PromptableModel, build_from_spec
from distill.models.teacher import Teacher
from distill.stages.feature import FeatureStage

SPEC = ModelSpec("efficientvit_sam_t", 64, embedding_dim=32, embedding_size=8, decoder_mlp_dim=64, norm_eps=1e-6)
LOSS = FeatureLossConfig(mse=1.0, cosine=0.5)


def tiny_model(seed: int, spec: ModelSpec = SPEC) -> PromptableModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_from_spec(spec)


def tiny_teacher(seed: int = 7) -> Teacher:
    return Teacher(tiny_model(seed), name="tiny", weights_sha256="0" * 64)


def photo_batch(seed: int = 0, num_images: int = 4) -> ImageBatch:
    pixels = torch.randn(num_images, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    original_hw = torch.tensor([[48, 64], [64, 64], [64, 40], [30, 60]])[:num_images]
    keys = [f"photo{i}" for i in range(num_images)]
    return ImageBatch(keys, pixels, original_hw, valid_masks(original_hw, 8), teacher_pixels=pixels)


class LossCurve(lightning.Callback):
    """The loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, stage, outputs, batch, batch_index):
        self.losses.append(outputs["loss"].item())


def tiny_trainer(directory, *callbacks: lightning.Callback, max_epochs: int = 1) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        default_root_dir=directory,
        max_epochs=max_epochs,
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )


def fit(
    stage: FeatureStage, batches: list[ImageBatch], directory, max_epochs: int = 1, ckpt_path=None
) -> tuple[lightning.Trainer, list[float]]:
    curve = LossCurve()
    trainer = tiny_trainer(directory, curve, max_epochs=max_epochs)
    trainer.fit(stage, DataLoader(batches, batch_size=None), ckpt_path=ckpt_path)
    return trainer, curve.losses


def tiny_stage(**options) -> FeatureStage:
    return FeatureStage(tiny_model(0), tiny_teacher(), **{"loss": LOSS, "optim": OptimConfig(lr=3e-3), **options})


def test_the_loss_falls_and_the_encoder_alone_trains(tmp_path):
    stage = tiny_stage()
    before = {name: value.clone() for name, value in stage.model.state_dict().items()}
    trainer, losses = fit(stage, [photo_batch()] * 12, tmp_path)
    assert losses[-1] < 0.7 * losses[0]
    changed = {name for name, value in stage.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("image_encoder.") for name in changed)
    assert {"train/loss", "train/mse", "train/cosine"} <= set(trainer.callback_metrics)


def test_batch_statistics_move_in_the_encoder_alone():
    stage = tiny_stage()
    assert not tiny_model(0).training
    assert stage.model.image_encoder.training
    assert not stage.model.mask_decoder.training
    assert not stage.eval().training


def test_the_schedule_ends_at_its_share(tmp_path):
    stage = tiny_stage(optim=OptimConfig(lr=1e-3, warmup_steps=2, final_lr_share=0.1))
    trainer, _ = fit(stage, [photo_batch()] * 6, tmp_path)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-4)


def test_checkpoints_hold_the_student_alone(tmp_path):
    trainer, _ = fit(tiny_stage(), [photo_batch()], tmp_path)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert set(state) == {f"model.{name}" for name in tiny_model(0).state_dict()}


class StopAfterFirstEpoch(lightning.Callback):
    def on_train_epoch_end(self, trainer, stage):
        trainer.should_stop = True


def test_a_resumed_run_gives_the_same_losses(tmp_path):
    batches = [photo_batch(seed) for seed in range(4)]
    _, whole = fit(tiny_stage(), batches, tmp_path, max_epochs=2)
    stopped = tiny_trainer(tmp_path, StopAfterFirstEpoch(), max_epochs=2)
    stopped.fit(tiny_stage(), DataLoader(batches, batch_size=None))
    stopped.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = fit(tiny_stage(), batches, tmp_path, max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert resumed == pytest.approx(whole[4:], rel=1e-5)


def test_cached_and_online_embeddings_give_the_same_terms():
    stage = tiny_stage().eval()
    online = photo_batch()
    assert online.teacher_pixels is not None
    cached = photo_batch()
    cached.teacher_pixels, cached.teacher_embeddings = None, stage.teacher.embed(online.teacher_pixels)
    for name, value in stage.compute_terms(online).items():
        torch.testing.assert_close(stage.compute_terms(cached)[name], value)


def test_a_student_of_the_teachers_weights_has_no_loss():
    stage = FeatureStage(tiny_model(7), tiny_teacher(7), loss=LOSS, optim=OptimConfig()).eval()
    assert stage.compute_terms(photo_batch())["loss"].item() == pytest.approx(0, abs=1e-5)


def test_gradients_reach_neither_teacher_nor_decoder():
    stage = tiny_stage()
    stage.compute_terms(photo_batch())["loss"].backward()
    assert all(parameter.grad is None for parameter in stage.teacher.model.parameters())
    assert all(parameter.grad is None for parameter in stage.model.mask_decoder.parameters())
    assert any(parameter.grad is not None for parameter in stage.model.image_encoder.parameters())


def test_without_embeddings_the_mend_is_named():
    batch = photo_batch()
    batch.teacher_pixels = None
    with pytest.raises(DistillError, match="distill cache build"):
        tiny_stage().compute_terms(batch)


def test_mistakes_that_would_learn_nothing():
    with pytest.raises(DistillError, match="every term has weight 0"):
        tiny_stage(loss=FeatureLossConfig(mse=0.0))
    with pytest.raises(DistillError, match="encoder_lr_scale"):
        tiny_stage(optim=OptimConfig(encoder_lr_scale=0.0))


def test_a_teacher_of_another_width_is_refused():
    narrow = ModelSpec("efficientvit_sam_t", 64, embedding_dim=16, embedding_size=8, decoder_mlp_dim=64)
    with pytest.raises(DistillError, match="16 channels, that of the teacher tiny has 32"):
        FeatureStage(tiny_model(0, narrow), tiny_teacher(), loss=LOSS, optim=OptimConfig())
