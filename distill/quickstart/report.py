"""The report of the quickstart: a page that compares its teacher and students, and a picture of their masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.adapt.report import seconds_table
from distill.comparison.gallery import Key, instance_rows
from distill.comparison.join import Comparison
from distill.comparison.page import render_page
from distill.errors import RunError
from distill.files import write_text, write_whole
from distill.pages import mask_gallery
from distill.pages.html import joined, remark
from distill.pages.mask_gallery import GalleryRow
from distill.pages.mask_picture import render_picture

LABELS = {"teacher": "teacher", "student_after_feature": "after feature stage", "student": "student"}
GALLERY_ROWS = 16  # instances that the gallery shows for each prompt
TITLE = "distill quickstart"
# The object of each photograph that the picture shows: the cat's eye, the cup, the mission patch, the rocket.
PICTURED: tuple[Key, ...] = (("chelsea", 2), ("coffee", 5), ("astronaut", 8), ("rocket", 12))


def write_report(
    comparison: Comparison, photographs: Comparison, summary: dict[str, Any], sentence: str, path: Path
) -> None:
    """Write the page of a finished quickstart.

    Args:
        comparison: of teacher and students on the held-out photos.
        photographs: of teacher and student on the photographs of the gallery.
        summary: the content of summary.json.
        sentence: what the quickstart printed at its end.
    """
    seconds = seconds_table(summary["seconds"])
    rows = joined(mask_gallery.render_row(row) for row in _photograph_rows(photographs))
    explained = remark(
        "Photographs of scikit-image with masks drawn by hand. The student has seen these four while it learned the "
        "teacher's embedding, without their masks; all masks that it learned from are of nuclei."
    )
    page = render_page(
        comparison,
        title=TITLE,
        lead=remark(f"{sentence}. {_measured(summary)}"),
        num_rows=GALLERY_ROWS,
        extra=[("Photographs", explained + rows), ("Seconds", seconds)],
    )
    write_text(path, page, raises=RunError)


def write_picture(photographs: Comparison, path: Path) -> None:
    """Write a picture of one object of each photograph: the click, the object, and both models' masks."""
    rows = _photograph_rows(photographs, PICTURED)
    write_whole(path, render_picture(list(rows)), raises=RunError)


def _photograph_rows(photographs: Comparison, names: Sequence[Key] | None = None) -> Iterator[GalleryRow]:
    """Yield the objects of the photographs in the order of their annotations, all or those of some keys."""
    (protocol,) = photographs.protocols
    keys = photographs.evaluations(protocol)[0][1].instances.keys
    wanted = sorted(keys, key=lambda key: key[1] or 0) if names is None else names
    return instance_rows(photographs, protocol, [keys.index(key) for key in wanted], images=None, annotations=None)


def _measured(summary: dict[str, Any]) -> str:
    """Say how the three numbers were measured."""
    speed, teacher, student = summary["speed"], summary["teacher"], summary["student"]
    return (
        f"Multiply-adds of the image encoder: {teacher['encoder_gmacs']:.2f} G and {student['encoder_gmacs']:.2f} G. "
        f"Its time for one photo on this machine's CPU, in torch: {speed['teacher_ms']:.0f} and "
        f"{speed['student_ms']:.0f} ms; the student takes {speed['student_onnxruntime_ms']:.0f} ms in onnxruntime. "
        f"Mask quality is the mean of both mIoUs on the held-out photos: box {teacher['box_miou']:.3f} and "
        f"{student['box_miou']:.3f}, one click {teacher['point_miou']:.3f} and {student['point_miou']:.3f}."
    )
