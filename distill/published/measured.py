"""Our own measurements beside published numbers: parameters and MACs on the meta device, throughput on this CPU."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path

from distill.published.numbers import Count
from distill.text import BILLION, MILLION

# Two counts of MACs agree within this share: tools differ in what they count of norms and of the decoder.
MACS_TOLERANCE = Decimal("0.01")
CPU_INFO = Path("/proc/cpuinfo")  # of Linux


@dataclass(frozen=True)
class OwnCounts:
    """What one student has here: parameters of its encoder and of the complete model, and the encoder's MACs."""

    encoder_parameters: int
    model_parameters: int
    encoder_macs: int

    def beside(self, count: Count) -> Decimal:
        """Return our number beside a published one, in its unit. MACs are always the encoder's."""
        if count.measure == "macs":
            return Decimal(self.encoder_macs) / Decimal(BILLION)
        number = self.model_parameters if count.of == "model" else self.encoder_parameters
        return Decimal(number) / Decimal(MILLION)


@dataclass(frozen=True)
class Throughput:
    """Photos a second of image encoders, one photo at a time in float32. machine: the processor and its threads."""

    machine: str
    by_student: dict[str, float]


@cache
def count_student(student: str) -> OwnCounts:
    """Count a student on the meta device, with SAM's prompt encoder and mask decoder behind its encoder.

    Raises:
        DistillError: the student is unknown.
    """
    import torch
    from torch import nn

    from distill.models.complexity import count_encoder
    from distill.models.sam import PromptableModel, spec_for

    encoder_parameters, macs = count_encoder(student)
    with torch.device("meta"):
        rest = PromptableModel(spec_for(student), nn.Identity())
    decoder_parameters = sum(parameter.numel() for parameter in rest.parameters())
    return OwnCounts(encoder_parameters, encoder_parameters + decoder_parameters, macs)


def agrees(count: Count, own: Decimal) -> bool:
    """Return whether our count is the published one: within half a unit of its last digit, MACs also within 1 %."""
    exponent = count.value.as_tuple().exponent
    assert isinstance(exponent, int)  # it is finite
    half_unit = Decimal(5).scaleb(exponent - 1)
    tolerance = max(half_unit, count.value * MACS_TOLERANCE) if count.measure == "macs" else half_unit
    return abs(count.value - own) <= tolerance


def cpu_throughput(students: Sequence[str], seconds: float) -> Throughput:
    """Measure image encoders on this CPU as `distill bench models` does: random weights, batch 1, float32.

    Args:
        seconds: the time for which one form of an encoder is timed.
    """
    import torch

    from distill.bench.models import bench_models
    from distill.bench.models_report import best_run

    cpu = torch.device("cpu")
    found = bench_models(students, batch_size=1, precisions=("fp32",), device=cpu, seconds=seconds)
    speeds = {row["model"]: float(best_run(row, "fp32")["images_per_second"]) for row in found["models"]}
    threads = found["threads"]
    return Throughput(f"{processor_name()}, {threads} thread{'s' if threads != 1 else ''}", speeds)


def processor_name() -> str:
    """Return the name of this machine's processor, or its architecture where the system does not tell the name."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), "") or platform.processor() or platform.machine()
