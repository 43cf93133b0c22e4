"""Photographs as files and bytes: how all code decodes them, and the keys that name them."""

from __future__ import annotations

import io
import struct
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from distill.errors import DataError
from distill.outside import MOST_PHOTO_PIXELS, read_bytes

if TYPE_CHECKING:
    from distill.geometry import HW  # which imports torch

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SUFFIX_OF_FORMAT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # MPO: JPEGs of some phones
EXIF_ORIENTATION = 0x0112
UPRIGHT = 1
MOST_PHOTO_BYTES = 1 << 30
BAND_PIXELS = 1 << 22  # of a photo are converted at a time

# Pillow's formats that hold photos. Others are not tried: PostScript, for one, would start an interpreter.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")

# What Pillow raises for damaged files, by format
DECODING_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error)


def read_photo(path: Path) -> bytes:
    """Read the bytes of a photo's file. Raises DataError when there is no such file, or it cannot be read."""
    return read_bytes(path, "photo", "restore it or remove it from the set", most=MOST_PHOTO_BYTES)


def open_image(source: bytes | Path, origin: str) -> Image.Image:
    """Open an image, from its bytes or a regular file, without decoding it.

    Raises:
        DataError: it has more than MOST_PHOTO_PIXELS. Pillow raises DECODING_ERRORS for damaged files.
    """
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_formats())
        num_pixels = image.width * image.height
    except Image.DecompressionBombError:  # Pillow's own bound, which another library may have moved
        num_pixels = MOST_PHOTO_PIXELS + 1
    if num_pixels > MOST_PHOTO_PIXELS:
        raise DataError(f"{origin}: more than {MOST_PHOTO_PIXELS:,} pixels are too many for an image; reduce it")
    return image


def decode_image(data: bytes, origin: str) -> np.ndarray:
    """Decode a photo to uint8 (H, W, 3) RGB, upright: its EXIF orientation is applied.

    Args:
        data: JPEG, PNG or WebP.
        origin: names the photo in errors.
    Raises:
        DataError: the bytes are not a photo, or they are cut off or damaged.
    """
    pixels, orientation = _decode(data, origin)
    return _turned(pixels, orientation)


def decode_as_annotated(data: bytes, annotated_hw: HW, origin: str) -> np.ndarray:
    """Decode a photo to uint8 (H, W, 3) RGB in the orientation that its annotations were made in.

    Annotation tools differ in whether they apply the EXIF orientation; the annotated size shows which way it was. If
    the upright photo has that size, the result is upright, else it is the photo as stored.

    Raises:
        DataError: the photo cannot be decoded, or has the annotated size in neither orientation.
    """
    stored, orientation = _decode(data, origin)
    image = _turned(stored, orientation)
    if image.shape[:2] == annotated_hw:
        return image
    if stored.shape[:2] == annotated_hw:
        return stored
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


def _decode(data: bytes, origin: str) -> tuple[np.ndarray, int]:
    """Decode a photo to uint8 (H, W, 3) RGB as it is stored. Return its EXIF orientation too. Raises DataError."""
    try:
        with open_image(data, origin) as image:
            return _to_rgb(image), image.getexif().get(EXIF_ORIENTATION, UPRIGHT)
    except DECODING_ERRORS as error:
        raise DataError(f"{origin}: cannot be decoded ({error}); replace or remove it") from error


def _turned(stored: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels (H, W, 3) upright. orientation: EXIF's, 1 to 8; others mean nothing."""
    if orientation in (5, 6, 7, 8):  # rows are columns
        stored = stored.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        stored = stored[::-1]
    if orientation in (2, 3, 6, 7):
        stored = stored[:, ::-1]
    return np.ascontiguousarray(stored)


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Convert an image to uint8 (H, W, 3). A large one is converted band by band, so that no copy of it is made."""
    if image.width * image.height <= BAND_PIXELS:
        return np.array(_band_to_rgb(image))
    image.load()
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    num_rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, num_rows):
        band = image.crop((0, top, image.width, min(top + num_rows, image.height)))
        pixels[top : top + num_rows] = np.asarray(_band_to_rgb(band))
    return pixels


def _band_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow's own conversion cuts 16-bit greys at 255 instead of scaling them
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


@lru_cache
def _formats() -> tuple[str, ...]:
    """Return those of FORMATS that this build of Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)
