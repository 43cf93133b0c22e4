"""The `trainer` section of a recipe: arguments of lightning.Trainer, checked without importing lightning.

Each argument is declared with what it takes, so that a wrong value is one line before anything starts.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.config.machine import count_gpus
from distill.errors import did_you_mean

Finding = tuple[str, str]
ENDLESS = -1  # of max_steps and max_epochs
DURATION = re.compile(r"\d+:\d\d:\d\d:\d\d")  # lightning's timer: days, hours, minutes and seconds
DURATION_UNITS = ("weeks", "days", "hours", "minutes", "seconds")

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")
ON_GPU = ("gpu", "cuda")
# The strategies of lightning that a command can start, and the package that some of them need.
STRATEGIES: dict[str, str | None] = {
    "auto": None,
    **{
        f"{name}{suffix}": None
        for name in ("ddp", "ddp_spawn", "ddp_fork")
        for suffix in ("", "_find_unused_parameters_false", "_find_unused_parameters_true")
    },
    "fsdp": None,
    "fsdp_cpu_offload": None,
    **{
        f"deepspeed{suffix}": "deepspeed"
        for suffix in (
            "",
            "_stage_1",
            "_stage_2",
            "_stage_2_offload",
            "_stage_3",
            "_stage_3_offload",
            "_stage_3_offload_nvme",
        )
    },
    "xla": "torch_xla",
}
SHARDED = ("fsdp", "deepspeed")  # how the strategies begin that divide the parameters among the devices
# Not 16-true: AdamW's eps, 1e-8, is 0 in fp16, so weights without a gradient become NaN in the first step.
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true")
SHORT_PRECISIONS = ("64", "32", "16", "bf16")  # lightning's other names for 64-true, 32-true, 16-mixed and bf16-mixed


@dataclass(frozen=True)
class Argument:
    """What one argument of lightning.Trainer takes.

    wanted: in words, after "expected".
    fits: tells whether a value is right. None is always right: it leaves the argument to lightning.
    choices: the names that it takes, for a hint at a misspelt one.
    mend: what to write, if `wanted` does not say it.
    """

    wanted: str
    fits: Callable[[Any], bool]
    choices: Sequence[str] = ()
    mend: str = ""

    def mistake(self, value: Any) -> str | None:
        """Return what is wrong with a value and how to mend it. Return None if it is right."""
        if value is None or self.fits(value):
            return None
        hint = did_you_mean(str(value), self.choices) if self.choices else ""
        hint = hint if hint.startswith("Did you mean") else ""
        return "; ".join(filter(None, [f"expected {self.wanted}, got {value!r}", self.mend])) + (
            f". {hint}" if hint else ""
        )


def is_whole(value: Any, at_least: int = 0) -> bool:
    """Return whether a value is a whole number of at least `at_least`. True and 2.0 are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def _is_share(value: Any) -> bool:
    return isinstance(value, float) and 0 < value <= 1


def _whole(at_least: int, *, or_endless: bool = False, mend: str = "") -> Argument:
    words = f"a whole number of at least {at_least}" + (f", or {ENDLESS} for no limit" if or_endless else "")
    return Argument(words, lambda value: is_whole(value, at_least) or (or_endless and value == ENDLESS), mend=mend)


def _part(*, or_none: bool, mend: str = "") -> Argument:
    """Return what the limits take: a number of batches, or a share of them."""
    words = "a number of batches (1, 2, ...) or a share of them (above 0.0, at most 1.0)"
    words += ", or 0 for none" if or_none else ""
    return Argument(
        words,
        lambda value: is_whole(value, 1) or _is_share(value) or (or_none and _is_number(value) and value == 0),
        mend=mend,
    )


def _one_of(*names: str | bool, mend: str = "") -> Argument:
    words = [str(name).lower() if isinstance(name, bool) else name for name in names]
    choices = [name for name in names if isinstance(name, str)]
    return Argument(f"one of {', '.join(words)}", lambda value: _is_among(value, names), choices, mend)


