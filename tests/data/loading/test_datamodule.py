from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from distill.batch import ImageBatch
from distill.config.schema import DataConfig, ValidationConfig
from distill.data.loading.datamodule import DistillDataModule
from distill.data.shards.index import INDEX_NAME, ShardIndex
from distill.data.shards.writer import ShardWriter
from distill.errors import DataError

NUM_PHOTOS, BATCH_SIZE = 11, 2
STEPS_PER_EPOCH = 6


class Recorder(lightning.LightningModule):
    """A model that learns nothing and records what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.trained: list[tuple[int, list[str], float]] = []
        self.held_out: list[list[str]] = []

    def training_step(self, batch: ImageBatch, batch_index: int) -> torch.Tensor:
        assert isinstance(batch, ImageBatch)
        drawn = 0.0 if batch.boxes_xyxy is None else float(batch.boxes_xyxy.sum())
        self.trained.append((self.current_epoch, batch.keys, drawn))
        return self.layer(batch.pixels.mean().view(1, 1)).sum()

    def validation_step(self, batch: ImageBatch, batch_index: int) -> None:
        assert batch.masks is not None
        self.held_out.append(batch.keys)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


@pytest.fixture
def shards(tmp_path: Path, make_shards) -> Path:
    return make_shards(tmp_path / "shards", NUM_PHOTOS, num_masks=5)


def make_data(shards: Path, *, num_workers: int = 0, **options) -> DistillDataModule:
    data = DataConfig(
        images=str(shards),
        val_images=options.pop("val_images", None),
        batch_size=BATCH_SIZE,
        num_workers=num_workers,
        max_instances=2,
        max_bad_share=0.0,
    )
    return DistillDataModule(data, image_size=32, embedding_size=4, **{"masks": True, "seed": 5, **options})


def make_trainer(folder: Path, **options) -> lightning.Trainer:
    checkpoints = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    return lightning.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **{"callbacks": [checkpoints], **options},
    )


@pytest.fixture
def undisturbed(tmp_path: Path, shards: Path) -> list[tuple[int, list[str], float]]:
    """Train two and a half epochs, with a checkpoint after every step in `checkpoints`."""
    stage = Recorder()
    make_trainer(tmp_path / "checkpoints", max_steps=15).fit(stage, datamodule=make_data(shards))
    return stage.trained


def test_every_epoch_reads_every_photo(undisturbed, shards: Path) -> None:
    keys = sorted(ShardIndex.open(shards).keys())
    for epoch in (0, 1):
        assert sorted(key for number, batch, _ in undisturbed if number == epoch for key in batch) == keys
    assert [number for number, _, _ in undisturbed] == [0] * 6 + [1] * 6 + [2] * 3
    assert undisturbed[0][1] != undisturbed[6][1]


@pytest.mark.parametrize("step", [1, 4, 6, 7, 11, 12, 13])
def test_a_resumed_run_reads_the_very_next_batch(undisturbed, shards: Path, tmp_path: Path, step: int) -> None:
    stage = Recorder()
    data = make_data(shards, num_workers=step % 3)
    checkpoint = tmp_path / "checkpoints" / f"step={step}.ckpt"
    trainer = make_trainer(tmp_path / "resumed", max_steps=15, callbacks=[], enable_checkpointing=False)
    trainer.fit(stage, datamodule=data, ckpt_path=checkpoint, weights_only=False)
    assert stage.trained == undisturbed[step:]


def test_epochs_that_lightning_cuts_short_are_still_other_epochs(shards: Path, tmp_path: Path, undisturbed) -> None:
    stage = Recorder()
    options = {"max_epochs": 3, "limit_train_batches": 2, "callbacks": [], "enable_checkpointing": False}
    make_trainer(tmp_path, **options).fit(stage, datamodule=make_data(shards, num_workers=1))
    assert stage.trained == undisturbed[0:2] + undisturbed[6:8] + undisturbed[12:14]


def test_held_out_photos_are_spread_over_the_set_and_always_the_same(shards: Path, tmp_path: Path) -> None:
    stage = Recorder()
    validation = ValidationConfig(max_images=3, max_instances=1)
    data = make_data(shards, val_images=str(shards), validation=validation, teacher_image_size=48)
    options = {"max_epochs": 2, "callbacks": [], "enable_checkpointing": False, "num_sanity_val_steps": 1}
    make_trainer(tmp_path, **options).fit(stage, datamodule=data)
    once = [["photo_000", "photo_003"], ["photo_007"]]
    assert stage.held_out == [once[0], *once, *once]


def test_the_teachers_input_is_there_where_it_is_needed(shards: Path) -> None:
    def first(loader) -> ImageBatch:
        return next(iter(loader))

    data = make_data(shards, val_images=str(shards), masks=False, teacher_image_size=48)
    data.setup("fit")
    batch = first(data.train_dataloader())
    assert batch.teacher_pixels.shape[-1] == 48 and batch.masks is None
    batch = first(data.val_dataloader())
    assert batch.teacher_pixels.shape[-1] == 48 and batch.masks is not None
    data = make_data(shards, masks=True, teacher_image_size=48)
    data.setup("fit")
    batch = first(data.train_dataloader())
    assert batch.teacher_pixels is None and batch.masks is not None
    assert batch.instance_counts() == batch.mask_image_index.bincount(minlength=len(batch.keys)).tolist()
    assert data.val_dataloader() == []
    data = make_data(shards, masks=True, teacher_image_size=48, online_teacher=True)
    data.setup("fit")
    batch = first(data.train_dataloader())
    assert batch.teacher_pixels.shape[-1] == 48 and batch.masks is not None


def test_shards_without_masks_are_refused_where_masks_are_needed(tmp_path: Path, jpeg) -> None:
    with ShardWriter(tmp_path / "photos") as writer:
        writer.add("a", jpeg(), None)
    make_data(tmp_path / "photos", masks=False).setup("fit")
    with pytest.raises(DataError, match="photos alone, and the mask stage needs masks.*distill shards build coco"):
        make_data(tmp_path / "photos").setup("fit")


def test_tars_from_elsewhere_are_indexed_once(shards: Path) -> None:
    saved = (shards / INDEX_NAME).read_bytes()
    (shards / INDEX_NAME).unlink()
    make_data(shards).prepare_data()
    assert (shards / INDEX_NAME).read_bytes() == saved


@pytest.mark.slow
def test_two_ranks_with_shards_of_unequal_length(tmp_path: Path, jpeg) -> None:
    """Read seven shards of unequal length: both ranks finish together, and each step reads what one rank would read."""
    directory = tmp_path / "shards"
    directory.mkdir()
    for shard, num_samples in enumerate([1, 5, 2, 4, 3, 1, 7]):
        with ShardWriter(tmp_path / f"part{shard}") as writer:
            for i in range(num_samples):
                writer.add(f"s{shard}_{i}", jpeg(seed=i), None)
        (tmp_path / f"part{shard}" / "sa_000000.tar").rename(directory / f"sa_{shard:06d}.tar")
    script = Path(__file__).with_name("ddp_loader_run.py")
    steps = {}
    for world_size in (1, 2):
        out = tmp_path / f"out{world_size}"
        command = [sys.executable, str(script), str(world_size), str(directory), str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        ranks = [json.loads((out / f"{rank}.json").read_text()) for rank in range(world_size)]
        assert len({len(rank) for rank in ranks}) == 1
        steps[world_size] = [sorted(sum(step, [])) for step in zip(*ranks, strict=True)]
    assert steps[1][:5] == steps[2][:5] and len(steps[1]) == len(steps[2]) == 2 * 6  # two epochs of 23 photos
    read = [key for step in steps[2][:6] for key in step]
    assert set(read) == set(ShardIndex.open(directory).keys()) and len(read) == 24  # one doubled, to even the ranks
