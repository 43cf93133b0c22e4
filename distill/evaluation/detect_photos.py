"""A detector over many photos, as one file of COCO's results: the call behind `distill detect`, for Python as well."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Union

import msgspec
import numpy as np

from distill.data.coco import CocoSet
from distill.data.detections import DetectionRow
from distill.data.folder import PhotoFolder
from distill.data.images import decode_image, read_photo
from distill.errors import DataError, RunError
from distill.evaluation.written import read_object
from distill.evaluation.yolox_detector import DetectorRules, FoundBox, YoloxDetector
from distill.files import hash_file, write_errors, write_json, write_text
from distill.lock import check_held, hold_directory
from distill.outside import read_bytes
from distill.text import first_few, progress_bar

PARTIAL_SUFFIX = ".partial"  # of the directory beside the results that holds the photos so far
JOB_FILE, PHOTOS_FILE = "job.json", "photos.jsonl"
PHOTOS_AT_ONCE = 8  # on any number of which a graph can run: larger batches are no faster on a CPU
MOST_NAMES_BYTES = 1 << 20
MOST_BOXES = 100  # of one photo: COCO's AP looks at no more
PIXEL_DIGITS, SCORE_DIGITS = 2, 5  # of the results, whose boxes are in pixels


@dataclass(frozen=True)
class PhotoSource:
    """A photo to look at: its key, the id that the results give it, and what reads it as uint8 (H, W, 3) RGB."""

    key: str
    image_id: Union[int, str]
    load: Callable[[], np.ndarray]


class PhotoBoxes(msgspec.Struct):
    """A line of the partial file: the results of one photo. num_unnamed: boxes of classes without a category."""

    image: str
    rows: list[DetectionRow]
    num_unnamed: int = 0


@dataclass(frozen=True)
class Detected:
    """What a detector found. num_empty: photos without a box. num_unnamed: boxes of classes without a category."""

    num_photos: int
    num_boxes: int
    num_empty: int
    num_unnamed: int


def detect_photos(
    detector: YoloxDetector,
    photos: Sequence[PhotoSource],
    category_of: Sequence[int | None],
    out: Path,
    *,
    rules: DetectorRules | None = None,
    most: int = MOST_BOXES,
    data: Mapping[str, str] | None = None,
) -> Detected:
    """Run a detector over photos and write its boxes as COCO's results, all of them or none.

    The photos so far lie in a directory beside `out`, so a job that was stopped goes on when it is started again. A
    progress bar is shown on stderr.

    Args:
        photos: with distinct keys.
        category_of: the category id of each class, or None to leave its boxes out.
        out: the JSON to write.
        rules: which boxes are kept; None: YOLOX's own.
        most: boxes of one photo that are written, those with the highest scores.
        data: names the photos and their annotations, so that another job is not taken for the same.
    Raises:
        DataError: a photo cannot be read, or the detector fails on it.
        RunError: `out` exists, cannot be written, or another job or process has begun it.
    """
    rules = rules or DetectorRules()
    if out.exists():
        raise RunError(f"{out}: exists already; remove it, or give another --out FILE")
    partial = out.with_name(out.name + PARTIAL_SUFFIX)
    job = {
        "detector_sha256": hash_file(detector.path),
        "in_pixels": detector.in_pixels,
        **asdict(rules),
        "most": most,
        "categories": " ".join(map(str, category_of)),
        **(data or {}),
    }
    with hold_directory(partial, give="--out FILE") as lease:
        found = _begin(partial, job)
        left = [photo for photo in photos if photo.key not in found]
        note = "finished photos are kept, and the same command goes on with them"
        with progress_bar("photos", len(photos), done=len(photos) - len(left)) as advance:
            for photo, found_boxes in _found_boxes(detector, left, rules):
                boxes = _result(photo, found_boxes, category_of, most)
                lines = partial / PHOTOS_FILE
                with write_errors(lines, RunError, note=note), open(lines, "a", encoding="utf-8") as file:
                    file.write(_line(boxes))
                found[boxes.image] = boxes
                advance(1)
        check_held(lease)
        in_order = [found[photo.key] for photo in photos]
        rows = [row for boxes in in_order for row in boxes.rows]
        write_text(out, msgspec.json.encode(rows).decode() + "\n", raises=RunError)
    shutil.rmtree(partial, ignore_errors=True)
    num_unnamed = sum(boxes.num_unnamed for boxes in in_order)
    return Detected(len(photos), len(rows), sum(not boxes.rows for boxes in in_order), num_unnamed)


def photos_of_set(coco_set: CocoSet, max_images: int = 0) -> list[PhotoSource]:
    """Return the first `max_images` photos of a set (0: all), which keep the ids of its annotations."""
    ids = coco_set.image_ids
    photos = itertools.islice(coco_set, max_images or None)
    return [PhotoSource(photo.key, ids[photo.key], photo.load) for photo in photos]


def photos_of_folder(folder: PhotoFolder, max_images: int = 0) -> list[PhotoSource]:
    """Return the first `max_images` photos of a folder (0: all). The id of each is its key."""
    photos = itertools.islice(folder, max_images or None)
    return [PhotoSource(photo.key, photo.key, _loader(photo.path)) for photo in photos]


def read_class_names(path: Path) -> list[str]:
    """Read the names of a detector's classes, one a line, in the order of its scores. Raises DataError."""
    mend = "give a text file with the name of a class in each line"
    data = read_bytes(path, "names of classes", mend, most=MOST_NAMES_BYTES)
    try:
        names = [name.strip() for name in data.decode("utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no text in UTF-8 ({error.reason}); {mend}") from error
    while names and not names[-1]:
        names.pop()
    return names


def coco_categories() -> dict[int, str]:
    """Return COCO's 80 categories, id -> name. They are the classes of YOLOX's released detectors, in this order."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    names: list[str] = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return {id_: name for id_, name in enumerate(names) if name not in ("__background__", "N/A")}


def categories_of_classes(
    num_classes: int, categories: dict[int, str] | None, class_names: Sequence[str] | None
) -> list[int | None]:
    """Return the category id of each of a detector's classes, or None for a class that the annotations do not have.

    Without names, as many classes as categories are the categories by ascending ids: yolox/data/datasets/coco.py. Else
    the classes are found by their names, where 80 classes are COCO's.

    Args:
        categories: of the annotations, id -> name; None without annotations, where 80 classes get COCO's ids, and other
            classes the ids 1, 2, and so on.
    Raises:
        DataError: the classes cannot be told apart, or none of them is a category.
    """
    if class_names is not None and len(class_names) != num_classes:
        raise DataError(
            f"--class-names has {len(class_names)} names, and the detector {num_classes} classes; give one for each"
        )
    coco = coco_categories()
    is_coco = class_names is None and num_classes == len(coco)
    if categories is None:
        return list(coco) if is_coco else list(range(1, num_classes + 1))
    if class_names is None and len(categories) == num_classes:
        return [*sorted(categories)]
    if class_names is None and not is_coco:
        raise DataError(
            f"the detector has {num_classes} classes, and the annotations {len(categories)} categories; name the "
            "classes, one a line, by --class-names FILE"
        )
    names = list(coco.values()) if class_names is None else list(class_names)
    id_of = {name: id_ for id_, name in categories.items()}
    found = [id_of.get(name) for name in names]
    if not any(id_ is not None for id_ in found):
        raise DataError(
            f"no class of the detector ({first_few(names)}) is a category of the annotations "
            f"({first_few(list(id_of))}); name the classes as the annotations do, by --class-names FILE"
        )
    return found


def _begin(partial: Path, job: dict[str, Any]) -> dict[str, PhotoBoxes]:
    """Return the photos that an earlier start of the same job finished. A line that a kill cut short is left out."""
    begun = partial / JOB_FILE
    if begun.is_file():
        old = read_object(begun, "record of the job")
        keys = [key for key in {**old, **job} if old.get(key) != job.get(key)]
        if keys:
            differences = ", ".join(f"{key} was {old.get(key)} and is {job.get(key)}" for key in keys)
            raise RunError(
                f"{partial}: begun by another job ({differences}); give the same options or another --out FILE, or "
                "remove it"
            )
    found = dict(_read_lines(partial / PHOTOS_FILE))
    with write_errors(partial, RunError):
        write_json(begun, job, raises=RunError)
        write_text(partial / PHOTOS_FILE, "".join(map(_line, found.values())), raises=RunError)
    return found


def _read_lines(path: Path) -> Iterator[tuple[str, PhotoBoxes]]:
    if not path.is_file():
        return
    for line in path.read_bytes().splitlines():
        try:
            boxes = msgspec.json.decode(line, type=PhotoBoxes)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        yield boxes.image, boxes


def _line(boxes: PhotoBoxes) -> str:
    return msgspec.json.encode(boxes).decode() + "\n"


def _found_boxes(
    detector: YoloxDetector, photos: Sequence[PhotoSource], rules: DetectorRules
) -> Iterator[tuple[PhotoSource, list[FoundBox]]]:
    """Yield photos with their boxes, batch by batch. Threads read the photos of the next batch meanwhile."""
    size = detector.batch_size or PHOTOS_AT_ONCE
    batches = [photos[start : start + size] for start in range(0, len(photos), size)]
    with ThreadPoolExecutor(min(size, os.cpu_count() or 1)) as pool:
        coming = [pool.submit(photo.load) for batch in batches[:1] for photo in batch]
        for i, batch in enumerate(batches):
            pixels = [future.result() for future in coming]
            coming = [pool.submit(photo.load) for photo in (batches[i + 1] if i + 1 < len(batches) else ())]
            yield from zip(batch, detector.detect(pixels, rules, [photo.key for photo in batch]), strict=True)


def _result(photo: PhotoSource, boxes: Sequence[FoundBox], category_of: Sequence[int | None], most: int) -> PhotoBoxes:
    """Return the best boxes of a photo as rows of COCO's results."""
    rows = []
    for box in boxes:
        category = category_of[box.class_index]
        if category is not None:
            x0, y0, x1, y1 = box.box_xyxy
            xywh = [round(value, PIXEL_DIGITS) for value in (x0, y0, x1 - x0, y1 - y0)]
            rows.append(DetectionRow(photo.image_id, category, xywh, round(box.score, SCORE_DIGITS)))
    return PhotoBoxes(photo.key, rows[:most], len(boxes) - len(rows))


def _loader(path: Path) -> Callable[[], np.ndarray]:
    return lambda: decode_image(read_photo(path), str(path))
