"""The quickstart's report: the page of a comparison of its teacher and its students."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.comparison.join import build_comparison
from distill.comparison.models import ComparedModel, read_model
from distill.comparison.page import render_page
from distill.evaluation.finished import read_evaluation
from distill.pages.html import table

SHOWN = {
    "teacher": "teacher",
    "student_untrained": "untrained student",
    "student_after_feature": "after feature stage",
    "student": "student",
}


def write_report(
    summary: dict[str, Any], models: dict[str, str], evaluations: dict[str, list[Path]], path: Path, *, num_rows: int
) -> None:
    """Write the page of a finished quickstart.

    Args:
        summary: the content of summary.json. models: what `load_model` reads, by name in the summary.
        evaluations: the directories of each model's. num_rows: instances that the gallery shows of each prompt.
    """
    entries: list[ComparedModel] = []
    for name, source in models.items():
        entry = read_model(source, SHOWN[name], entries)
        for directory in evaluations[name]:
            entry.add(read_evaluation(directory))
        entry.bench = {"params": summary[name]["params"], "macs": summary[name]["encoder_gmacs"] * 1e9}
        entries.append(entry)
    seconds = table(["step", "seconds"], [[step, f"{value:.0f}"] for step, value in summary["seconds"].items()])
    page = render_page(
        build_comparison(entries, reference=SHOWN["teacher"]),
        title="distill quickstart",
        num_rows=num_rows,
        extra=[("Seconds", seconds)],
    )
    path.write_text(page, encoding="utf-8")
