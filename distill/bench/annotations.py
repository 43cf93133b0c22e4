"""Reading annotations beside `json.load`: what typed and checked objects cost. Both read the same files.

The readers take turns in one process. Times are those of the processor, which other processes do not lengthen.
"""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from distill.bench.photos import NUM_MASKS, draw_mask
from distill.bench.photos import PHOTO_HW as SA1B_HW
from distill.data.coco import MEND, CocoFile, CocoSet
from distill.data.shards.sa1b import annotation_row, parse_annotations, sample_annotation
from distill.outside import read_json

PHOTO_HW = (480, 640)  # COCO's most frequent size
ANNOTATIONS_PER_PHOTO = 7  # COCO's train2017: 860,001 on 118,287 photos
NUM_POINTS = 24  # of a polygon; train2017 then has the 450 MB that it has
NUM_POLYGONS, NUM_DRAWN = 1000, 10  # different ones: of COCO's polygons, of SA-1B's masks
COCO, PHOTOS, SA1B = "coco.json", "photos", "sa1b"

READERS: dict[str, tuple[str, str]] = {  # by name: the format, and what the reader does
    "json.load": ("COCO", "dicts and lists, of any content"),
    "CocoFile": ("COCO", "typed objects, checked"),
    "CocoSet": ("COCO", "the same, grouped by photo; ids, names and the presence of all photos are checked"),
    "json.loads": ("SA-1B", "dicts and lists, of any content"),
    "parse_annotations": ("SA-1B", "typed objects, checked; the area of each mask is computed"),
}
PLAIN = {"COCO": "json.load", "SA-1B": "json.loads"}


def bench_annotations(*, num_annotations: int, num_files: int, num_rounds: int) -> dict[str, Any]:
    """Measure the seconds of each of READERS.

    Args:
        num_annotations: polygons of one COCO-format file.
        num_files: JSONs in SA-1B's layout, of NUM_MASKS masks each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in READERS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_coco(folder, num_annotations)
        write_sa1b(folder, num_files)
        megabytes = {
            "COCO": (folder / COCO).stat().st_size / 1e6,
            "SA-1B": sum(path.stat().st_size for path in (folder / SA1B).iterdir()) / 1e6,
        }
        for _ in range(num_rounds):
            for reader in READERS:
                gc.collect()
                started = time.process_time()
                content = read(reader, folder)
                seconds[reader].append(time.process_time() - started)
                del content  # only now: what it takes to free it is not measured
    medians = {reader: statistics.median(values) for reader, values in seconds.items()}
    return {
        "annotations": num_annotations,
        "files": num_files,
        "rounds": num_rounds,
        "megabytes": megabytes,
        "seconds": medians,
        "ratios": {reader: medians[reader] / medians[PLAIN[form]] for reader, (form, _) in READERS.items()},
    }


def tables(found: dict[str, Any]) -> list[Table]:
    """Return the table of the readers."""
    title = f"{found['annotations']:,} annotations of COCO, {found['files']:,} files of SA-1B"
    table = Table("reader", "format", "MB", "seconds", "of json's", "what it gives", title=title)
    for reader, (form, what) in READERS.items():
        numbers = f"{found['megabytes'][form]:.0f}", f"{found['seconds'][reader]:.2f}", f"{found['ratios'][reader]:.2f}"
        table.add_row(reader, form, *numbers, what)
    table.caption = "seconds of the processor, the median over the rounds"
    return [table]


def write_coco(folder: Path, num_annotations: int) -> None:
    """Write a COCO-format file of polygons, line by line, and an empty file for each of its photos."""
    rng = np.random.default_rng(0)
    num_photos = -(-num_annotations // ANNOTATIONS_PER_PHOTO)
    height, width = PHOTO_HW
    drawn = [json.dumps(_draw_row(rng))[1:] for _ in range(NUM_POLYGONS)]
    (folder / PHOTOS).mkdir()
    with open(folder / COCO, "w", encoding="utf-8") as file:
        file.write('{"categories": [{"id": 1, "name": "thing"}], "images": [\n')
        for number in range(num_photos):
            name = f"{number:012d}.jpg"
            (folder / PHOTOS / name).touch()
            row = {"id": number, "file_name": name, "height": height, "width": width}
            file.write(json.dumps(row) + (",\n" if number < num_photos - 1 else "\n"))
        file.write('], "annotations": [\n')
        for number in range(num_annotations):
            named = f'{{"id": {number + 1}, "image_id": {number // ANNOTATIONS_PER_PHOTO}, '
            file.write(named + drawn[number % NUM_POLYGONS] + (",\n" if number < num_annotations - 1 else "\n"))
        file.write("]}\n")


def _draw_row(rng: np.random.Generator) -> dict[str, Any]:
    """Return a row of COCO's `annotations` without its ids."""
    height, width = PHOTO_HW
    angles = np.linspace(0, 2 * np.pi, NUM_POINTS, endpoint=False)
    radii = rng.uniform(20, 60, NUM_POINTS)
    centre = rng.uniform([60, 60], [width - 60, height - 60])
    polygon = (centre + np.column_stack([radii * np.cos(angles), radii * np.sin(angles)])).round(2)
    corner, size = polygon.min(0), np.ptp(polygon, 0).round(2)
    return {
        "category_id": 1,
        "segmentation": [polygon.ravel().tolist()],
        "bbox": [*corner.tolist(), *size.tolist()],
        "area": round(float(size.prod()) / 2, 4),
        "iscrowd": 0,
    }


def write_sa1b(folder: Path, num_files: int) -> None:
    """Write JSONs in SA-1B's layout, each with the same masks in another order."""
    rng = np.random.default_rng(0)
    drawn = [annotation_row(0, draw_mask(rng, SA1B_HW), SA1B_HW) for _ in range(NUM_DRAWN)]
    rows = [drawn[number % NUM_DRAWN] | {"id": number} for number in range(NUM_MASKS)]
    (folder / SA1B).mkdir()
    for number in range(num_files):
        content = sample_annotation(f"sa_{number}", SA1B_HW, [rows[index] for index in rng.permutation(NUM_MASKS)])
        (folder / SA1B / f"sa_{number}.json").write_text(json.dumps(content), encoding="utf-8")


def read(reader: str, folder: Path) -> Any:
    """Read all files of a format by one of READERS."""
    if reader == "json.load":
        with open(folder / COCO, encoding="utf-8") as file:
            return json.load(file)
    if reader == "CocoFile":
        return read_json(folder / COCO, CocoFile, "annotations", MEND, lax=True)
    if reader == "CocoSet":
        return CocoSet(folder / PHOTOS, folder / COCO)
    parse: Callable[[bytes, str], Any] = parse_annotations if reader == "parse_annotations" else _plain
    return [parse(path.read_bytes(), str(path)) for path in sorted((folder / SA1B).iterdir())]


def _plain(data: bytes, origin: str) -> Any:
    return json.loads(data)
