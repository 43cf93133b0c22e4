"""A training step by the framework beside a bare PyTorch loop on the same batches: `distill bench train`."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from distill.batch import ImageBatch
from distill.bench.photos import write_shards
from distill.config.loading import load_recipe
from distill.config.schema import CacheConfig, StudentConfig, TeacherConfig
from distill.data.cache.job import build_cache
from distill.data.loading.loader import EpochLoader, EpochSampler
from distill.data.loading.samples import LoadedBatch
from distill.data.shards.index import ShardIndex
from distill.models.initialization import build_student
from distill.models.teacher import load_teacher
from distill.stages.optim import build_schedule
from distill.training.run import TrainRecipe, build_stage, train

if TYPE_CHECKING:
    from rich.table import Table

STAGES = ("feature", "mask")
PHOTO_HW = (480, 640)  # COCO's most frequent size
NUM_PHOTOS = 32
WARM_UP_ROUNDS = 1
MILLI = 1e-3


@dataclass(frozen=True)
class TrainSetup:
    """What both loops train, and how often they take turns.

    student: a registered student or timm/NAME. image_size: in pixels. teacher: as in a recipe without a checkpoint.
    batch_size, num_workers, precision: as in a recipe.
    steps: of a turn. rounds: turns of each loop that are counted.
    """

    student: str
    image_size: int
    batch_size: int
    teacher: str = "quickstart"
    num_workers: int = 0
    precision: str = "32-true"
    steps: int = 4
    rounds: int = 12


def bench_train(setup: TrainSetup) -> dict[str, Any]:
    """Measure a step of both stages, by `distill train` with all that it does beside the step, and by a bare loop.

    The recipes are those of the quickstart. Two models start from the same weights and see the same batches. The
    framework takes `steps` steps, then the bare loop takes the same ones, and so on, in one process. The framework's
    time holds everything: the loader, callbacks, logging, the progress bar.

    Returns:
        what `--json` prints: the setup, and for each stage
        framework, bare: seconds and core_seconds of a step, medians over the rounds, and the loss of the last step.
        overhead: what the framework takes beyond the bare loop, as a share of it; the median over the rounds.
        core_overhead: the same in the time of all cores, which a busy machine does not change.
        overhead_seconds: of a step, in time of all cores.
    Raises:
        DistillError: the student cannot be built, or does not fit the setup.
    """
    teacher = load_teacher(TeacherConfig(setup.teacher))
    build_student(StudentConfig(setup.student, setup.image_size), teacher)  # refuses before anything is measured
    found: dict[str, Any] = {"setup": asdict(setup)}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_shards(place / "shards", NUM_PHOTOS, hw=PHOTO_HW)
        index = ShardIndex.open(place / "shards")
        index.save()
        build_cache(teacher, index, CacheConfig(dir=str(place / "cache")))
        for kind in STAGES:
            recipe = _recipe(kind, place, setup)
            turns = Turns(BareLoop(recipe), setup.steps)
            train(recipe, callbacks=[turns])
            found[kind] = turns.summary()
    return found


class BareLoop:
    """The training of a recipe as a loop of a few lines: PyTorch's loader, autocast, AdamW, its schedule, clipping."""

    def __init__(self, recipe: TrainRecipe) -> None:
        lightning.seed_everything(recipe.seed, verbose=False)
        teacher = load_teacher(recipe.teacher)
        self.recipe = recipe
        self.stage = build_stage(recipe, build_student(recipe.student, teacher), teacher)
        self.steps = _Steps()
        self.stage.__dict__["_trainer"] = self.steps  # the mask stage draws its prompts by the step
        self.loss = float("nan")

    def begin(self, loader: EpochLoader, device: torch.device) -> None:
        """Build what the loop needs, to read the batches that the framework's loader reads."""
        recipe, photos = self.recipe, loader.photos
        sampler = EpochSampler(
            loader.sampler.shard_sizes, seed=recipe.seed, batch_size=recipe.data.batch_size, shuffle=True
        )
        self.stage.to(device)
        self.device = device
        self.optimizer = self.stage.build_optimizer()
        self.schedule = build_schedule(self.optimizer, recipe.optim, recipe.trainer["max_steps"])
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.batches = _epochs(photos, sampler, recipe.data.num_workers)

    def run(self, num_steps: int) -> None:
        """Take some steps."""
        for _ in range(num_steps):
            batch = _to(next(self.batches), self.device)
            with self._precision():
                loss = self.stage.compute_terms(batch)["loss"]
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.trainer["gradient_clip_val"])
            self.optimizer.step()
            self.schedule.step()
            self.steps.global_step += 1
        self.loss = loss.item()

    def _precision(self) -> AbstractContextManager[Any]:
        if self.recipe.trainer["precision"] == "bf16-mixed":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()


