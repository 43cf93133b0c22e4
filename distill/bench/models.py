"""Speed, size and memory of image encoders, measured side by side in one process: `distill bench models`.

All forms of all models take turns: each round runs every one of them, in another order. So a machine that slows down,
or is shared, slows all alike. The numbers are medians. Random weights are enough, as speed does not depend on them.
"""

from __future__ import annotations

import logging
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.models.checkpoint import find_weights, is_packaged, load_model
from distill.models.complexity import count_encoder
from distill.models.sam import ModelSpec, build_from_spec, spec_for
from distill.students.fuse import fuse, is_fused
from distill.text import progress_bar

PRECISIONS = ("fp32", "bf16")
ROUNDS = 5
MAX_REPEATS = 50  # timed passes of one form; enough for a median
MEGABYTE = 1e6
CHECKPOINT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth")

logger = logging.getLogger(__name__)


@dataclass
class TimedForm:
    """One form of one model, at one batch size and precision, with its times.

    pixels: (B, 3, S, S), what the encoder reads each time.
    repeats: how often it is to be timed.
    peak_memory: bytes.
    seconds: one for each time that it was timed.
    of_rounds: the median of each round that timed it, in seconds.
    """

    encoder: nn.Module
    pixels: Tensor
    precision: str
    fused: bool
    repeats: int = 0
    peak_memory: int = 0
    seconds: list[float] = field(default_factory=list)
    of_rounds: list[float] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """Return what the JSON file says about it."""
        latency = statistics.median(self.seconds)
        batch_size = len(self.pixels)
        return {
            "batch_size": batch_size,
            "precision": self.precision,
            "fused": self.fused,
            "latency_ms": 1e3 * latency,
            "latency_low_ms": 1e3 * min(self.of_rounds),
            "latency_high_ms": 1e3 * max(self.of_rounds),
            "rounds": len(self.of_rounds),
            "images_per_second": batch_size / latency,
            "peak_memory_mb": self.peak_memory / MEGABYTE,
            "repeats": len(self.seconds),
        }


@dataclass
class BenchedModel:
    """A model to be measured.

    forms: its encoder by "is it fused": as it is and, where that differs, fused.
    timed: each form at each batch size and precision.
    """

    name: str
    spec: ModelSpec
    num_parameters: int
    num_encoder_parameters: int
    macs: int
    forms: dict[bool, nn.Module]
    timed: list[TimedForm] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """Return what the JSON file says about it."""
        return {
            "model": self.name,
            "image_size": self.spec.image_size,
            "params": self.num_parameters,
            "encoder_params": self.num_encoder_parameters,
            "macs": self.macs,
            "runs": [form.row() for form in self.timed],
        }


