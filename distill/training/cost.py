"""The cost of a training: counted across interruptions, and written to the run directory when the training ends."""

from __future__ import annotations

import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning
import torch

from distill.batch import ImageBatch
from distill.errors import RunError
from distill.files import write_json
from distill.outside import Count, Seconds, read_json

COST_FILE = "cost.json"


@dataclass(frozen=True)
class Cost:
    """The cost of a training.

    seconds: of wall time, validation included.
    photos: drawn over all ranks; a photo drawn twice counts twice.
    devices: processes.

    It leaves out what an interrupted run did after its last checkpoint, because the run did that again.
    """

    seconds: Seconds
    steps: Count
    photos: Count
    devices: Count
    nodes: Count
    device: str
    precision: str

    @property
    def device_hours(self) -> float:
        return self.seconds * self.devices / 3600


def read_cost(run: Path) -> Cost | None:
    """Read the cost of a finished run. Return None if the run has no record of it. Raises RunError if it is damaged."""
    path = run / COST_FILE
    if not path.is_file():
        return None
    return read_json(path, Cost, "cost of a training", "restore it, or remove it", raises=RunError)


class CostRecord(lightning.Callback):
    """A callback that counts seconds and photos. Its counts are part of the checkpoints."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._seconds, self._photos = 0.0, 0
        self._mark = time.monotonic()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._mark = time.monotonic()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: ImageBatch, *_: int
    ) -> None:
        self._photos += len(batch.keys) * trainer.world_size

    def state_dict(self) -> dict[str, Any]:
        now = time.monotonic()
        self._seconds, self._mark = self._seconds + now - self._mark, now
        return {"seconds": self._seconds, "photos": self._photos}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seconds, self._photos = state["seconds"], state["photos"]

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        counts = self.state_dict()
        if not trainer.is_global_zero:
            return
        cost = Cost(
            seconds=round(counts["seconds"], 1),
            steps=trainer.global_step,
            photos=counts["photos"],
            devices=trainer.world_size,
            nodes=trainer.num_nodes,
            device=device_name(pl_module.device),
            precision=str(trainer.precision),
        )
        write_json(self.run / COST_FILE, asdict(cost), raises=RunError)


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or else of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.processor() or platform.machine()})"
