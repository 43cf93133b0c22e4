"""Boxes from a detector: a results JSON as Detectron2 (ViTDet), Ultralytics (YOLO) and Grounding DINO export it.

All of them write COCO's results format, a list of {"image_id", "category_id", "bbox": [x, y, width, height], "score"}.
They differ in the rest: further keys (segmentation, file_name, ...); image ids as numbers, as text, or as file names
with or without suffix; and the list may stand below "annotations", "predictions" or "detections".
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Annotated, NamedTuple, Union

import msgspec
from msgspec import Meta

from distill.data.coco import BoxXYXY, CocoSet, clip_box
from distill.data.images import key_of
from distill.errors import DataError
from distill.outside import Coordinate, Identity, Name, read_json

MEND = (
    "a results JSON is needed, a list of objects with image_id, category_id, bbox and score: correct this place, or "
    "export the detections again"
)
MOST_SCORE = 1e6  # a score ranks boxes; some detectors export logits


class DetectionRow(msgspec.Struct, gc=False):
    """An object of a results JSON. bbox: XYWH in original pixels."""

    image_id: Union[Identity, Name]
    category_id: Identity
    bbox: Annotated[list[Coordinate], Meta(min_length=4, max_length=4)]
    score: Annotated[float, Meta(ge=-MOST_SCORE, le=MOST_SCORE)]


Rows = Union[list[DetectionRow], None]


class Container(msgspec.Struct):
    """A results JSON whose list has a name."""

    annotations: Rows = None
    predictions: Rows = None
    detections: Rows = None


class Detection(NamedTuple):
    """One box of a detector, in original pixels, clipped to the photo."""

    category_id: int
    box_xyxy: BoxXYXY
    score: float


def read_detections(path: Path) -> list[DetectionRow]:
    """Read the rows of a results JSON, in the order of the file.

    Raises:
        DataError: the file is absent, is not a results JSON, or holds no detection.
    """
    form = Union[list[DetectionRow], Container]
    content: Union[list[DetectionRow], Container] = read_json(path, form, "detections", MEND, lax=True)  # type: ignore[arg-type]
    if isinstance(content, Container):
        named = (content.annotations, content.predictions, content.detections)
        rows = next((rows for rows in named if rows is not None), None)
    else:
        rows = content
    if rows is None:
        raise DataError(f"{path}: holds no list of detections; {MEND}")
    if not rows:
        raise DataError(f"{path}: holds no detection; run the detector again, or lower its score threshold")
    return rows


class Detections:
    """The boxes of a results JSON by the key of their photo, in the order of the file.

    Boxes are clipped to the photo; those with nothing inside it are left out and counted in `num_outside`. A file for a
    complete split can be used for a part of it: detections on photos that the annotations do not list are left out and
    counted in `num_foreign`.

    Args:
        clip: False: all boxes stay as they are.
    Raises:
        DataError: the file is absent or is not a results JSON; it holds no detection, or none on these photos; a box
            has a negative side; or a category is not in the annotations.
    """

    def __init__(self, path: str | Path, coco_set: CocoSet, *, clip: bool = True) -> None:
        self.path, self.clip = Path(path), clip
        self.num_outside = self.num_foreign = 0
        self.by_photo: dict[str, list[Detection]] = defaultdict(list)
        self._sizes = {photo.key: photo.hw for photo in coco_set}
        self._categories = coco_set.categories
        self._keys: dict[Union[int, str], str] = {}
        for key, image_id in coco_set.image_ids.items():
            self._keys.update({key: key, image_id: key, str(image_id): key})
        for number, row in enumerate(read_detections(self.path)):
            self._add(number, row)
        if not self.by_photo and not self.num_outside:
            raise DataError(
                f"{self.path}: none of its {self.num_foreign} detections is on a photo of {coco_set.annotations_file};"
                " give the detections of this split, or the annotations of theirs"
            )

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.by_photo.values())

    def _add(self, number: int, row: DetectionRow) -> None:
        key = self._key(row.image_id)
        if key is None:
            self.num_foreign += 1
            return
        if self._categories and row.category_id not in self._categories:
            known = sorted(self._categories)
            raise DataError(
                f"{self.path}: detection {number} is of category {row.category_id}, which the annotations do not have "
                f"({len(known)} from {known[0]} to {known[-1]}); write the annotations' own ids, not the detector's"
            )
        x, y, width, height = row.bbox
        if width < 0 or height < 0:
            raise DataError(
                f"{self.path}: detection {number}: its 'bbox' is {row.bbox}, and COCO's is [x, y, width, height]; "
                f"{MEND}"
            )
        given = (x, y, x + width, y + height)
        box = clip_box(given, self._sizes[key]) if self.clip else given
        if box is None:
            self.num_outside += 1
        else:
            self.by_photo[key].append(Detection(row.category_id, box, row.score))

    def _key(self, image_id: Union[int, str]) -> str | None:
        if image_id in self._keys:
            return self._keys[image_id]
        text = str(image_id)
        name = PurePosixPath(text).name
        return self._keys.get(text.lstrip("0")) or (self._keys.get(key_of(Path(name))) if name.strip(".") else None)