@dataclass
class _Steps:
    """The number of steps that a loop has taken, where a stage looks for a trainer's."""

    global_step: int = 0


class Turns(lightning.Callback):
    """A callback that stops the framework after every few steps, and lets a bare loop take the same steps."""

    def __init__(self, bare: BareLoop, num_steps: int) -> None:
        self.bare = bare
        self.num_steps = num_steps
        self.loss = float("nan")
        self.laps: dict[str, list[tuple[float, float]]] = {"framework": [], "bare": []}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        loader = trainer.train_dataloader
        assert isinstance(loader, EpochLoader)
        self.bare.begin(loader, pl_module.device)

    def on_train_batch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        if trainer.global_step == 0:
            self._mark = _now()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, *args: Any
    ) -> None:
        if trainer.global_step % self.num_steps:
            return
        self._lap("framework")
        self.loss = float(outputs["loss"])
        self.bare.run(self.num_steps)
        self._lap("bare")

    def summary(self) -> dict[str, Any]:
        """Return what `bench_train` returns for one stage."""
        framework, bare = (self.laps[name][WARM_UP_ROUNDS:] for name in ("framework", "bare"))
        shares = [[a / b - 1 for a, b in zip(*pair, strict=True)] for pair in zip(framework, bare, strict=True)]
        above = [(pair[0][1] - pair[1][1]) / self.num_steps for pair in zip(framework, bare, strict=True)]
        return {
            "framework": self._step(framework) | {"loss": self.loss},
            "bare": self._step(bare) | {"loss": self.bare.loss},
            "overhead": statistics.median(share for share, _ in shares),
            "core_overhead": statistics.median(share for _, share in shares),
            "overhead_seconds": statistics.median(above),
        }

    def _step(self, laps: list[tuple[float, float]]) -> dict[str, float]:
        seconds, core_seconds = (statistics.median(column) / self.num_steps for column in zip(*laps, strict=True))
        return {"seconds": seconds, "core_seconds": core_seconds}

    def _lap(self, name: str) -> None:
        now = _now()
        self.laps[name].append((now[0] - self._mark[0], now[1] - self._mark[1]))
        self._mark = now


def tables(found: dict[str, Any]) -> list[Table]:
    """Return the measurements as a table for a terminal."""
    from rich.table import Table

    setup = found["setup"]
    title = (
        f"{setup['student']} at {setup['image_size']} pixels, {setup['batch_size']} photos a step, "
        f"{setup['precision']}, {setup['num_workers']} workers, {setup['rounds']} turns of {setup['steps']} steps"
    )
    table = Table("stage", "framework (ms)", "bare (ms)", "overhead", "in core time", "ms of cores a step", title=title)
    for kind in STAGES:
        row = found[kind]
        steps = (f"{row[name]['seconds'] / MILLI:,.1f}" for name in ("framework", "bare"))
        shares = (f"{row[name]:+.1%}" for name in ("overhead", "core_overhead"))
        table.add_row(kind, *steps, *shares, f"{row['overhead_seconds'] / MILLI:,.2f}")
    return [table]


def _recipe(kind: str, place: Path, setup: TrainSetup) -> TrainRecipe:
    """Return the quickstart's recipe of a stage, long enough for all turns."""
    options = [
        f"data.images={place / 'shards'}",
        f"run={place / kind}",
        f"student.name={setup.student}",
        f"student.image_size={setup.image_size}",
        "student.init_from=null",
        f"teacher.name={setup.teacher}",
        f"data.batch_size={setup.batch_size}",
        f"data.num_workers={setup.num_workers}",
        f"trainer.precision={setup.precision}",
        "trainer.max_epochs=-1",
        f"trainer.max_steps={setup.steps * (setup.rounds + WARM_UP_ROUNDS)}",
        "trainer.devices=1",
        f"cache.dir={place / 'cache'}",
    ]
    recipe = load_recipe(f"quickstart/{kind}", options, kinds=STAGES)
    assert isinstance(recipe, TrainRecipe)
    return recipe


def _epochs(photos: Any, sampler: EpochSampler, num_workers: int) -> Iterator[ImageBatch]:
    """Yield the batches of one epoch after the other by PyTorch's own loader."""
    loader: DataLoader[LoadedBatch] = DataLoader(
        photos,
        sampler=sampler,
        batch_size=None,
        collate_fn=lambda loaded: loaded,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
    while True:
        for loaded in loader:
            yield ImageBatch(**loaded.fields)
        sampler.epoch += 1


def _to(batch: ImageBatch, device: torch.device) -> ImageBatch:
    if device.type == "cpu":
        return batch
    moved = copy.copy(batch)
    for name, value in vars(batch).items():
        if isinstance(value, Tensor):
            setattr(moved, name, value.to(device, non_blocking=True))
    return moved


def _now() -> tuple[float, float]:
    """Return the time and the time of all cores, in seconds, when everything that a GPU was given is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()
