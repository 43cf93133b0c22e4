"""A folder of masks beside a folder of photos, as the annotations of a COCO-format set.

A photo NAME.jpg has its masks in one of two forms:

- NAME.png, a label map: 0 is background, and each other value is one object. The file is grey with 8 or 16 bits, or it
  has a palette or colours; then black is background, and each other colour is one object.
- NAME/, a folder of binary masks: each file is one object, which has the pixels above 0.

TIFF and BMP files do as well. JPEG changes values, so its files are no masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from distill.data.coco import CocoAnnotation, CocoCategory, CocoFile, CocoImage, annotation_of
from distill.data.folder import FolderPhoto
from distill.data.images import DECODING_ERRORS, open_image
from distill.data.rle import RLE, encode_mask, encode_objects
from distill.errors import DataError
from distill.geometry import HW
from distill.text import first_few

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
NUMBERS = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")  # Pillow's modes with one whole number a pixel
COLOURS = ("RGB", "RGBA")
FORMS = "each mask is called as its photo: NAME.png with a value for each object, or NAME/ with a file for each object"
CATEGORY = CocoCategory(id=1, name="object")
MOST_OBJECTS = 65_535  # of a mask: the values of 16 bits

Advance = Callable[[int], None]  # called with the number of photos done since the last call


@dataclass
class PhotoMasks:
    """The mask files of one photo: a label map, or one file for each object."""

    label_map: Path | None = None
    objects: list[Path] = field(default_factory=list)


def read_mask_folder(
    photos: Sequence[FolderPhoto],
    photos_dir: Path,
    masks_dir: Path,
    *,
    connected_regions: bool = False,
    advance: Advance = lambda count: None,
) -> CocoFile:
    """Return the masks as the content of a COCO-format file. A photo without masks has no annotation in it.

    Args:
        photos: of the folder `photos_dir`. Masks lie under the same names below `masks_dir`.
        connected_regions: whether each connected region of a mask is an object of its own.
    Raises:
        DataError: masks fit no photo, are damaged, or have another size than their photo.
    """
    names = {photo.path.relative_to(photos_dir).with_suffix("").as_posix(): photo.path for photo in photos}
    masks = _find_masks(masks_dir, set(names), photos_dir)
    images: list[CocoImage] = []
    annotations: list[CocoAnnotation] = []
    for number, (name, path) in enumerate(names.items()):
        sizes = _photo_sizes(path)
        hw = sizes[0]
        for mask in _objects(masks.get(name, PhotoMasks()), connected_regions):
            hw = (mask["size"][0], mask["size"][1])
            if hw not in sizes:
                raise DataError(
                    f"{masks_dir}: the mask of '{name}' has {hw[0]} x {hw[1]} pixels (height x width), its photo "
                    f"{sizes[0][0]} x {sizes[0][1]}; export the masks in their photos' size"
                )
            annotations.append(annotation_of(len(annotations) + 1, number, mask, CATEGORY.id))
        file_name = path.relative_to(photos_dir).as_posix()
        images.append(CocoImage(id=number, file_name=file_name, height=hw[0], width=hw[1]))
        advance(1)
    return CocoFile(images=images, annotations=annotations, categories=[CATEGORY])


def _find_masks(masks_dir: Path, names: set[str], photos_dir: Path) -> dict[str, PhotoMasks]:
    """Return the mask files of the photos by name. Raises DataError when there are none, or some fit no photo."""
    files = sorted(p for p in masks_dir.rglob("*") if p.is_file() and p.suffix.lower() in MASK_SUFFIXES)
    if not files:
        raise DataError(f"{masks_dir}: no mask in it ({', '.join(MASK_SUFFIXES)}); {FORMS}")
    found: dict[str, PhotoMasks] = {}
    strange = []
    for path in files:
        relative = path.relative_to(masks_dir)
        name, folder = relative.with_suffix("").as_posix(), relative.parent.as_posix()
        if name in names:
            found.setdefault(name, PhotoMasks()).label_map = path
        elif folder in names:
            found.setdefault(folder, PhotoMasks()).objects.append(path)
        else:
            strange.append(relative.as_posix())
    if strange:
        raise DataError(
            f"{masks_dir}: {len(strange)} of {len(files)} masks fit no photo of {photos_dir}: {first_few(strange)}; "
            f"{FORMS}"
        )
    if both := [name for name, masks in found.items() if masks.label_map and masks.objects]:
        raise DataError(f"{masks_dir}: {first_few(both)}: a label map and a folder of masks; remove one of them")
    return found


def _objects(masks: PhotoMasks, connected_regions: bool) -> Iterator[RLE]:
    """Yield the objects of a photo. A binary mask may be empty.

    Raises:
        DataError: a mask cannot be decoded, or has more objects than 16 bits can name.
    """
    if masks.label_map is not None:
        numbers = _read_values(masks.label_map)
        origin = str(masks.label_map)
        yield from encode_objects(numbers, connected_regions=connected_regions, most=MOST_OBJECTS, origin=origin)
    for path in masks.objects:
        mask = _read_values(path) > 0
        if connected_regions and mask.any():
            yield from encode_objects(mask, connected_regions=True, most=MOST_OBJECTS, origin=str(path))
        else:
            yield encode_mask(mask)


def _read_values(path: Path) -> np.ndarray:
    """Read a mask as one whole number a pixel, (H, W), of any type. Colours become numbers; black is 0."""
    try:
        with open_image(path, str(path)) as image:
            mode, values = image.mode, np.asarray(image)
    except DECODING_ERRORS as error:
        raise DataError(f"{path}: cannot be decoded ({error}); replace or remove it") from error
    if mode in COLOURS:
        numbers = values[..., 0].astype(np.int32)
        for channel in (1, 2):
            numbers = (numbers << 8) + values[..., channel]
        return numbers
    if mode not in NUMBERS:
        raise DataError(f"{path}: a mask with Pillow's mode {mode}; save it as grey with 8 or 16 bits, or in colours")
    return values.astype(values.dtype.newbyteorder("="))


def _photo_sizes(path: Path) -> list[HW]:
    """Return (height, width) of a photo, as stored and turned by 90 degrees, as its EXIF orientation may ask."""
    try:
        with open_image(path, str(path)) as image:
            return [(image.height, image.width), (image.width, image.height)]
    except DECODING_ERRORS as error:
        raise DataError(f"{path}: cannot be decoded ({error}); replace or remove it") from error
