"""A comparison from its sources to its files: the calls behind `distill compare`, for Python code as well."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from distill.cards.measured import read_bench
from distill.comparison.directory import CSV_FILE, MARKDOWN_FILE, PAGE_FILE, check_directory
from distill.comparison.join import Comparison, add_benches, build_comparison
from distill.comparison.measure import EvaluationData, evaluate_missing, measure_speed
from distill.comparison.models import read_models
from distill.comparison.page import GALLERY_ROWS, render_page
from distill.comparison.published_rows import split_published
from distill.comparison.tables import to_csv, to_markdown
from distill.errors import RunError
from distill.files import write_text
from distill.models.devices import usable_device
from distill.runtimes.execution import Execution


def compare_models(
    sources: Sequence[str],
    out: Path,
    *,
    folders: Sequence[Path] = (),
    data: EvaluationData | None = None,
    protocols: Sequence[str] = (),
    bench_file: Path | None = None,
    with_bench: bool = True,
    reference: str | None = None,
    device: str | None = None,
    execution: Execution | None = None,
) -> Comparison:
    """Read models, measure what is missing, and compare them. Nothing but `out` is written.

    Args:
        sources: runs, evaluations and models, each as PATH or LABEL=PATH, and published rows as published:NAME.
        out: the directory of the comparison, which keeps evaluations and the bench.
        folders: directories that hold evaluations.
        data: what models are evaluated on that have no evaluation by one of `protocols`; None: nothing is evaluated.
        protocols: recipes, such as eval/coco_box.
        bench_file: a document of `distill bench models`; None: the models are measured here, if `with_bench`.
        reference: the label of the model that paired differences are taken to; None: the first model.
        device: of evaluations and the bench; None: a GPU if there is one.
        execution: the runtime of evaluations and its precision; None: torch in float32.
    Raises:
        DistillError: a source, data or a device that cannot be used, or models that cannot stand in one table.
    """
    check_directory(out)
    usable_device(device)
    measured, published = split_published(sources)
    models, notes = read_models(measured, folders)
    bench = read_bench(bench_file) if bench_file else None
    build_comparison(models, reference=reference, published=published)  # refuses before anything is measured
    out.mkdir(parents=True, exist_ok=True)
    if data is not None:
        notes = [*notes, *evaluate_missing(models, protocols, data, out, device, execution=execution)]
    comparison = build_comparison(models, reference=reference, notes=notes, published=published)
    if bench is None and with_bench:
        bench = measure_speed(models, out, device)
    if bench is not None:
        add_benches(comparison, bench, str(bench_file or out))
    return comparison


def write_comparison(
    comparison: Comparison,
    out: Path,
    *,
    title: str = "Comparison",
    images: Path | None = None,
    annotations: Path | None = None,
    num_rows: int = GALLERY_ROWS,
    extra: Sequence[tuple[str, Markup]] = (),
) -> None:
    """Write the page and the tables of a comparison. The other arguments are those of `render_page`."""
    page = render_page(comparison, title=title, images=images, annotations=annotations, num_rows=num_rows, extra=extra)
    for name, text in ((PAGE_FILE, page), (CSV_FILE, to_csv(comparison)), (MARKDOWN_FILE, to_markdown(comparison))):
        write_text(out / name, text, raises=RunError)
