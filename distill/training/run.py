"""From a recipe to a trained student: `train` builds the parts, checks them, writes the run directory, and trains."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor
from torch import Tensor

from distill.config.outlook import Outlook, cautions, describe_lr, foresee, num_devices, optim_for
from distill.config.schema import ASKS_TEACHER, FeatureRecipe, MaskRecipe
from distill.config.settings import flatten
from distill.config.trainer import given_arguments
from distill.data.cache.embeddings import EmbeddingCache
from distill.data.cache.manifest import Manifest, fingerprint_of, settle
from distill.data.loading.datamodule import DistillDataModule
from distill.data.shards.index import ShardIndex
from distill.errors import Interrupted, RecipeError, RunError
from distill.leases import Lease
from distill.lock import hold_directory
from distill.memory import keep_freed_memory
from distill.models.checkpoint import RECIPE_KEY, STUDENT_FILE, load_model, save_model
from distill.models.initialization import build_student
from distill.models.sam import ModelSpec, PromptableModel, build_from_spec
from distill.models.teacher import Teacher, load_teacher
from distill.secret import recorded
from distill.stages.base import TrainingStage, float32_by_default
from distill.stages.feature import FeatureStage
from distill.stages.mask import MaskStage
from distill.stages.validation import Validator
from distill.training.callbacks import CheckpointAtEnd, ContinueMetrics, DataWait, Hyperparameters, LastStep
from distill.training.checkpoints import BestCheckpoints, LastCheckpoint, WholeFiles, remove_unfinished
from distill.training.console import TrainingProgress, quiet_lightning
from distill.training.cost import CostRecord
from distill.training.directory import (
    BEST_CHECKPOINT,
    CHECKPOINTS,
    LAST_CHECKPOINT,
    LOG_FILE,
    LogFile,
    find_checkpoint,
    is_rank_zero,
    last_checkpoint,
    write_record,
)
from distill.training.interrupts import Signals, explain, is_started_by_lightning
from distill.training.loggers import build_loggers
from distill.training.position import KeepPosition
from distill.training.record import write_earlier_stages
from distill.training.start import Start, read_start

TrainRecipe = FeatureRecipe | MaskRecipe

BEST_METRIC = {"feature": "val/cosine", "mask": "val/box_miou"}
VALIDATION_METRICS = ("val/cosine", "val/box_miou", "val/point_miou")

logger = logging.getLogger(__name__)


@quiet_lightning()
def train(recipe: TrainRecipe, *, callbacks: Sequence[lightning.Callback] = (), meant_batch: int | None = None) -> Path:
    """Train a student by a recipe, as `distill train` does. Every rank calls it, and rank 0 writes.

    Args:
        recipe: what `distill.config.loading.load_recipe` returns, or a dataclass that is filled in Python.
        callbacks: further callbacks of Lightning, after our own.
        meant_batch: as `distill.config.outlook.cautions` takes it.
    Returns:
        The path of the student's weights.
    Raises:
        DistillError: something that the recipe names is wrong, before the run directory is made; another process
            holds the directory; or the run cannot go on.
        Interrupted: SIGTERM, SIGUSR1 or Ctrl-C ended it. The last finished step is in its checkpoint.
    """
    run = Path(recipe.run)
    writes = is_rank_zero()  # other ranks may start when rank 0 has written already
    with Signals() as signals:
        try:
            with hold_directory(run, give="run=DIR") if writes else nullcontext() as lease:
                return _train(recipe, callbacks, meant_batch, signals=signals, lease=lease)
        except Interrupted as stop:
            explain(stop, run, last_checkpoint(run), is_writer=writes)
            raise


def _train(
    recipe: TrainRecipe,
    callbacks: Sequence[lightning.Callback],
    meant_batch: int | None,
    *,
    signals: Signals,
    lease: Lease | None,
) -> Path:
    """Train while `signals` are answered. In rank 0, `lease` holds the run directory."""
    run = Path(recipe.run)
    writes = lease is not None
    found = find_checkpoint(run, resume=recipe.resume or not writes)
    start = read_start(recipe, found if recipe.resume else None)
    lightning.seed_everything(recipe.seed, workers=True, verbose=False)
    teacher = load_teacher(recipe.teacher)
    student = build_student(recipe.student, teacher)
    data = build_data(recipe, student, teacher)
    trainer = _build_trainer(recipe, [start.recipe, *callbacks], signals)
    signals.keep_from(trainer)
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # others write what only they can read
        trainer.strategy.checkpoint_io = WholeFiles(lease)
    devices = trainer.num_devices * trainer.num_nodes
    stage = build_stage(recipe, student, teacher, devices=devices)
    start.recipe.check_teacher(teacher.weights_sha256)
    is_finished, weights = start.is_finished(trainer), run / STUDENT_FILE
    if writes:
        data.prepare_data()
        data.setup()  # finds what is wrong with the shards
        if start.checkpoint is None:
            data.check_batch()
        start.check(stage, data, world_size=devices)
        expected = foresee(recipe, devices=devices, num_photos=data.num_photos)
        if not is_finished or start.chooses_student:
            write_record(run, start.recipe.yaml(absolute=True))
            write_earlier_stages(run, recipe.student.init_from)
            start.recipe.write_changes(run)
        remove_unfinished(run / CHECKPOINTS)
    with LogFile(run / LOG_FILE) if writes else nullcontext():
        if is_finished:
            if writes:
                _leave_finished(start, recipe, stage, weights)
            return weights
        start.log()
        if writes:
            logger.info("%s", describe_lr(recipe, expected))
            for caution in cautions(recipe, expected, meant_batch=meant_batch):
                logger.warning("%s", caution)
        _fit(trainer, stage, data, start.checkpoint)
        if trainer.global_step == 0:
            raise RunError("no step was trained, so there is no student; raise trainer.max_time, or see the log")
        tensors = trainer.strategy.lightning_module_state_dict()  # all ranks: each may hold a part of each tensor
        if trainer.is_global_zero:
            whole = rebuild_student(student.spec, tensors)
            save_model(
                _chosen_student(recipe, whole), weights, metadata={RECIPE_KEY: start.recipe.yaml(absolute=False)}
            )
        logger.info("%d steps; the student is %s", trainer.global_step, weights)
    return weights


def _chosen_student(recipe: TrainRecipe, student: PromptableModel) -> PromptableModel:
    """Return the student of the last step, or of the best validated one if the recipe wants it."""
    best = Path(recipe.run) / CHECKPOINTS / f"{BEST_CHECKPOINT}.ckpt"
    if recipe.checkpoint.student == "last":
        return student
    if not best.is_file():
        logger.warning("no step was validated, so the student is that of the last step")
        return student
    return load_model(best)


def build_data(recipe: TrainRecipe, student: PromptableModel, teacher: Teacher) -> DistillDataModule:
    """Build the batches of a training and its validation.

    Raises:
        DistillError: the shards or the cache are missing, damaged, or do not fit the recipe.
    """
    cache = None
    if _needs_cache(recipe):
        assert recipe.cache.dir is not None
        expected = None
        if is_rank_zero():
            config = settle(recipe.cache, Manifest.read(recipe.cache.dir).fingerprint)
            expected = fingerprint_of(teacher, ShardIndex.open(recipe.data.images), config)
        cache = EmbeddingCache.open(recipe.cache.dir, expected)
    return DistillDataModule(
        recipe.data,
        image_size=student.image_size,
        embedding_size=student.embedding_size,
        masks=isinstance(recipe, MaskRecipe) and not recipe.prompts.teacher_instances,
        seed=recipe.seed,
        teacher_image_size=teacher.image_size,
        online_teacher=recipe.teacher.source == "online" and _asks_teacher(recipe),
        cache=cache,
        validation=recipe.validation,
    )


def _needs_cache(recipe: TrainRecipe) -> bool:
    return recipe.teacher.source == "cache" and _asks_teacher(recipe)


def _asks_teacher(recipe: TrainRecipe) -> bool:
    """Return whether training needs the teacher's embeddings."""
    return isinstance(recipe, FeatureRecipe) or any(attrgetter(option)(recipe) for option in ASKS_TEACHER)