def bench_models(
    names: Sequence[str],
    *,
    teacher: str | None = None,
    batch_size: int = 8,
    precisions: Sequence[str] = PRECISIONS,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - a constant
    seconds: float = 10.0,
    least_repeats: int = 1,
) -> dict[str, Any]:
    """Measure encoders at batch 1 and at `batch_size`, eager and fused, in each precision.

    The latency of a form is the median of its times, and its spread the lowest and the highest median of a round.

    Args:
        names: registered students, timm/NAME, or files and run directories of ours.
        teacher: another model, which comes first in the results.
        seconds: the time for which one form is timed, at least `least_repeats` times. A batch that takes longer than
            that by itself is left out.
    Returns:
        the content of the JSON file, without the machine.
    Raises:
        DistillError: a name is unknown, a file does not exist, or a model cannot be fused.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences the profiler's remarks about missing GPUs
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    sources = {name: _source(name) for name in ([teacher] if teacher else []) + list(names)}
    models = []
    with progress_bar("building", len(sources)) as advance:
        for name, source in sources.items():
            models.append(_build(name, source, device))
            advance(1)
    batch_sizes = sorted({1, batch_size})
    with progress_bar("warming up", sum(len(model.forms) for model in models) * len(precisions)) as advance:
        for model in models:
            for fused in model.forms:
                for precision in precisions:
                    model.timed += _warm_up(
                        model, fused=fused, precision=precision, batch_sizes=batch_sizes, seconds=seconds
                    )
                    advance(1)
    for form in (form for model in models for form in model.timed):
        form.repeats = max(form.repeats, least_repeats)
    _take_turns([form for model in models for form in model.timed])
    return {
        "benchmark": "models",
        "device": str(device),
        "threads": torch.get_num_threads(),
        "teacher": teacher,
        "seconds": seconds,
        "models": [model.row() for model in models],
    }


def _build(name: str, source: ModelSpec | Path, device: torch.device) -> BenchedModel:
    model = load_model(source) if isinstance(source, Path) else build_from_spec(source)
    spec = model.spec
    _, macs = count_encoder(
        spec.encoder,
        image_size=spec.image_size,
        embedding_dim=spec.embedding_dim,
        embedding_size=spec.embedding_size,
    )
    eager = model.image_encoder.eval().requires_grad_(False)
    fused = fuse(eager)
    forms = {False: eager, True: fused} if is_fused(fused) else {False: eager}
    forms = {key: form.to(device).to(memory_format=torch.channels_last) for key, form in forms.items()}
    return BenchedModel(name, spec, _count(model), _count(eager), macs, forms)


def _source(name: str) -> ModelSpec | Path:
    """Return what a name stands for: the spec of a student with random weights, or weights on disk.

    Raises:
        DistillError: it is neither.
    """
    if is_packaged(name) or name.endswith(CHECKPOINT_SUFFIXES):
        return find_weights(name)
    try:
        return spec_for(name)
    except DistillError as error:
        if Path(name).exists():
            return find_weights(name)
        raise DistillError(f"{error}; nor is there a file or run directory of that name") from error


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _warm_up(
    model: BenchedModel, *, fused: bool, precision: str, batch_sizes: Sequence[int], seconds: float
) -> list[TimedForm]:
    """Run one form at every batch size that its time allows, and plan how often each is to be timed.

    Each runs twice: the first pass tells the memory, the second one the time.
    """
    encoder = model.forms[fused]
    timed: list[TimedForm] = []
    device = next(encoder.parameters()).device
    size = model.spec.image_size
    per_image = 0.0
    for batch_size in batch_sizes:
        if per_image * batch_size > seconds:
            form_name = "fused" if fused else "eager"
            logger.warning(
                "%s, %s, %s: %d images would take %.0f s, more than --seconds %g: not measured",
                *(model.name, form_name, precision, batch_size, per_image * batch_size, seconds),
            )
            break
        noise = torch.randn(batch_size, 3, size, size, generator=torch.Generator().manual_seed(0))
        if device.type == "cuda":
            noise = noise.pin_memory()
        pixels = noise.to(device, memory_format=torch.channels_last, non_blocking=True)
        form = TimedForm(encoder, pixels, precision, fused)
        form.peak_memory = _peak_memory(form)
        elapsed = _time(form)
        per_image = elapsed / batch_size
        form.repeats = max(1, min(MAX_REPEATS, int(seconds / elapsed)))
        timed.append(form)
    return timed


def _take_turns(forms: Sequence[TimedForm]) -> None:
    """Time every form as often as planned, spread evenly over rounds in random orders."""
    order = random.Random(0)
    with progress_bar("measuring", sum(form.repeats for form in forms)) as advance:
        for i in range(ROUNDS):
            for form in order.sample(forms, len(forms)):
                done = (form.repeats * i + ROUNDS // 2) // ROUNDS
                due = (form.repeats * (i + 1) + ROUNDS // 2) // ROUNDS
                found = []
                for _ in range(due - done):
                    found.append(_time(form))
                    advance(1)
                if found:
                    form.seconds += found
                    form.of_rounds.append(statistics.median(found))


@torch.inference_mode()
def _time(form: TimedForm) -> float:
    """Return the seconds of one forward pass."""
    with _autocast(form):
        if form.pixels.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            form.encoder(form.pixels)
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) / 1e3
        begun = time.perf_counter()
        form.encoder(form.pixels)
        return time.perf_counter() - begun


def _autocast(form: TimedForm) -> AbstractContextManager[object]:
    if form.precision == "fp32":
        return nullcontext()
    return torch.autocast(form.pixels.device.type, torch.bfloat16)


def _peak_memory(form: TimedForm) -> int:
    """Return the peak bytes of one forward pass: the encoder's tensors, the pixels, and what torch allocates."""
    held = [*form.encoder.parameters(), *form.encoder.buffers(), form.pixels]
    num_bytes = sum(tensor.nbytes for tensor in held)

    @torch.inference_mode()
    def forward() -> None:
        with _autocast(form):
            form.encoder(form.pixels)

    if form.pixels.device.type != "cuda":
        return num_bytes + _peak_of_host(forward)
    device = form.pixels.device
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    forward()
    torch.cuda.synchronize(device)
    return num_bytes + torch.cuda.max_memory_allocated(device) - before


def _peak_of_host(function: Callable[[], None]) -> int:
    """Call a function on the CPU, and return the most bytes that torch held at a time of those that it allocated."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
