"""A loss that is no number stops the run, names the photos, and leaves the last good checkpoint."""

from __future__ import annotations

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from distill.batch import ImageBatch
from distill.config.schema import FeatureLossConfig, OptimConfig
from distill.errors import RunError
from distill.models.sam import ModelSpec, build_from_spec
from distill.stages.feature import FeatureStage
from distill.stages.finite_loss import FiniteLoss


def batch(keys: list[str], value: float = 1.0) -> ImageBatch:
    return ImageBatch(
        keys=keys,
        pixels=torch.full((len(keys), 3, 64, 64), value),
        original_hw=torch.tensor([[64, 64]] * len(keys)),
        valid=torch.ones(len(keys), 8, 8, dtype=torch.bool),
        teacher_embeddings=torch.zeros(len(keys), 32, 8, 8),
    )


def test_the_run_stops_with_the_keys_and_the_last_good_checkpoint(tmp_path):
    spec = ModelSpec("efficientvit_sam_t", 64, embedding_dim=32, embedding_size=8, decoder_mlp_dim=64)
    stage = FeatureStage(build_from_spec(spec), loss=FeatureLossConfig(), optim=OptimConfig())
    checkpoints = ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=1, enable_version_counter=False)
    trainer = lightning.Trainer(
        max_steps=5,
        accelerator="cpu",
        logger=False,
        callbacks=[checkpoints],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = [batch(["a"]), batch(["b"]), batch(["sa_7", "sa_8"], torch.nan), batch(["c"])]
    with pytest.raises(RunError, match=r"the loss of step 2 is nan; its photos: sa_7, sa_8\. .*resume=true"):
        trainer.fit(stage, DataLoader(batches, batch_size=None))
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 2
    assert all(value.isfinite().all() for value in kept["state_dict"].values())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_number(value):
    with pytest.raises(RunError, match="photos: x"):
        FiniteLoss().note(torch.tensor(value), keys=["x"], step=0)


def test_numbers_pass():
    watch = FiniteLoss()
    watch.note(torch.tensor(1.5), keys=["x"], step=0)
    watch.check(wait=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_loss_is_looked_at_later():
    watch = FiniteLoss()
    watch.note(torch.tensor(torch.nan, device="cuda"), keys=["x"], step=4)
    with pytest.raises(RunError, match="step 4"):
        watch.check(wait=True)
    watch.check(wait=True)