def _is_among(value: Any, names: Sequence[str | bool]) -> bool:
    return isinstance(value, str | bool) and value in names


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_devices(value: Any) -> bool:
    """Return whether lightning takes a value as a number or a list of devices."""
    if isinstance(value, str) and "," in value:
        parts = [part.strip() for part in value.split(",") if part.strip()]
        return bool(parts) and all(part.isdecimal() for part in parts) and len(set(parts)) == len(parts)
    if isinstance(value, str):
        return value in ("auto", "-1") or (value.strip().isdecimal() and int(value) > 0)
    if isinstance(value, list):
        return bool(value) and all(is_whole(item) for item in value) and len(set(value)) == len(value)
    return is_whole(value, 1) or (is_whole(value, -1) and value == -1)


def _is_duration(value: Any) -> bool:
    if isinstance(value, Mapping):
        parts = list(value.values())
        return set(value) <= set(DURATION_UNITS) and all(_is_number(p) and p >= 0 for p in parts) and sum(parts) > 0
    return isinstance(value, str) and DURATION.fullmatch(value) is not None and any(c in value for c in "123456789")


FLAG = _one_of(True, False)
UNTRAINED = "with 0 nothing would be trained"

# Lightning's own arguments; a test compares them, and those of TRAINER_TAKEN, with the installed lightning.
TRAINER: dict[str, Argument] = {
    "accelerator": _one_of(*ACCELERATORS),
    "strategy": Argument(
        "a strategy of lightning (auto, ddp, fsdp, deepspeed, or a variant of these)",
        lambda value: isinstance(value, str) and value in STRATEGIES,
        tuple(STRATEGIES),
    ),
    "devices": Argument(
        "a number of devices (1, 2, ..., or -1 or 'auto' for all) or a list of them ([0, 2])", _is_devices
    ),
    "num_nodes": _whole(1),
    "precision": Argument(
        f"one of {', '.join(PRECISIONS)}",
        lambda value: not isinstance(value, bool) and str(value) in (*PRECISIONS, *SHORT_PRECISIONS),
        PRECISIONS,
        "16-true cannot train, because AdamW's eps of 1e-8 is 0 in fp16: use 16-mixed or bf16-true",
    ),
    "fast_dev_run": Argument(
        "true, false or a number of batches", lambda value: isinstance(value, bool) or is_whole(value)
    ),
    "max_epochs": _whole(1, or_endless=True),
    "min_epochs": _whole(0),
    "max_steps": _whole(1, or_endless=True),
    "min_steps": _whole(0),
    "max_time": Argument(
        f"a time above 0, as 'DD:HH:MM:SS' or {{hours: 12}} (keys {', '.join(DURATION_UNITS)})", _is_duration
    ),
    "limit_train_batches": _part(or_none=False, mend=UNTRAINED),
    "limit_val_batches": _part(or_none=True),
    "limit_test_batches": _part(or_none=True),
    "limit_predict_batches": _part(or_none=True),
    "num_sanity_val_steps": Argument(
        "a whole number of at least 0, or -1 for all batches", lambda value: is_whole(value, -1)
    ),
    "log_every_n_steps": _whole(1),
    "enable_progress_bar": FLAG,
    "enable_model_summary": FLAG,
    "accumulate_grad_batches": _whole(1),
    "gradient_clip_val": Argument(
        "a number of at least 0, or null for no clipping",
        lambda value: _is_number(value) and 0 <= value < float("inf"),
    ),
    "gradient_clip_algorithm": _one_of("norm", "value"),
    "deterministic": _one_of(True, False, "warn"),
    "benchmark": FLAG,
    "inference_mode": FLAG,
    "profiler": _one_of("simple", "advanced", "pytorch"),
    "detect_anomaly": FLAG,
    "sync_batchnorm": FLAG,
    "enable_autolog_hparams": FLAG,
}
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
    "overfit_batches": "use limit_train_batches",
    "reload_dataloaders_every_n_epochs": "the loading plan already gives each epoch its own order",
    "model_registry": "use `distill push`",
}
TRAINER_LENGTH = (
    "max_steps",
    "max_epochs",
    "fast_dev_run",
)  # one must be given: max_time alone gives the schedule no end


