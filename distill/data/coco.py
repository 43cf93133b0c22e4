"""COCO-format sets: a directory of photographs and one JSON of instances. Shards and evaluations are made of them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distill.data.catalogue import resolve_annotations, resolve_photos
from distill.data.images import decode_as_annotated, key_of
from distill.data.rle import RLE, rle_area, rle_box_xyxy, to_rle
from distill.errors import DataError
from distill.geometry import HW
from distill.text import first_few

BoxXYXY = tuple[float, float, float, float]


class Instance(NamedTuple):
    """One object.

    bbox_xyxy: in original pixels. area: in original pixels, as annotated; COCO's size classes are defined by it.
    """

    id: int
    category_id: int
    bbox_xyxy: BoxXYXY
    rle: RLE
    area: float


class AnnotatedPhoto(NamedTuple):
    """One photo: key (file stem), path, (height, width) as annotated, and its instances that have pixels."""

    key: str
    path: Path
    hw: HW
    instances: list[Instance]

    def load(self) -> np.ndarray:
        """Return the photo as uint8 (H, W, 3) RGB in the orientation of its annotations. Raises DataError."""
        return decode_as_annotated(read_photo(self.path), self.hw, str(self.path))


class CocoSet:
    """The photos of a COCO-format JSON; iterating yields them ordered by key.

    Crowd regions (`iscrowd`) are not instances: they are left out, and `num_crowd` counts them. Masks without a pixel
    are left out too, and `empty` names them (annotation id -> key) as their photos are read. Boxes are clipped to the
    photo; a box that lies outside of it is replaced by the box of the mask. `content` is the file as it was read.

    Both paths may name a prepared public set instead (distill.data.catalogue). `content` takes the place of the file's,
    which then only names it in errors.

    Raises:
        DataError: the file is not COCO's format, an annotation names a photo that the file does not list, or a
            photo is absent from the directory.
    """

    def __init__(
        self, images_dir: str | Path, annotations_file: str | Path, *, content: dict[str, Any] | None = None
    ) -> None:
        self.images_dir, self.annotations_file = resolve_photos(images_dir), resolve_annotations(annotations_file)
        self.content = content = _read_annotations(self.annotations_file) if content is None else content
        self.categories: dict[int, str] = {row["id"]: row.get("name", "") for row in content.get("categories", [])}
        self.num_crowd = 0
        self.empty: dict[int, str] = {}
        images = {self._field(row, "id", "image"): row for row in content["images"]}
        self._annotations = self._group(content["annotations"], images)
        self._photos = self._index_photos(images)

    def __len__(self) -> int:
        return len(self._photos)

    @property
    def image_ids(self) -> dict[str, int]:
        """The id that the file gives to each photo, by key."""
        return {key: row["id"] for key, row in self._photos.items()}

    @property
    def num_instances(self) -> int:
        """How many annotations are not crowd regions; those in `empty` are counted too."""
        return sum(len(rows) for rows in self._annotations.values())

    def __iter__(self) -> Iterator[AnnotatedPhoto]:
        for key, row in self._photos.items():
            hw = self._size(row)
            instances = [self._instance(annotation, key, hw) for annotation in self._annotations.get(row["id"], [])]
            path = self.images_dir / self._file_name(row)
            yield AnnotatedPhoto(key, path, hw, [instance for instance in instances if instance is not None])

    def _field(self, row: dict[str, Any], name: str, kind: str) -> Any:
        if name not in row:
            raise DataError(
                f"{self.annotations_file}: {kind} {row.get('id', row)!r} has no '{name}'; COCO's format needs it"
            )
        return row[name]

    def _file_name(self, row: dict[str, Any]) -> str:
        """Return the path of a photo below the directory."""
        return str(self._field(row, "file_name", "image"))

    def _size(self, row: dict[str, Any]) -> HW:
        return int(self._field(row, "height", "image")), int(self._field(row, "width", "image"))

    def _group(self, rows: list[dict[str, Any]], images: dict[int, Any]) -> dict[int, list[dict[str, Any]]]:
        """Group annotations by image id, without crowd regions."""
        grouped: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            image_id = self._field(row, "image_id", "annotation")
            if image_id not in images:
                raise DataError(
                    f"{self.annotations_file}: annotation {row.get('id')} names image {image_id}, which is not in "
                    "'images'; add that image or remove the annotation"
                )
            if row.get("iscrowd", 0):
                self.num_crowd += 1
            else:
                grouped[image_id].append(row)
        return dict(grouped)

    def _index_photos(self, images: dict[int, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return the rows of `images` by key, in the order of the keys.

        Raises DataError when a photo is absent from the directory, or when two photos have the same key.
        """
        photos: dict[str, dict[str, Any]] = {}
        absent = []
        for image_id, row in images.items():
            name = self._file_name(row)
            key = key_of(Path(Path(name).name))
            if key in photos:
                raise DataError(
                    f"{self.annotations_file}: '{self._file_name(photos[key])}' and '{name}' have the same key "
                    f"'{key}'; file names must differ in more than folder and suffix: rename one"
                )
            photos[key] = row
            if not (self.images_dir / name).is_file():
                absent.append(f"{name} (image {image_id})")
        if absent:
            raise DataError(
                f"{self.images_dir}: {len(absent)} of the {len(images)} photos that {self.annotations_file} names "
                f"are absent: {first_few(absent)}; give the directory that holds them, or remove them from the "
                "annotations"
            )
        if not photos:
            raise DataError(f"{self.annotations_file}: 'images' is empty; give annotations of at least one photo")
        return dict(sorted(photos.items()))

    def _instance(self, row: dict[str, Any], key: str, hw: HW) -> Instance | None:
        identity = self._field(row, "id", "annotation")
        origin = f"{self.annotations_file}: annotation {identity} (photo '{key}')"
        rle = to_rle(self._field(row, "segmentation", "annotation"), hw, origin)
        if rle is None:
            self.empty[identity] = key
            return None
        box = rle_box_xyxy(rle)
        if row.get("bbox"):
            x, y, width, height = (float(value) for value in row["bbox"])
            box = clip_box((x, y, x + width, y + height), hw) or box
        area = float(row.get("area") or rle_area(rle))
        return Instance(identity, int(row.get("category_id", 0)), box, rle, area)


