"""Two epochs over shards on some ranks.

`test_datamodule.py` starts it: ddp_loader_run.py NUM_RANKS SHARDS OUT.

Each rank writes OUT/RANK.json: the keys of its batches.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import lightning
import torch

from distill.config.schema import DataConfig
from distill.data.loading.datamodule import DistillDataModule

GLOBAL_BATCH = 4


class Recorder(lightning.LightningModule):
    """A model that records the keys it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.keys: list[list[str]] = []

    def training_step(self, batch, batch_index):
        self.keys.append(batch.keys)
        return self.layer(batch.pixels.mean().view(1, 1)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def main(num_ranks: int, shards: str, out: Path) -> None:
    data = DistillDataModule(
        DataConfig(images=shards, batch_size=GLOBAL_BATCH // num_ranks, num_workers=1),
        image_size=32,
        embedding_size=4,
        masks=False,
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=num_ranks,
        strategy="ddp" if num_ranks > 1 else "auto",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    stage = Recorder()
    trainer.fit(stage, datamodule=data)
    out.mkdir(exist_ok=True)
    (out / f"{trainer.global_rank}.json").write_text(json.dumps(stage.keys))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
