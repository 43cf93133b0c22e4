"""Masks as run-length codes: the compressed COCO form, {"size": [H, W], "counts": str}, that SA-1B uses too."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from distill.errors import DataError
from distill.geometry import HW

RLE = dict[str, Any]  # {"size": [H, W], "counts": str}

# pycocotools reads a list of four numbers as a box, and two points enclose no pixel
MIN_POLYGON_NUMBERS = 6

# A code is a string of 6-bit characters from '0' on: five bits of a number, lowest first, and a bit for "more follow"
FIRST_CHARACTER, DATA_BITS, MORE = 48, 5, 32


def encode_mask(mask: np.ndarray) -> RLE:
    """The code of a mask, bool or uint8 0/1 (H, W)."""
    return _readable(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))))


def decode_mask(rle: RLE) -> np.ndarray:
    """The mask of a code, uint8 0/1 (H, W).

    Raises:
        DataError: the runs do not add up to the size (pycocotools would answer with whatever was in memory).
    """
    _check_runs(rle, "a mask")
    return coco_mask.decode(rle)


def rle_area(rle: RLE) -> int:
    """Pixels of a mask."""
    return int(coco_mask.area(rle))


def rle_box_xyxy(rle: RLE) -> tuple[float, float, float, float]:
    """The tight box of a mask, XYXY in original pixels."""
    x, y, width, height = (float(value) for value in coco_mask.toBbox(rle))
    return x, y, x + width, y + height


def run_lengths(counts: str) -> np.ndarray:
    """The runs of a compressed code: background and mask in turns, down the columns, int64 (R,).

    The format is that of pycocotools (maskApi.c, rleToString): from the fourth on, each run is stored as the
    difference to the one two before it.
    """
    characters = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - FIRST_CHARACTER
    last = np.flatnonzero((characters & MORE) == 0)  # the character that ends each number, (R,)
    if not len(last):
        return np.zeros(0, np.int64)
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(last[-1] + 1) - np.repeat(first, last - first + 1)
    digits = (characters[: last[-1] + 1] & (MORE - 1)) << (DATA_BITS * np.minimum(place, 12))
    values = np.add.reduceat(digits, first)  # (R,)
    negative = (characters[last] & (1 << (DATA_BITS - 1))) != 0
    values -= negative.astype(np.int64) << (DATA_BITS * np.minimum(last - first + 1, 12))
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def to_rle(segmentation: Any, hw: HW, origin: str) -> RLE | None:
    """Any form of COCO's `segmentation` field as a code; None when it holds no pixel.

    Args:
        segmentation: polygons [[x, y, x, y, ...], ...], or a compressed or uncompressed code.
        hw: height and width of the photo.
        origin: names the annotation in errors.
    Raises:
        DataError: the form is none of these, or a code is of another size than the photo.
    """
    try:
        if isinstance(segmentation, list):
            polygons = [polygon for polygon in segmentation if len(polygon) >= MIN_POLYGON_NUMBERS]
            rle = coco_mask.merge(coco_mask.frPyObjects(polygons, *hw)) if polygons else None
        else:
            rle = _checked_code(segmentation, hw, origin)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{origin}: its segmentation is neither polygons nor a run-length code ({error!r}); export it again"
        ) from error
    if rle is None or not rle_area(rle):
        return None
    return _readable(rle)


def _checked_code(segmentation: Any, hw: HW, origin: str) -> RLE:
    if list(segmentation["size"]) != list(hw):
        raise DataError(
            f"{origin}: its mask is {segmentation['size']} (height, width) but its photo is {list(hw)}; "
            "export the annotations again from the same photos"
        )
    uncompressed = isinstance(segmentation["counts"], list)
    rle = _readable(coco_mask.frPyObjects(segmentation, *hw) if uncompressed else segmentation)
    _check_runs(rle, origin)
    return rle


def _check_runs(rle: RLE, origin: str) -> None:
    runs = run_lengths(rle["counts"])
    height, width = rle["size"]
    if (runs < 0).any() or runs.sum() != height * width:
        raise DataError(
            f"{origin}: the runs of its code cover {int(runs.sum())} pixels, its size {height} x {width} has "
            f"{height * width}: the annotation is damaged; export it again"
        )


def _readable(rle: RLE) -> RLE:
    """The same code with text instead of bytes, as JSON needs it."""
    counts = rle["counts"]
    return {
        "size": [int(side) for side in rle["size"]],
        "counts": counts if isinstance(counts, str) else counts.decode(),
    }
