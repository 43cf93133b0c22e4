"""COCO-format sets: a directory of photographs and one JSON of instances. Shards and evaluations are made of them."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Union

import msgspec
import numpy as np
from msgspec import Meta

from distill.config.schema import InstanceConfig
from distill.data.catalogue import resolve_annotations, resolve_photos
from distill.data.images import decode_as_annotated, key_of, read_photo
from distill.data.rle import RLE, Segmentation, encode_mask, rle_area, rle_box_xyxy, to_rle
from distill.errors import DataError
from distill.geometry import HW
from distill.outside import MOST_PHOTO_PIXELS, Coordinate, Identity, Side, inside, read_json
from distill.text import first_few

MEND = (
    "a COCO-format JSON is needed, with 'images' and 'annotations' at its top (a results file or a panoptic file is "
    "none): correct this place, or export the annotations again"
)

BoxXYXY = tuple[float, float, float, float]
Area = Annotated[float, Meta(ge=0, le=1e12)]  # in pixels
Flag = Union[bool, Annotated[int, Meta(ge=0, le=1)], None]


class CocoImage(msgspec.Struct, kw_only=True, gc=False):
    """A row of `images`. height, width: of the photo as it was annotated, in pixels."""

    id: Identity
    height: Side
    width: Side
    file_name: Union[str, None] = None
    coco_url: Union[str, None] = None


class CocoAnnotation(msgspec.Struct, kw_only=True, gc=False):
    """A row of `annotations`. bbox: XYWH in original pixels. area: in original pixels. iscrowd: a region of many."""

    id: Identity
    image_id: Identity
    segmentation: Segmentation
    category_id: Identity = 0
    bbox: Union[list[Coordinate], None] = None
    area: Union[Area, None] = None
    iscrowd: Flag = 0


class CocoCategory(msgspec.Struct, kw_only=True, gc=False):
    """A row of `categories`."""

    id: Identity
    name: Union[str, None] = None


class CocoFile(msgspec.Struct, kw_only=True):
    """The content of a COCO-format JSON, as far as it is used."""

    images: Sequence[CocoImage]
    annotations: list[CocoAnnotation]
    categories: Sequence[CocoCategory] = []


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
        DataError: the file is not COCO's format, an id stands twice in it, an annotation names a photo that the file
            does not list, or a photo is absent from the directory.
    """

    form: ClassVar[type[CocoFile]] = CocoFile

    def __init__(
        self, images_dir: str | Path, annotations_file: str | Path, *, content: CocoFile | None = None
    ) -> None:
        self.images_dir, self.annotations_file = resolve_photos(images_dir), resolve_annotations(annotations_file)
        if content is None:
            content = read_json(self.annotations_file, self.form, "annotations", MEND, lax=True)
        self.content = content
        for name, rows in (("images", content.images), ("annotations", content.annotations)):
            self._check_distinct(name, [row.id for row in rows])
        self._check_distinct("categories", [row.id for row in content.categories])
        self.categories: dict[int, str] = {row.id: row.name or "" for row in content.categories}
        self.empty: dict[int, str] = {}
        self._annotations = self._group(content)
        self._photos = self._index_photos(content.images)

    def __len__(self) -> int:
        return len(self._photos)

    @property
    def image_ids(self) -> dict[str, int]:
        """The id that the file gives to each photo, by key."""
        return {key: image.id for key, image in self._photos.items()}

    @property
    def num_instances(self) -> int:
        """How many annotations are not crowd regions; those in `empty` are counted too."""
        return len(self.content.annotations) - self.num_crowd

    @property
    def num_crowd(self) -> int:
        """How many annotations are crowd regions."""
        return self.count_crowd()

    def count_crowd(self, max_images: int = 0) -> int:
        """Return how many crowd regions the first `max_images` photos have (0: all)."""
        photos = itertools.islice(self._photos.values(), max_images or None)
        return sum(bool(row.iscrowd) for image in photos for row in self._annotations.get(image.id, []))

    def __iter__(self) -> Iterator[AnnotatedPhoto]:
        return self.photos(InstanceConfig())

    def photos(self, rules: InstanceConfig) -> Iterator[AnnotatedPhoto]:
        """Yield the photos ordered by key, with the instances that the rules choose."""
        for key, image in self._photos.items():
            hw = image.height, image.width
            rows = [row for row in self._annotations.get(image.id, []) if rules.crowds or not row.iscrowd]
            found = [self._instance(row, key, hw, rules) for row in rows]
            instances = [instance for instance in found if instance is not None]
            yield AnnotatedPhoto(key, self.images_dir / self._file_name(image), hw, instances)

    def count_small(self, rules: InstanceConfig, max_images: int = 0) -> int:
        """Return how many annotations of the first `max_images` photos (0: all) are below the rules' least area."""
        photos = itertools.islice(self._photos.values(), max_images or None)
        rows = (
            row for image in photos for row in self._annotations.get(image.id, []) if rules.crowds or not row.iscrowd
        )
        return sum(row.area is not None and row.area < rules.min_area for row in rows)

    def masks_of(self, image_id: int) -> Iterator[tuple[CocoAnnotation, RLE]]:
        """Yield the annotations of a photo that have pixels, crowd regions included, each with its mask."""
        image = self._images[image_id]
        for row in self._annotations.get(image_id, []):
            rle = to_rle(row.segmentation, (image.height, image.width), self._origin(row))
            if rle is not None:
                yield row, rle

    def _origin(self, row: CocoAnnotation) -> str:
        return f"{self.annotations_file}: annotation {row.id} (image {row.image_id})"

    def _check_distinct(self, name: str, ids: Sequence[int]) -> None:
        if len(set(ids)) < len(ids):
            twice = [str(identity) for identity, count in Counter(ids).items() if count > 1]
            raise DataError(
                f"{self.annotations_file}: ids stand more than once in '{name}': {first_few(twice)}; "
                "give each row an id of its own"
            )

    def _file_name(self, image: CocoImage) -> str:
        """Return the path of a photo below the directory."""
        if not image.file_name:
            raise DataError(f"{self.annotations_file}: image {image.id} has no 'file_name'; COCO's format needs it")
        return image.file_name

    def _group(self, content: CocoFile) -> dict[int, list[CocoAnnotation]]:
        """Group annotations by image id, in their order."""
        self._images = {image.id: image for image in content.images}
        grouped: dict[int, list[CocoAnnotation]] = defaultdict(list)
        for row in content.annotations:
            if row.image_id not in self._images:
                raise DataError(
                    f"{self.annotations_file}: annotation {row.id} names image {row.image_id}, which is not in "
                    "'images'; add that image or remove the annotation"
                )
            if row.bbox and (len(row.bbox) != 4 or row.bbox[2] < 0 or row.bbox[3] < 0):
                raise DataError(
                    f"{self._origin(row)}: its 'bbox' is {row.bbox}, and COCO's is [x, y, width, height]; correct it, "
                    "or leave it out: then it is the box of the mask"
                )
            grouped[row.image_id].append(row)
        return dict(grouped)

    def _index_photos(self, images: Iterable[CocoImage]) -> dict[str, CocoImage]:
        """Return `images` by key, in the order of the keys.

        Raises DataError when a photo is too large, lies outside of the directory, or is absent from it, or when two
        photos have the same key.
        """
        photos: dict[str, CocoImage] = {}
        absent = []
        for image in images:
            name = self._file_name(image)
            path = inside(self.images_dir, name, f"{self.annotations_file}: image {image.id}")
            if image.height * image.width > MOST_PHOTO_PIXELS:
                raise DataError(
                    f"{self.annotations_file}: image {image.id} has {image.height} x {image.width} pixels; a photo has "
                    f"{MOST_PHOTO_PIXELS:,} at most: reduce it, and its masks"
                )
            key = key_of(Path(path.name))
            if key in photos:
                raise DataError(
                    f"{self.annotations_file}: '{self._file_name(photos[key])}' and '{name}' have the same key "
                    f"'{key}'; file names must differ in more than folder and suffix: rename one"
                )
            photos[key] = image
            if not _is_file(path):
                absent.append(f"{name} (image {image.id})")
        if absent:
            raise DataError(
                f"{self.images_dir}: {len(absent)} of the {len(photos)} photos that {self.annotations_file} names "
                f"are absent: {first_few(absent)}; give the directory that holds them, or remove them from the "
                "annotations"
            )
        if not photos:
            raise DataError(f"{self.annotations_file}: 'images' is empty; give annotations of at least one photo")
        return dict(sorted(photos.items()))

    def _instance(self, row: CocoAnnotation, key: str, hw: HW, rules: InstanceConfig) -> Instance | None:
        rle = to_rle(row.segmentation, hw, self._origin(row))
        area = row.area if row.area is not None else (rle_area(rle) if rle else 0)
        if area < rules.min_area:
            return None
        if rle is None:
            self.empty[row.id] = key
            if not rules.empty:
                return None
        box = rle_box_xyxy(rle) if rle else (0.0, 0.0, 0.0, 0.0)
        if row.bbox:
            x, y, width, height = row.bbox
            given = (x, y, x + width, y + height)
            box = given if not rules.clip_boxes else clip_box(given, hw) or box
        code = rle or encode_mask(np.zeros(hw, bool))
        return Instance(row.id, row.category_id, box, code, float(row.area or rle_area(code)))


