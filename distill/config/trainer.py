"""The `trainer` section of a recipe: arguments of lightning.Trainer, checked without importing lightning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from distill.errors import did_you_mean

# Lightning's own arguments; a test compares them with the installed lightning.
TRAINER_ARGUMENTS = (
    "accelerator",
    "strategy",
    "devices",
    "num_nodes",
    "precision",
    "logger",
    "callbacks",
    "fast_dev_run",
    "max_epochs",
    "min_epochs",
    "max_steps",
    "min_steps",
    "max_time",
    "limit_train_batches",
    "limit_val_batches",
    "limit_test_batches",
    "limit_predict_batches",
    "overfit_batches",
    "val_check_interval",
    "check_val_every_n_epoch",
    "num_sanity_val_steps",
    "log_every_n_steps",
    "enable_checkpointing",
    "enable_progress_bar",
    "enable_model_summary",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "deterministic",
    "benchmark",
    "inference_mode",
    "use_distributed_sampler",
    "profiler",
    "detect_anomaly",
    "barebones",
    "plugins",
    "sync_batchnorm",
    "reload_dataloaders_every_n_epochs",
    "default_root_dir",
    "enable_autolog_hparams",
    "model_registry",
)
# Arguments that `distill train` fills itself, and what to use in their place.
TRAINER_TAKEN = {
    "logger": "use logger: [tensorboard, csv]; the run directory always gets metrics.jsonl too",
    "callbacks": "a recipe names no code",
    "plugins": "a recipe names no code",
    "default_root_dir": "use run",
    "enable_checkpointing": "the run directory always gets checkpoints",
    "barebones": "the run directory always gets checkpoints and logs",
    "val_check_interval": "use validation.every_n_steps",
    "check_val_every_n_epoch": "use validation.every_n_steps",
    "use_distributed_sampler": "the loading plan already gives each rank its share",
}
TRAINER_LENGTH = (
    "max_steps",
    "max_epochs",
    "fast_dev_run",
)  # one must be given: max_time alone gives the schedule no end


def trainer_findings(trainer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the key and the message of each mistake in a recipe's `trainer` section."""
    for name in trainer:
        if name in TRAINER_TAKEN:
            yield f"trainer.{name}", f"is set by distill: {TRAINER_TAKEN[name]}"
        elif name not in TRAINER_ARGUMENTS:
            yield f"trainer.{name}", f"lightning.Trainer has no such argument. {did_you_mean(name, TRAINER_ARGUMENTS)}"
    if not any(trainer.get(name) not in (None, -1, False) for name in TRAINER_LENGTH):
        yield "trainer", "says no length; give trainer.max_steps=N or trainer.max_epochs=N"
