"""Speed, size and memory of image encoders, measured side by side in one process.

What is timed takes turns: each round runs every form of every model, in another order, so that a machine that slows
down or is shared slows all alike. The numbers are medians. Random weights serve: speed does not depend on them.
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
CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth")

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """One form of one model at one batch size: how often it is to be timed, and what was found."""

    encoder: nn.Module
    pixels: Tensor
    precision: str
    fused: bool
    repeats: int = 0
    peak_memory: int = 0
    seconds: list[float] = field(default_factory=list)

    def result(self) -> dict[str, Any]:
        """What the JSON says of it."""
        latency = statistics.median(self.seconds)
        batch_size = len(self.pixels)
        return {
            "batch_size": batch_size,
            "precision": self.precision,
            "fused": self.fused,
            "latency_ms": 1e3 * latency,
            "images_per_second": batch_size / latency,
            "peak_memory_mb": self.peak_memory / MEGABYTE,
            "repeats": len(self.seconds),
        }


@dataclass
class Subject:
    """A model to be measured. forms: its encoder as it is and, where that differs, fused."""

    name: str
    spec: ModelSpec
    num_parameters: int
    num_encoder_parameters: int
    macs: int
    forms: dict[bool, nn.Module]
    runs: list[Run] = field(default_factory=list)

    def result(self) -> dict[str, Any]:
        """What the JSON says of it."""
        return {
            "model": self.name,
            "image_size": self.spec.image_size,
            "params": self.num_parameters,
            "encoder_params": self.num_encoder_parameters,
            "macs": self.macs,
            "runs": [run.result() for run in self.runs],
        }


def bench_models(
    names: Sequence[str],
    *,
    teacher: str | None = None,
    batch_size: int = 8,
    precisions: Sequence[str] = PRECISIONS,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - a constant
    seconds: float = 10.0,
) -> dict[str, Any]:
    """Measure encoders at batch 1 and at `batch_size`, eager and fused, in each precision.

    Args:
        names: registered students, timm/NAME, or files and run directories of ours. teacher: another one, put first.
        seconds: of timed passes that one form may take; at least one is timed. A batch that would take longer by
            itself is left out.
    Returns:
        the content of the JSON file, without the machine.
    Raises:
        DistillError: a name or a file that is not there, or a model that cannot be fused.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's remarks about GPUs that are not there
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    sources = {name: _source(name) for name in ([teacher] if teacher else []) + list(names)}
    subjects = []
    with progress_bar("building", len(sources)) as advance:
        for name, source in sources.items():
            subjects.append(_subject(name, source, device))
            advance(1)
    batch_sizes = sorted({1, batch_size})
    with progress_bar("warming up", sum(len(s.forms) for s in subjects) * len(precisions)) as advance:
        for subject in subjects:
            for fused, encoder in subject.forms.items():
                for precision in precisions:
                    subject.runs += _warm_up(subject, encoder, fused, precision, batch_sizes, seconds)
                    advance(1)
    _take_turns([run for subject in subjects for run in subject.runs])
    return {
        "benchmark": "models",
        "device": str(device),
        "threads": torch.get_num_threads(),
        "teacher": teacher,
        "seconds": seconds,
        "models": [subject.result() for subject in subjects],
    }


def _subject(name: str, source: ModelSpec | Path, device: torch.device) -> Subject:
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
    return Subject(name, spec, _count(model), _count(eager), macs, forms)


def _source(name: str) -> ModelSpec | Path:
    """What a name stands for: a student with random weights, or weights on disk. Raises DistillError on neither."""
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
    subject: Subject, encoder: nn.Module, fused: bool, precision: str, batch_sizes: Sequence[int], seconds: float
) -> list[Run]:
    """One form at every batch size that its time allows, each run twice: for the memory, then for the plan."""
    runs: list[Run] = []
    device = next(encoder.parameters()).device
    size = subject.spec.image_size
    per_image = 0.0
    for batch_size in batch_sizes:
        if per_image * batch_size > seconds:
            form = "fused" if fused else "eager"
            logger.warning(
                "%s, %s, %s: %d images would take %.0f s, more than --seconds %g: not measured",
                *(subject.name, form, precision, batch_size, per_image * batch_size, seconds),
            )
            break
        noise = torch.randn(batch_size, 3, size, size, generator=torch.Generator().manual_seed(0))
        if device.type == "cuda":
            noise = noise.pin_memory()
        pixels = noise.to(device, memory_format=torch.channels_last, non_blocking=True)
        run = Run(encoder, pixels, precision, fused)
        run.peak_memory = _peak_memory(run)
        elapsed = _timed(run)
        per_image = elapsed / batch_size
        run.repeats = max(1, min(MAX_REPEATS, int(seconds / elapsed)))
        runs.append(run)
    return runs


def _take_turns(runs: Sequence[Run]) -> None:
    """Time every run as often as planned, spread evenly over rounds in random orders."""
    order = random.Random(0)
    with progress_bar("measuring", sum(run.repeats for run in runs)) as advance:
        for i in range(ROUNDS):
            for run in order.sample(runs, len(runs)):
                done = (run.repeats * i + ROUNDS // 2) // ROUNDS
                due = (run.repeats * (i + 1) + ROUNDS // 2) // ROUNDS
                for _ in range(due - done):
                    run.seconds.append(_timed(run))
                    advance(1)


@torch.inference_mode()
def _timed(run: Run) -> float:
    """Seconds of one forward pass."""
    with _autocast(run):
        if run.pixels.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run.encoder(run.pixels)
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3
        begun = time.perf_counter()
        run.encoder(run.pixels)
        return time.perf_counter() - begun


def _autocast(run: Run) -> AbstractContextManager[object]:
    if run.precision == "fp32":
        return nullcontext()
    return torch.autocast(run.pixels.device.type, torch.bfloat16)


def _peak_memory(run: Run) -> int:
    """Bytes of one forward pass at its highest: the encoder's tensors, the pixels, and what torch allocates."""
    held = [*run.encoder.parameters(), *run.encoder.buffers(), run.pixels]
    num_bytes = sum(tensor.nbytes for tensor in held)

    @torch.inference_mode()
    def forward() -> None:
        with _autocast(run):
            run.encoder(run.pixels)

    if run.pixels.device.type != "cuda":
        return num_bytes + _peak_of_host(forward)
    device = run.pixels.device
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    forward()
    torch.cuda.synchronize(device)
    return num_bytes + torch.cuda.max_memory_allocated(device) - before


def _peak_of_host(function: Callable[[], None]) -> int:
    """The most bytes that torch held at a time, of those that it allocated in a call on the CPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