def annotation_of(identity: int, image_id: int, rle: RLE, category_id: int) -> CocoAnnotation:
    """Return a mask as a row of COCO's `annotations`. Its box is XYWH in original pixels."""
    x0, y0, x1, y1 = rle_box_xyxy(rle)
    return CocoAnnotation(
        id=identity,
        image_id=image_id,
        category_id=category_id,
        bbox=[x0, y0, x1 - x0, y1 - y0],
        area=rle_area(rle),
        segmentation={"size": rle["size"], "counts": rle["counts"]},
    )


def as_json(content: CocoFile) -> dict[str, Any]:
    """Return a COCO-format file as json.dumps takes it. Fields without a value are left out."""
    tree: dict[str, list[dict[str, Any]]] = msgspec.to_builtins(content)
    return {
        name: [{field: value for field, value in row.items() if value is not None} for row in rows]
        for name, rows in tree.items()
    }


def clip_box(box_xyxy: BoxXYXY, hw: HW) -> BoxXYXY | None:
    """Clip a box to a photo, in original pixels. Return None if nothing of it is inside."""
    x1, y1, x2, y2 = box_xyxy
    x1, y1, x2, y2 = max(0.0, x1), max(0.0, y1), min(float(hw[1]), x2), min(float(hw[0]), y2)
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name of too many characters
        return False
