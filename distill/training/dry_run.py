"""`distill train RECIPE --dry-run`: a few batches through everything, and an estimate of the run. Writes nothing."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import lightning
import torch
from torch import Tensor

from distill.batch import ImageBatch
from distill.config.outlook import Outlook, cautions, describe_lr
from distill.config.trainer import given_arguments
from distill.data.loading.epoch_plan import num_batches
from distill.data.loading.loader import EpochLoader
from distill.memory import peak_memory
from distill.models.initialization import build_student
from distill.models.teacher import load_teacher
from distill.stages.base import TrainingStage
from distill.stages.optim import part_lr_scales
from distill.text import BILLION, MILLION
from distill.training.console import quiet_lightning
from distill.training.run import TrainRecipe, build_data, build_stage, make_trainer, outlook

if TYPE_CHECKING:
    from rich.table import Table

STEPS = 3  # the first warms up and is not timed
HOUR = 3600  # seconds

# The trainer's arguments that make it a dry run: one device, and nothing is logged, kept or repeated.
FEW_STEPS: dict[str, Any] = {
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "accumulate_grad_batches": 1,
    "max_steps": STEPS,
    "max_epochs": -1,  # the steps may need several epochs
    "max_time": None,
    "min_steps": None,
    "min_epochs": None,
    "fast_dev_run": False,
    "limit_train_batches": None,
    "limit_val_batches": 1,
    "num_sanity_val_steps": 0,
    "profiler": None,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@dataclass
class Probe(lightning.Callback):
    """A callback that measures the first steps. Seconds are those of one batch on one device."""

    waits: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    validations: list[float] = field(default_factory=list)
    shapes: dict[str, list[int]] = field(default_factory=dict)
    terms: dict[str, dict[str, Any]] = field(default_factory=dict)
    _mark: float = 0.0

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: ImageBatch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingStage)
        if self.steps:  # not by batch_idx, which begins again with each epoch
            self.waits.append(self._lap())
            return
        with trainer.precision_plugin.train_step_context():
            self.shapes = _shapes(pl_module, batch)
            self.terms = measure_terms(pl_module, batch)
        self._lap()

    def on_train_batch_end(self, *args: Any) -> None:
        self.steps.append(self._lap())

    def on_validation_batch_start(self, *args: Any) -> None:
        self._lap()

    def on_validation_batch_end(self, *args: Any) -> None:
        self.validations.append(self._lap())

    def _lap(self) -> float:
        """Return the seconds since the last call."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        return seconds


@quiet_lightning()
def dry_run(recipe: TrainRecipe, *, meant_batch: int | None = None) -> dict[str, Any]:
    """Build everything that `distill train` builds, take a few steps on one device, and validate one batch.

    Args:
        meant_batch: as `distill.config.outlook.cautions` takes it.
    Returns:
        The report, as `tables` prints it: shapes, parts, terms, step, memory, run, lr and cautions.
    Raises:
        DistillError: a mistake that would stop the run before its first step.
    """
    lightning.seed_everything(recipe.seed, workers=True, verbose=False)
    teacher = load_teacher(recipe.teacher)
    student = build_student(recipe.student, teacher)
    data, stage = build_data(recipe, student, teacher), build_stage(recipe, student, teacher)
    data.setup()  # without prepare_data, which would write an index beside the shards
    data.check_batch()
    found = outlook(recipe, data)
    probe, idle = Probe(), peak_memory()
    trainer = make_trainer({**given_arguments(recipe.trainer), **FEW_STEPS, "callbacks": [probe]})
    try:
        loader, held_out = data.train_dataloader(), data.val_dataloader()
        trainer.fit(stage, train_dataloaders=loader)
        if isinstance(held_out, EpochLoader):
            trainer.validate(stage, dataloaders=held_out, verbose=False)
    finally:
        data.teardown()
    return {
        "kind": recipe.kind,
        "shapes": probe.shapes,
        "parts": count_parts(stage),
        "terms": probe.terms,
        "step": _step(probe),
        "memory": _memory(idle),
        "run": estimate(recipe, found, probe, data.num_photos, _num_photos(held_out)),
        "lr": describe_lr(recipe, found),
        "cautions": cautions(recipe, found, meant_batch=meant_batch),
    }


def measure_terms(stage: TrainingStage, batch: ImageBatch) -> dict[str, dict[str, Any]]:
    """Measure every loss term, unweighted, and the norm of its gradient in every part that trains."""
    parts = {part: [p for p in getattr(stage.model, part).parameters() if p.requires_grad] for part in _parts(stage)}
    found: dict[str, dict[str, Any]] = {}
    for name, term in stage.compute_terms(batch).items():
        norms = {part: _gradient_norm(term, parameters) for part, parameters in parts.items() if parameters}
        found[name] = {"value": term.item(), "gradient_norms": norms}
    return found


