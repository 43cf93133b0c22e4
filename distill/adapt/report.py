"""The results of an adaptation: how teacher and students compare, as a page, as tables and in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from distill.comparison.join import Comparison, bench_run
from distill.comparison.models import ComparedModel
from distill.comparison.run import write_comparison
from distill.errors import RunError
from distill.files import write_json
from distill.pages.html import table

SUMMARY_FILE = "summary.json"
GALLERY_ROWS = 16  # for each protocol


def write_report(comparison: Comparison, out: Path, *, title: str, summary: dict[str, Any]) -> None:
    """Write the page, the tables and summary.json.

    Args:
        summary: the content of summary.json; its `seconds` become a section of the page.
    """
    write_json(out / SUMMARY_FILE, summary, raises=RunError)
    extra = [("Seconds", seconds_table(summary["seconds"]))]
    write_comparison(comparison, out, title=title, num_rows=GALLERY_ROWS, extra=extra)


def seconds_table(seconds: Mapping[str, float]) -> Markup:
    """Return a table of how long each step took."""
    return table(["step", "seconds"], [[step, f"{value:.0f}"] for step, value in seconds.items()])


def model_summary(comparison: Comparison, model: ComparedModel) -> dict[str, Any]:
    """Return what is known of a model as JSON holds it.

    These are parameters, MACs and milliseconds of its encoder for one photo, and for each prompt the mean IoU with its
    95 % interval.
    """
    scores = {
        protocol.title: {"miou": found.metrics["miou"], "interval": found.interval("miou")}
        for protocol, found in model.evaluations.items()
    }
    bench, run = model.bench or {}, bench_run(model, comparison.setting) or {}
    return {
        "params": bench.get("params"),
        "encoder_macs": bench.get("macs"),
        "latency_ms": run.get("latency_ms"),
        "scores": scores,
    }


def closing_sentence(comparison: Comparison, student: ComparedModel) -> str:
    """Return how a student compares with the reference: its cost, its speed, and its share of the mask quality."""
    ours, theirs = (model_summary(comparison, model) for model in (student, comparison.reference))
    costs = []
    for key, words in (("encoder_macs", "times fewer MACs"), ("latency_ms", "times as fast")):
        if ours[key] and theirs[key]:
            costs.append(f"{theirs[key] / ours[key]:.1f} {words}")
    shares = [
        f"{score['miou'] / theirs['scores'][prompt]['miou']:.0%} of the mask quality by {prompt} "
        f"({score['miou']:.3f} of {theirs['scores'][prompt]['miou']:.3f})"
        for prompt, score in ours["scores"].items()
        if theirs["scores"].get(prompt, {}).get("miou")
    ]
    return f"The {student.label}, beside its {comparison.reference.label}: {', '.join([*costs, *shares])}."