def trainer_findings(trainer: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield the key and the message of each mistake in a recipe's `trainer` section."""
    sound: dict[str, Any] = {}
    for name, value in trainer.items():
        key = f"trainer.{name}"
        if name in TRAINER_TAKEN:
            yield key, f"is set by distill: {TRAINER_TAKEN[name]}"
        elif name not in TRAINER:
            yield key, f"lightning.Trainer has no such argument. {did_you_mean(name, TRAINER)}"
        elif (mistake := TRAINER[name].mistake(value)) is not None:
            yield key, mistake
        else:
            sound[name] = value
    lengths = trainer.keys() & set(TRAINER_LENGTH)
    if lengths <= sound.keys() and not any(sound.get(name) not in (None, ENDLESS, False, 0) for name in lengths):
        yield "trainer", "says no length; give trainer.max_steps=N or trainer.max_epochs=N"
    yield from _combinations(sound)


def given_arguments(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that a recipe gives. null leaves one to lightning, and takes back a parent's."""
    return {name: value for name, value in trainer.items() if value is not None}


def _combinations(trainer: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what lightning refuses of values that are right by themselves."""
    accelerator, strategy = trainer.get("accelerator") or "auto", trainer.get("strategy") or "auto"
    devices, precision = trainer.get("devices"), str(trainer.get("precision"))
    if accelerator == "cpu":
        yield from _cpu_devices(devices)
    if strategy.startswith("fsdp"):
        if accelerator not in ON_GPU:
            yield "trainer.strategy", f"'{strategy}' needs a GPU; give trainer.accelerator=gpu too, or strategy=ddp"
        if precision in ("64", "64-true"):
            yield "trainer.precision", f"'{strategy}' has no precision 64-true; give 32-true, or strategy=ddp"
        if trainer.get("gradient_clip_val") and trainer.get("gradient_clip_algorithm") in (None, "norm"):
            mend = "give trainer.gradient_clip_algorithm=value, trainer.gradient_clip_val=null, or strategy=ddp"
            yield "trainer.gradient_clip_val", f"lightning cannot clip by norm with strategy '{strategy}'; {mend}"
    if strategy.startswith("deepspeed") and accelerator not in (*ON_GPU, "auto"):
        yield "trainer.strategy", f"'{strategy}' needs a GPU; give trainer.accelerator=gpu, or strategy=ddp"
    if trainer.get("deterministic") and trainer.get("benchmark"):
        yield "trainer.benchmark", "chooses kernels by their speed, which trainer.deterministic forbids; leave one out"


def machine_findings(trainer: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what a recipe's `trainer` section asks of this machine and it does not have."""
    strategy, devices = trainer.get("strategy"), trainer.get("devices")
    accelerator = trainer.get("accelerator") or "auto"
    package = STRATEGIES.get(strategy) if isinstance(strategy, str) else None
    if package is not None and importlib.util.find_spec(package) is None:
        yield "trainer.strategy", f"'{strategy}' needs the package {package}, which is not installed"
    if accelerator == "tpu" and importlib.util.find_spec("torch_xla") is None:
        yield "trainer.accelerator", "'tpu' needs the package torch_xla, which is not installed; give auto or cpu"
    if accelerator == "mps" and sys.platform != "darwin":
        yield "trainer.accelerator", "'mps' is for Apple's processors; give auto or cpu"
    num_gpus = count_gpus() if accelerator in ("auto", *ON_GPU) else None
    if num_gpus is None:
        return
    if num_gpus == 0 and accelerator in ON_GPU:
        yield "trainer.accelerator", f"'{accelerator}': this machine has no GPU that torch can use; give auto or cpu"
    elif num_gpus == 0 and sys.platform != "darwin":
        yield from _cpu_devices(devices)
    elif num_gpus and isinstance(devices, int | list):
        wanted = devices if isinstance(devices, int) else max(devices) + 1
        if wanted > num_gpus:
            yield "trainer.devices", f"{devices} asked for, but this machine has {num_gpus} GPU(s); give at most these"


def _cpu_devices(devices: Any) -> Iterator[Finding]:
    if isinstance(devices, list) or str(devices) == "-1" or "," in str(devices):
        yield "trainer.devices", f"a CPU takes a number of processes (1, 2, ...) or auto, got {devices!r}"