def _gradient_norm(term: Tensor, parameters: list[torch.nn.Parameter]) -> float:
    if not term.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    return torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None]).item()


def count_parts(stage: TrainingStage) -> list[dict[str, Any]]:
    """Count the trained and the frozen parameters of each part, with its highest learning rate of the schedule."""
    rows = []
    for part, scale in _parts(stage).items():
        parameters = list(getattr(stage.model, part).parameters())
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        frozen = sum(p.numel() for p in parameters) - trained
        rate = stage.optim_config.lr * scale if trained else 0.0
        rows.append({"part": part, "trained": trained, "frozen": frozen, "lr": rate})
    return rows


def _parts(stage: TrainingStage) -> dict[str, float]:
    return part_lr_scales(stage.optim_config)


def _shapes(stage: TrainingStage, batch: ImageBatch) -> dict[str, list[int]]:
    """Return the shapes of a batch's tensors and of its embeddings."""
    shapes = {name: list(value.shape) for name, value in vars(batch).items() if isinstance(value, Tensor)}
    with torch.no_grad():
        return shapes | {"embeddings": list(stage.model.encode(batch.pixels).shape)}


def _step(probe: Probe) -> dict[str, float]:
    work, wait = statistics.median(probe.steps[1:]), statistics.mean(probe.waits)
    return {"seconds": work, "data_wait_seconds": wait, "data_wait_share": wait / (work + wait)}


def _memory(idle: int) -> dict[str, int]:
    """Return bytes: the most that the process held, the most before its first batch, and the most on a GPU."""
    on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"peak_bytes": peak_memory(), "idle_bytes": idle, "gpu_bytes": on_gpu}


def _num_photos(loader: object) -> int:
    return sum(loader.sampler.shard_sizes) if isinstance(loader, EpochLoader) else 0


def estimate(recipe: TrainRecipe, found: Outlook, probe: Probe, num_photos: int, num_held_out: int) -> dict[str, Any]:
    """Estimate steps, photos and hours of the complete run on the recipe's devices, each as fast as this one."""
    assert found.steps is not None and found.epochs is not None  # the number of photos is known
    devices, batch_size = found.devices, recipe.data.batch_size
    accumulated = recipe.trainer.get("accumulate_grad_batches") or 1
    step = _step(probe)
    seconds = found.steps * accumulated * (step["seconds"] + step["data_wait_seconds"])
    validations = math.ceil(found.steps / recipe.validation.every_n_steps) if num_held_out else 0  # the last step too
    if validations:
        batches = num_batches(num_held_out, world_size=devices, batch_size=batch_size)
        seconds += validations * batches * statistics.mean(probe.validations)
    return {
        "devices": devices,
        "steps": found.steps,
        "epochs": found.epochs,
        "photos": round(found.epochs * num_photos),
        "validations": validations,
        "hours": seconds / HOUR,
    }


def tables(found: dict[str, Any]) -> list[Table | str]:
    """Return the report for a terminal."""
    from rich.table import Table

    shapes = Table("tensor", "shape", title="a batch")
    for name, shape in found["shapes"].items():
        shapes.add_row(name, " x ".join(map(str, shape)))
    parts = Table("part", "trained (M)", "frozen (M)", "learning rate", title="parameters")
    for row in found["parts"]:
        counts = (f"{row[name] / MILLION:.2f}" for name in ("trained", "frozen"))
        parts.add_row(row["part"], *counts, f"{row['lr']:.2e}" if row["lr"] else "")
    norms = next(iter(found["terms"].values()))["gradient_norms"]
    terms = Table("term", "value", *norms, title="loss terms as they are, and the norms of their gradients")
    for name, row in found["terms"].items():
        terms.add_row(name, f"{row['value']:.4g}", *(f"{norm:.3g}" for norm in row["gradient_norms"].values()))
    step, memory, run = found["step"], found["memory"], found["run"]
    on_gpu = f", the GPU {memory['gpu_bytes'] / BILLION:.2f} GB" if memory["gpu_bytes"] else ""
    lines = (
        f"step: {step['seconds']:.3f} s, and {step['data_wait_seconds']:.3f} s of waiting for data "
        f"({step['data_wait_share']:.0%})",
        f"memory: the process held up to {memory['peak_bytes'] / BILLION:.2f} GB, "
        f"{memory['idle_bytes'] / BILLION:.2f} GB of them before its first batch{on_gpu}",
        f"run: {run['steps']:,} steps ({run['epochs']:.2f} epochs, {run['photos']:,} photos) on {run['devices']} "
        f"device(s) and {run['validations']:,} validations: about {run['hours']:.2f} hours at this one's speed",
        found["lr"],
        *(f"warning: {caution}" for caution in found["cautions"]),
        "nothing was written",
    )
    return [shapes, parts, terms, *lines]
