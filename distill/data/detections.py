"""Boxes from a detector: a results JSON as Detectron2 (ViTDet), Ultralytics (YOLO) and Grounding DINO export it.

All of them write COCO's results format, a list of {"image_id", "category_id", "bbox": [x, y, width, height], "score"}.
They differ in the rest: further keys (segmentation, file_name, ...); image ids as numbers, as text, or as file names
with or without suffix; and the list may stand below "annotations", "predictions" or "detections".
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from distill.data.coco import BoxXYXY, CocoSet, clip_box, read_json
from distill.data.images import key_of
from distill.errors import DataError

CONTAINERS = ("annotations", "predictions", "detections")
FIELDS = ("image_id", "category_id", "bbox", "score")


class Detection(NamedTuple):
    """One box of a detector, in original pixels, clipped to the photo."""

    category_id: int
    box_xyxy: BoxXYXY
    score: float


class Detections:
    """The boxes of a results JSON by the key of their photo, in the order of the file.

    Boxes are clipped to the photo; those with nothing inside it are left out and counted in `num_outside`. A file for a
    complete split can be used for a part of it: detections on photos that the annotations do not list are left out and
    counted in `num_foreign`.

    Raises:
        DataError: the file is absent or is not a results JSON; it holds no detection, or none on these photos; or a
            category is not in the annotations.
    """

    def __init__(self, path: str | Path, coco_set: CocoSet) -> None:
        self.path = Path(path)
        self.num_outside = self.num_foreign = 0
        self.by_photo: dict[str, list[Detection]] = defaultdict(list)
        self._sizes = {photo.key: photo.hw for photo in coco_set}
        self._categories = coco_set.categories
        self._keys: dict[Any, str] = {}
        for key, image_id in coco_set.image_ids.items():
            self._keys.update({key: key, image_id: key, str(image_id): key})
        for number, row in enumerate(self._read()):
            self._add(number, row)
        if not self.by_photo and not self.num_outside:
            raise DataError(
                f"{self.path}: none of its {self.num_foreign} detections is on a photo of {coco_set.annotations_file};"
                " give the detections of this split, or the annotations of theirs"
            )

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.by_photo.values())

    def _read(self) -> list[dict[str, Any]]:
        content = read_json(self.path, "detections", "results JSON")
        if isinstance(content, dict):
            content = next((content[name] for name in CONTAINERS if isinstance(content.get(name), list)), content)
        if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
            raise DataError(f"{self.path}: not a results JSON: it is a list of objects with {', '.join(FIELDS)}")
        if not content:
            raise DataError(f"{self.path}: holds no detection; run the detector again, or lower its score threshold")
        return content

    def _add(self, number: int, row: dict[str, Any]) -> None:
        missing = [name for name in FIELDS if name not in row]
        if missing:
            raise DataError(f"{self.path}: detection {number} has no {missing[0]!r}; it needs {', '.join(FIELDS)}")
        key = self._key(row["image_id"])
        if key is None:
            self.num_foreign += 1
            return
        category_id, (x, y, width, height), score = self._numbers(number, row)
        if self._categories and category_id not in self._categories:
            known = sorted(self._categories)
            raise DataError(
                f"{self.path}: detection {number} is of category {category_id}, which the annotations do not have "
                f"({len(known)} from {known[0]} to {known[-1]}); write the annotations' own ids, not the detector's"
            )
        box = clip_box((x, y, x + width, y + height), self._sizes[key])
        if box is None:
            self.num_outside += 1
        else:
            self.by_photo[key].append(Detection(category_id, box, score))

    def _key(self, image_id: Any) -> str | None:
        if image_id in self._keys:
            return self._keys[image_id]
        text = str(image_id)
        return self._keys.get(text.lstrip("0")) or self._keys.get(key_of(Path(PurePosixPath(text).name)))

    def _numbers(self, number: int, row: dict[str, Any]) -> tuple[int, list[float], float]:
        try:
            category_id, box = int(row["category_id"]), [float(value) for value in row["bbox"]]
            score = float(row["score"])
        except (TypeError, ValueError) as error:
            raise DataError(f"{self.path}: detection {number} holds something other than numbers: {error}") from error
        if len(box) != 4 or not all(map(math.isfinite, (*box, score))):
            raise DataError(
                f"{self.path}: detection {number} has the box {row['bbox']} and the score {row['score']}; "
                "a box is [x, y, width, height] in pixels, a score is a number"
            )
        return category_id, box, score