def outlook(recipe: TrainRecipe, data: DistillDataModule) -> Outlook:
    """Return what a recipe will do on this machine's devices with the photos of `data`, which is set up."""
    devices = num_devices(recipe.trainer, torch.cuda.device_count())
    return foresee(recipe, devices=devices, num_photos=data.num_photos)


def build_stage(
    recipe: TrainRecipe, student: PromptableModel, teacher: Teacher, *, devices: int | None = None
) -> TrainingStage:
    """Build the stage that a recipe describes, around a student.

    Args:
        devices: how many train together, for the learning rate. None: as many as Lightning starts on such machines.
    Raises:
        DistillError: student and teacher do not fit each other.
    """
    devices = devices or num_devices(recipe.trainer, torch.cuda.device_count())
    optim = optim_for(recipe.optim, foresee(recipe, devices=devices, num_photos=None).photos_a_step)
    validator = Validator(recipe.validation, teacher) if recipe.data.val_images is not None else None
    if isinstance(recipe, MaskRecipe):
        return MaskStage(
            student,
            teacher if _asks_teacher(recipe) else None,
            prompts=recipe.prompts,
            targets=recipe.targets,
            loss=recipe.loss,
            decoder=recipe.decoder,
            optim=optim,
            validator=validator,
            seed=recipe.seed,
        )
    online = teacher if recipe.teacher.source == "online" else None
    return FeatureStage(student, online, loss=recipe.loss, optim=optim, validator=validator, seed=recipe.seed)


