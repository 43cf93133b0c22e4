"""A self-contained HTML page of a run: tables, curves as inline SVG and a gallery of masks. No outside link."""

from __future__ import annotations

import base64
import html
import io
import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

PANEL_WIDTH = 200  # pixels of a gallery panel
MASK_COLOUR = np.array([30, 120, 255], np.float32)
MASK_OPACITY = 0.55
BOX_COLOUR = (255, 196, 0)
NO_METADATA = dict.fromkeys(
    ("Creator", "Date", "Format", "Type")
)  # the page links to nothing, matplotlib's page included
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem; color: #1c2733; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .35rem .9rem; border-bottom: 1px solid #d8dee6; text-align: right; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; } svg { max-width: 100%; height: auto; }
.gallery { display: grid; gap: 6px; } .gallery img { width: 100%; display: block; }
.gallery div { font-size: 12px; color: #4a5868; }
"""


@dataclass(frozen=True)
class Curve:
    """One line of a plot: (steps, values)."""

    title: str
    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class GalleryRow:
    """A photo, uint8 (H, W, 3), a box in its pixels, and masks, bool (H, W), by title in the order of the columns."""

    photo: np.ndarray
    box_xyxy: tuple[float, float, float, float]
    masks: dict[str, np.ndarray]
    notes: dict[str, str]


def read_curves(metrics_file: Path, names: list[str]) -> list[Curve]:
    """The curves of a run's metrics.jsonl that were logged under `names`; those never logged are left out.

    A run shorter than its logging interval has no file, and so no curve.
    """
    if not metrics_file.exists():
        return []
    rows = [json.loads(line) for line in metrics_file.read_text(encoding="utf-8").splitlines()]
    curves = []
    for name in names:
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            curves.append(Curve(name, [step for step, _ in points], [value for _, value in points]))
    return curves


def plot(curves: list[Curve], title: str, ylabel: str) -> str:
    """Curves over the training steps as one inline SVG."""
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure = Figure(figsize=(5.2, 3.0), layout="constrained")
        axes = figure.subplots()
        for curve in curves:
            axes.plot(curve.steps, curve.values, label=curve.title, linewidth=1.6)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("step")
        axes.set_ylabel(ylabel)
        axes.grid(alpha=0.3)
        if len(curves) > 1:
            axes.legend(fontsize=8)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=NO_METADATA)
    svg = buffer.getvalue()
    return f"<figure>{svg[svg.index('<svg') :]}</figure>"


def table(header: list[str], rows: list[list[str]]) -> str:
    """An HTML table; cells are text, not markup."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def gallery(rows: list[GalleryRow]) -> str:
    """One line per photo: the prompt, then each mask over the photo with its note below."""
    columns = 1 + len(rows[0].masks)
    cells = []
    for row in rows:
        cells.append(f"<div>{_image(_prompt_panel(row))}prompt</div>")
        for title, mask in row.masks.items():
            note = html.escape(f"{title} {row.notes.get(title, '')}".strip())
            cells.append(f"<div>{_image(_mask_panel(row.photo, mask))}{note}</div>")
    return f'<div class="gallery" style="grid-template-columns: repeat({columns}, 1fr)">{"".join(cells)}</div>'


def page(title: str, sections: list[tuple[str, str]]) -> str:
    """A whole page: sections are (heading, HTML)."""
    body = "".join(f"<h2>{html.escape(heading)}</h2>{content}" for heading, content in sections)
    escaped = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escaped}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escaped}</h1>{body}</body></html>\n"
    )


def _prompt_panel(row: GalleryRow) -> Image.Image:
    panel = Image.fromarray(row.photo)
    ImageDraw.Draw(panel).rectangle(row.box_xyxy, outline=BOX_COLOUR, width=max(2, row.photo.shape[1] // 150))
    return panel


def _mask_panel(photo: np.ndarray, mask: np.ndarray) -> Image.Image:
    shown = photo.astype(np.float32)
    shown[mask] = (1 - MASK_OPACITY) * shown[mask] + MASK_OPACITY * MASK_COLOUR
    return Image.fromarray(shown.astype(np.uint8))


def _image(panel: Image.Image) -> str:
    height = max(1, round(panel.height * PANEL_WIDTH / panel.width))
    buffer = io.BytesIO()
    panel.resize((PANEL_WIDTH, height), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
