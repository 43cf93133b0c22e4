"""Our own measurements beside published numbers: parameters and MACs on the meta device, throughput on this CPU."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from distill.errors import DistillError
from distill.files import write_json
from distill.outside import Name, Seconds, read_json
from distill.published.numbers import Count
from distill.text import BILLION, MILLION, say_error

# Two counts of MACs agree within this share: tools differ in what they count of norms and of the decoder.
MACS_TOLERANCE = Decimal("0.01")
CPU_INFO = Path("/proc/cpuinfo")  # of Linux
KEPT_MEND = "give a file that --keep wrote, or a new one"


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


class KeptSpeeds(msgspec.Struct, forbid_unknown_fields=True):
    """Measured throughputs on disk. seconds: for which each form was timed. by_student: photos a second."""

    machine: Name
    seconds: Seconds
    by_student: dict[Name, Annotated[float, Meta(gt=0, le=1e9)]] = {}

    def checked(self, now: KeptSpeeds, path: Path) -> KeptSpeeds:
        """Return these results if they were measured as they would be now. Raises DistillError."""
        if (self.machine, self.seconds) != (now.machine, now.seconds):
            raise DistillError(
                f"{path}: measured on {self.machine} for {self.seconds:g} s each, and this is {now.machine} for "
                f"{now.seconds:g} s; give another file"
            )
        return self


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


def cpu_throughput(students: Sequence[str], seconds: float, *, keep: Path | None = None) -> Throughput:
    """Measure image encoders on this CPU as `distill bench models` does: random weights, batch 1, float32.

    One encoder is measured after another, the one of fewest MACs first, and a line on stderr says each result.

    Args:
        seconds: the time for which one form of an encoder is timed.
        keep: a JSON of results. Encoders in it are not measured again, and each new result is written at once, so that
            a measurement that was stopped can go on.
    Raises:
        DistillError: `keep` cannot be read or written, or holds results of another machine or another `seconds`.
    """
    import torch

    threads = torch.get_num_threads()
    kept = KeptSpeeds(f"{processor_name()}, {threads} thread{'s' if threads != 1 else ''}", seconds)
    if keep is not None and keep.exists():
        kept = read_json(keep, KeptSpeeds, "measured throughput", KEPT_MEND, raises=DistillError).checked(kept, keep)
    left = [student for student in students if student not in kept.by_student]
    for number, student in enumerate(sorted(left, key=lambda name: count_student(name).encoder_macs), start=1):
        kept.by_student[student] = _encoder_throughput(student, seconds)
        say_error(f"{student}: {kept.by_student[student]:.3g} photos/s ({number} of {len(left)})")
        if keep is not None:
            write_json(keep, msgspec.to_builtins(kept), raises=DistillError)
    return Throughput(kept.machine, {name: kept.by_student[name] for name in students})


def _encoder_throughput(student: str, seconds: float) -> float:
    """Return the photos a second of one encoder on this CPU, in its faster form."""
    import torch

    from distill.bench.models import bench_models
    from distill.bench.models_report import best_run

    cpu = torch.device("cpu")
    (row,) = bench_models([student], batch_size=1, precisions=("fp32",), device=cpu, seconds=seconds)["models"]
    return float(best_run(row, "fp32")["images_per_second"])


def processor_name() -> str:
    """Return the name of this machine's processor, or its architecture where the system does not tell the name."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), "") or platform.processor() or platform.machine()