def _build_trainer(recipe: TrainRecipe, callbacks: Sequence[lightning.Callback], signals: Signals) -> lightning.Trainer:
    """Build Lightning's trainer with the recipe's arguments as they are, our loggers, and all callbacks."""
    run = Path(recipe.run)
    options = {
        **given_arguments(recipe.trainer),
        "default_root_dir": run,
        "logger": build_loggers(recipe.logger, run),
        "callbacks": [*_callbacks(recipe, signals), *callbacks],
        "use_distributed_sampler": False,  # the loading plan gives each rank its share
        "check_val_every_n_epoch": None,  # validation goes by steps, across epochs
    }
    accumulated = options.get("accumulate_grad_batches", 1)  # Lightning counts batches
    options["val_check_interval"] = recipe.validation.every_n_steps * accumulated
    return make_trainer(options)


def make_trainer(options: dict[str, Any]) -> lightning.Trainer:
    """Build a trainer. On a CPU this process then keeps the memory that it frees (`memory.keep_freed_memory`).

    Raises:
        RecipeError: Lightning refuses the arguments.
    """
    try:
        trainer = lightning.Trainer(**options)
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise RecipeError("trainer", [f"lightning.Trainer refuses these arguments: {error}"]) from error
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    return trainer


def _callbacks(recipe: TrainRecipe, signals: Signals) -> list[lightning.Callback]:
    folder = Path(recipe.run) / CHECKPOINTS
    metrics = ("train/loss", *(VALIDATION_METRICS if recipe.data.val_images is not None else ()))
    callbacks: list[lightning.Callback] = [
        LastStep(),
        ContinueMetrics(),  # reads a checkpoint's position before the next one rewrites it
        KeepPosition(),
        Hyperparameters(recorded(dict(flatten(asdict(recipe)))), metrics),
        CostRecord(Path(recipe.run)),
        DataWait(),
        LearningRateMonitor(logging_interval="step"),
        CheckpointAtEnd(folder / f"{LAST_CHECKPOINT}.ckpt"),
        LastCheckpoint(folder / f"{LAST_CHECKPOINT}.ckpt", recipe.checkpoint, signals),
    ]
    if recipe.data.val_images is not None and recipe.checkpoint.keep_best:
        callbacks.append(BestCheckpoints(folder, BEST_METRIC[recipe.kind], recipe.checkpoint.keep_best))
    if recipe.trainer.get("enable_progress_bar") is not False:
        callbacks.append(TrainingProgress())
    if recipe.optim.ema_decay:
        callbacks.append(EMAWeightAveraging(decay=recipe.optim.ema_decay))
    return callbacks


def _fit(
    trainer: lightning.Trainer, stage: lightning.LightningModule, data: DistillDataModule, checkpoint: Path | None
) -> None:
    try:
        trainer.fit(stage, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except MisconfigurationException as error:
        raise RecipeError("trainer", [f"lightning.Trainer refuses these arguments: {error}"]) from error
    except SystemExit:  # Lightning's answer to KeyboardInterrupt, which a second Ctrl-C raises
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    except Interrupted as stop:
        if is_started_by_lightning(trainer):
            stop.exit_code = 0
        if stop.step is None and trainer.strategy.launcher is not None:  # the other ranks have not agreed to end
            trainer.strategy.launcher.kill(stop.signum)
        raise


def rebuild_student(spec: ModelSpec, tensors: Mapping[str, Tensor]) -> PromptableModel:
    """Return a student in float32 with the tensors of a stage's state, whatever it was trained in and wherever."""
    prefix = "model."
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    with float32_by_default():
        student = build_from_spec(spec)
    student.load_state_dict(own)
    return student


def _leave_finished(start: Start, recipe: TrainRecipe, stage: TrainingStage, weights: Path) -> None:
    """Leave the record of a finished run as it is, and write its student if it is missing or another one is wanted."""
    logger.warning("the run had reached its end before; for more steps raise trainer.max_steps or max_epochs")
    if weights.is_file() and not start.chooses_student:
        return
    assert start.content is not None
    stage.load_state_dict(start.content["state_dict"])  # the averaged weights, where there are some
    save_model(_chosen_student(recipe, stage.model), weights, metadata={RECIPE_KEY: start.recipe.yaml(absolute=False)})