def annotation_of(identity: int, image_id: int, rle: RLE, category_id: int) -> dict[str, Any]:
    """Return a mask as a row of COCO's `annotations`. Its box is XYWH in original pixels."""
    x0, y0, x1, y1 = rle_box_xyxy(rle)
    return {
        "id": identity,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": rle_area(rle),
        "segmentation": rle,
        "iscrowd": 0,
    }


def clip_box(box_xyxy: BoxXYXY, hw: HW) -> BoxXYXY | None:
    """Clip a box to a photo, in original pixels. Return None if nothing of it is inside."""
    x1, y1, x2, y2 = box_xyxy
    x1, y1, x2, y2 = max(0.0, x1), max(0.0, y1), min(float(hw[1]), x2), min(float(hw[0]), y2)
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def read_photo(path: Path) -> bytes:
    """Read the bytes of a photo's file. Raises DataError when the file cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); restore it or remove it from the set") from error


def read_json(path: Path, what: str, form: str) -> Any:
    """Read a JSON of annotations or detections. `what` and `form` name it in errors. Raises DataError."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: the {what} cannot be read ({error.strerror}); give a {form}") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise DataError(f"{path}: not JSON ({error}); give a complete {form}") from error


def _read_annotations(path: Path) -> dict[str, Any]:
    content = read_json(path, "annotations", "COCO-format JSON")
    if not isinstance(content, dict) or not all(isinstance(content.get(n), list) for n in ("images", "annotations")):
        raise DataError(
            f"{path}: not COCO's format: it needs the lists 'images' and 'annotations' at its top; "
            "a results file or a panoptic file is none"
        )
    return content
