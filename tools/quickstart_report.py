"""The quickstart's report: scores, training curves and a gallery of teacher and students side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from distill.checkpoint import load_model
from distill.datasets.coco import CocoPhoto, CocoSet
from distill.datasets.rle import decode_mask
from distill.predictor import Predictor
from distill.run import METRICS_FILE
from distill.sam import PromptableModel
from distill.tools.report import GalleryRow, gallery, page, plot, read_curves, table

SHOWN = {
    "teacher": "teacher",
    "student_untrained": "untrained student",
    "student_after_feature": "after feature stage",
    "student": "student",
}


@torch.no_grad()
def encoder_gmacs(model: PromptableModel) -> float:
    """Multiply-accumulates of the image encoder on one photo, attention products included, in 1e9."""
    counter = FlopCounterMode(display=False)
    with counter:
        model.encode(torch.zeros(1, 3, model.image_size, model.image_size))
    return round(counter.get_total_flops() / 2 / 1e9, 3)


def write_report(out: Path, summary: dict[str, Any], models: dict[str, str], path: Path, *, num_photos: int) -> None:
    """Write the page of a finished quickstart directory."""
    scores = [
        [SHOWN[name], f"{row['box_miou']:.3f}", f"{row['point_miou']:.3f}"]
        + [f"{row['params'] / 1e6:.2f}", f"{row['encoder_gmacs']:.2f}"]
        for name, row in summary.items()
        if name in SHOWN
    ]
    header = ["model", "mIoU, box", "mIoU, one click", "parameters (M)", "encoder GMACs"]
    times = [[step, f"{seconds:.0f}"] for step, seconds in summary["seconds"].items()]
    photos = [photo for photo in CocoSet(out / "data/val/photos", out / "data/val/annotations.json") if photo.instances]
    sections = [
        ("Held-out photos", table(header, scores)),
        ("Feature stage", _curves(out / "feature")),
        ("Mask stage", _curves(out / "mask")),
        ("Masks from a box", gallery(_gallery_rows(photos[:num_photos], models))),
        ("Seconds", table(["step", "seconds"], times)),
    ]
    path.write_text(page("distill quickstart", sections), encoding="utf-8")


def _curves(run: Path) -> str:
    metrics = run / METRICS_FILE
    plots = []
    for names, title, ylabel in (
        (["train/loss"], "Training loss", "loss"),
        (["val/cosine"], "Agreement with the teacher", "cosine"),
        (["val/box_miou", "val/point_miou"], "Held-out masks", "mIoU at low resolution"),
    ):
        curves = read_curves(metrics, names)
        if curves:
            plots.append(plot(curves, title, ylabel))
    return '<div style="display: flex; flex-wrap: wrap">' + "".join(plots) + "</div>"


def _gallery_rows(photos: list[CocoPhoto], models: dict[str, str]) -> list[GalleryRow]:
    """The largest instance of each photo, as every model sees it through its box."""
    targets = [max(photo.instances, key=lambda instance: instance.area) for photo in photos]
    truths = [decode_mask(target.rle).astype(bool) for target in targets]
    rows = [
        GalleryRow(photo.load(), target.bbox_xyxy, {"truth": truth}, {})
        for photo, target, truth in zip(photos, targets, truths, strict=True)
    ]
    for name, source in models.items():
        predictor = Predictor(load_model(source))
        for row, truth in zip(rows, truths, strict=True):
            predictor.set_image(row.photo)
            masks, _, _ = predictor.predict(box=np.array(row.box_xyxy), multimask_output=False)
            row.masks[SHOWN[name]] = masks[0]
            row.notes[SHOWN[name]] = f"IoU {_iou(masks[0], truth):.2f}"
    return rows


def _iou(mask: np.ndarray, truth: np.ndarray) -> float:
    return float((mask & truth).sum() / max(1, (mask | truth).sum()))
