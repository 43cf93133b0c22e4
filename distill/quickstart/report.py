"""The report of the quickstart: the page of a comparison of its teacher and its students."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.comparison.join import build_comparison
from distill.comparison.models import ComparedModel
from distill.comparison.page import render_page
from distill.errors import RunError
from distill.files import write_text
from distill.pages.html import table
from distill.text import BILLION

LABELS = {
    "teacher": "teacher",
    "student_untrained": "untrained student",
    "student_after_feature": "after feature stage",
    "student": "student",
}


def write_report(summary: dict[str, Any], models: dict[str, ComparedModel], path: Path, *, num_rows: int) -> None:
    """Write the page of a finished quickstart.

    Args:
        summary: the content of summary.json.
        models: with their evaluations, by their names in the summary.
        num_rows: the instances that the gallery shows for each prompt.
    """
    for name, model in models.items():
        model.bench = {"params": summary[name]["params"], "macs": summary[name]["encoder_gmacs"] * BILLION}
    seconds = table(["step", "seconds"], [[step, f"{value:.0f}"] for step, value in summary["seconds"].items()])
    page = render_page(
        build_comparison(list(models.values()), reference=LABELS["teacher"]),
        title="distill quickstart",
        num_rows=num_rows,
        extra=[("Seconds", seconds)],
    )
    write_text(path, page, raises=RunError)
