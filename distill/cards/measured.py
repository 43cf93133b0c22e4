"""What was measured of a model, as cards and comparisons read it: documents of a bench, and card.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from distill.errors import RunError
from distill.evaluation.written import check_metrics
from distill.outside import convert, parse_json, read_bytes, read_json

MOST = 1e18  # multiply-adds, bytes or photos a second; no measurement has more
Amount = Annotated[float, Meta(ge=0, le=MOST)]
Number = Annotated[int, Meta(ge=0, le=10**18)]  # of weights or multiply-adds
Scalar = bool | int | float | str | None


class BenchRun(msgspec.Struct):
    """One setting of a bench: medians of one model.

    latency_low_ms, latency_high_ms: the lowest and the highest median of `rounds` rounds; earlier versions wrote none.
    """

    batch_size: Annotated[int, Meta(ge=1, le=1 << 20)]
    precision: str
    fused: bool
    latency_ms: Amount
    images_per_second: Amount
    peak_memory_mb: Amount | None = None
    latency_low_ms: Amount | None = None
    latency_high_ms: Amount | None = None
    rounds: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None


class BenchRow(msgspec.Struct):
    """One model of a bench."""

    runs: list[BenchRun]
    model: str | None = None
    weights_sha256: str | None = None
    params: Number | None = None
    macs: Number | None = None
    encoder_params: Number | None = None
    image_size: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None


class Bench(msgspec.Struct):
    """A document of `distill bench models`, as far as it is read."""

    benchmark: str
    models: list[BenchRow]
    date: str | None = None
    machine: dict[str, Scalar | list[Scalar]] = {}


class _Card(msgspec.Struct):
    """The content of card.json."""

    weights_sha256: str
    evaluations: dict[str, dict[str, Any]]
    bench: dict[str, Any] | None = None


class _CardBench(BenchRow, kw_only=True):
    """The bench in card.json: one row, with the machine in it."""

    machine: dict[str, Scalar | list[Scalar]] = {}


def read_bench(path: Path) -> dict[str, Any]:
    """Read a document of `distill bench models`: a dict of the form `Bench`, with whatever else it holds.

    Raises:
        RunError: the file is missing, is no JSON, or is another document.
    """
    origin, mend = f"--bench {path}", "`distill bench models --json FILE` writes one"
    content = read_json(path, Any, "bench of models", mend, raises=RunError)
    if not isinstance(content, dict) or content.get("benchmark") != "models":
        raise RunError(f"{origin}: no bench of models; {mend}")
    convert(content, Bench, f"{origin}: no bench of models", mend, raises=RunError)
    return content


def read_card(path: Path) -> dict[str, Any]:
    """Read card.json: `weights_sha256`, `evaluations` (metrics by row) and `bench`.

    Raises:
        RunError: the file is damaged.
    """
    mend = "remove it, and evaluate again"
    origin = f"{path}: not what distill wrote"
    data = read_bytes(path, "measurements of a card", mend, raises=RunError)
    card = parse_json(data, _Card, origin, mend, raises=RunError)
    if card.bench is not None:
        convert(card.bench, _CardBench, f"{origin}: its bench", mend, raises=RunError)
    rows = {key: check_metrics(row, f"{path}: {key}", mend=mend) for key, row in card.evaluations.items()}
    return {"weights_sha256": card.weights_sha256, "evaluations": rows, "bench": card.bench}
