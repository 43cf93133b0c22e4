"""Photographs as files and bytes: how all code decodes them, and the keys that name them."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from distill.errors import DataError

if TYPE_CHECKING:
    from distill.geometry import HW  # which imports torch

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SUFFIX_OF_FORMAT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # MPO: JPEGs of some phones
EXIF_ORIENTATION = 0x0112
UPRIGHT = 1

# What Pillow raises for damaged files, by format
DECODING_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)


def decode_image(data: bytes, origin: str) -> np.ndarray:
    """Decode a photo to uint8 (H, W, 3) RGB, upright: its EXIF orientation is applied.

    Args:
        data: JPEG, PNG or WebP.
        origin: names the photo in errors.
    Raises:
        DataError: the bytes are not a photo, or they are cut off or damaged.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except DECODING_ERRORS as error:
        raise DataError(f"{origin}: cannot be decoded ({error}); replace or remove it") from error


def decode_as_annotated(data: bytes, annotated_hw: HW, origin: str) -> np.ndarray:
    """Decode a photo to uint8 (H, W, 3) RGB in the orientation that its annotations were made in.

    Annotation tools differ in whether they apply the EXIF orientation; the annotated size shows which way it was. If
    the upright photo has that size, the result is upright, else it is the photo as stored.

    Raises:
        DataError: the photo cannot be decoded, or has the annotated size in neither orientation.
    """
    image = decode_image(data, origin)
    if image.shape[:2] == annotated_hw:
        return image
    with Image.open(io.BytesIO(data)) as stored:
        if (stored.height, stored.width) == annotated_hw:
            return _to_rgb(stored)
    height, width = image.shape[:2]
    raise DataError(
        f"{origin}: the photo has {height} x {width} pixels (height x width), its annotations say "
        f"{annotated_hw[0]} x {annotated_hw[1]}; give the photos that were annotated"
    )


def is_upright(data: bytes) -> bool:
    """Return whether a decodable photo is stored upright."""
    with Image.open(io.BytesIO(data)) as image:
        return bool(image.getexif().get(EXIF_ORIENTATION, UPRIGHT) == UPRIGHT)


def photo_suffix(data: bytes) -> str | None:
    """Return the suffix, without a dot, under which shards hold a photo. Return None if they do not hold its format."""
    with Image.open(io.BytesIO(data)) as image:
        return SUFFIX_OF_FORMAT.get(image.format or "")


def key_of(relative_path: Path) -> str:
    """Return the sample key of a photo: its path without suffix.

    Dots become underscores, since readers of tars end a key at its first dot.
    """
    return "_".join(relative_path.with_suffix("").parts).replace(".", "_")


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):  # Pillow's own conversion cuts 16-bit greys at 255 instead of scaling them
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
