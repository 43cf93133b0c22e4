"""Masks as run-length codes in COCO's compressed form, {"size": [H, W], "counts": str}, which SA-1B uses too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, TypedDict, Union

import numpy as np
from msgspec import Meta
from pycocotools import mask as coco_mask

from distill.errors import DataError
from distill.geometry import HW, cell_starts, mask_to_low_res, resized_hw
from distill.outside import MOST_PHOTO_PIXELS, Coordinate, Side

# pycocotools reads a list of four numbers as a box, and two points enclose no pixel
MIN_POLYGON_NUMBERS = 6

# pycocotools walks along a polygon in fifths of a pixel and keeps 16 bytes of each step: of this outline, 320 MB.
MOST_OUTLINE = 4e6  # pixels, of all polygons of a mask; a coastline through 10,000 x 10,000 pixels has about a tenth

# A code is a string of 6-bit characters from '0' on: five bits of a number, lowest first, and a bit for "more follow".
# pycocotools reads behind the end of a string whose last number goes on. Seven characters hold any run that it writes.
FIRST_CHARACTER, DATA_BITS, MORE = 48, 5, 32
ENDED = r"(?#a complete run-length code)^[0-o]*[0-O]\Z"  # looked at while reading
WELL_FORMED = re.compile(r"(?:[P-o]{0,6}[0-O])+\Z")  # looked at before decoding

Counts = Annotated[str, Meta(pattern=ENDED)]
Run = Annotated[int, Meta(ge=0, le=MOST_PHOTO_PIXELS)]
Size = Annotated[list[Side], Meta(min_length=2, max_length=2)]


class RLE(TypedDict):
    """A compressed code of a mask. size: height and width. What is read from outside is well formed."""

    size: Size
    counts: Counts


class Code(TypedDict):
    """A code of COCO's `segmentation`, compressed or as the list of its runs."""

    size: Size
    counts: Union[Counts, list[Run]]


Segmentation = Union[list[list[Coordinate]], Code]  # polygons [[x, y, x, y, ...], ...] in pixels, or a code


def encode_mask(mask: np.ndarray) -> RLE:
    """Encode a mask, bool or uint8 0/1 (H, W)."""
    return _readable(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))))


def encode_objects(numbers: np.ndarray, *, connected_regions: bool = False, most: int, origin: str) -> Iterator[RLE]:
    """Encode the pixels of each number but 0 as a mask of its own, in the order of the numbers, with one look at all.

    Args:
        numbers: whole numbers, (H, W); 0 is background.
        connected_regions: whether each region of pixels that touch, at a corner too, is a mask of its own. Those of a
            number follow each other, topmost first.
        most: the largest number of masks.
        origin: names the file in errors.
    Raises:
        DataError: there are more masks.
    """
    from skimage.measure import label  # half a second, which few callers need

    height, width = numbers.shape
    objects = numbers
    if connected_regions:
        objects = label(numbers, background=0, connectivity=2)  # type: ignore[no-untyped-call]
    flat = objects.ravel(order="F")  # down the columns, (H * W,)
    starts = np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1)  # of runs of one object, (R,)
    ends, owners = np.append(starts[1:], flat.size), flat[starts]
    order = np.lexsort((owners, numbers[starts % height, starts // height]))
    order = order[owners[order] != 0]
    firsts = np.flatnonzero(np.diff(owners[order], prepend=0))  # of each object's runs, in `order`, (M,)
    if len(firsts) > most:
        raise DataError(f"{origin}: {len(firsts):,} objects are too many for a mask (at most {most:,}); is it a photo?")
    for first, last in pairwise([*firsts, len(order)]):
        edges = np.column_stack([starts[order[first:last]], ends[order[first:last]]]).ravel()
        runs = np.diff(edges, prepend=0, append=flat.size)
        counts = runs if runs[-1] else runs[:-1]
        yield _readable(coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width))


def decode_mask(rle: RLE) -> np.ndarray:
    """Decode a code to a mask, uint8 0/1 (H, W).

    Raises:
        DataError: the runs do not add up to the size (pycocotools would return whatever was in memory).
    """
    _checked_runs(rle, "a mask")
    mask: np.ndarray = coco_mask.decode(rle)
    return mask


def coverage(rle: RLE, low_res_size: int, *, flip: bool = False) -> np.ndarray:
    """Compute the share of each low-res cell that a mask covers, from the run lengths, without decoding the mask.

    Runs are cut where a column of the photo ends. Each piece adds to a cell the number of its rows that lie in the
    cell. The result equals `mask_to_low_res(decode_mask(rle), low_res_size)`.

    Args:
        flip: whether the photo, and the mask with it, is flipped left to right.
    Returns:
        float32 (4E, 4E) in [0, 1]; padding is 0.
    Raises:
        DataError: the runs do not add up to the size.
    """
    height, width = (int(side) for side in rle["size"])
    if max(height, width) < low_res_size:  # enlarged: the mask of a small photo is decoded quickly
        mask = decode_mask(rle)
        return mask_to_low_res(mask[:, ::-1] if flip else mask, low_res_size)
    low_res = np.zeros((low_res_size, low_res_size), np.float32)
    edges = np.append(0, np.cumsum(_checked_runs(rle, "a mask")))  # starts and ends of runs in turns
    column, top, bottom = _pieces(edges[1:-1:2], edges[2::2], height)  # (P,) each
    if not len(column):
        return low_res
    if flip:
        column = width - 1 - column
    rows, cols = resized_hw((height, width), low_res_size)
    row_edges, col_edges = np.append(cell_starts(height, rows), height), np.append(cell_starts(width, cols), width)
    x = np.searchsorted(col_edges, column, side="right") - 1  # the cell of each piece, (P,)
    left, right = x.min(), x.max() + 1  # only the cells of the mask's box are counted
    first, end = np.searchsorted(row_edges, [top.min() + 1, bottom.max()]) - [1, 0]
    row_edges, col_edges = row_edges[first : end + 1], col_edges[left : right + 1]
    num_pixels = _count(x - left, top, bottom, row_edges, right - left)  # (cols, rows) of the box
    low_res[first:end, left:right] = (num_pixels / np.outer(np.diff(col_edges), np.diff(row_edges))).T
    return low_res


def check_code(rle: RLE, origin: str) -> None:
    """Raise DataError unless the runs of a code add up to its size: pycocotools compares others without an end."""
    _checked_runs(rle, origin)


def rle_area(rle: RLE) -> int:
    """Count the pixels of a mask."""
    return int(coco_mask.area(rle))


def rle_box_xyxy(rle: RLE) -> tuple[float, float, float, float]:
    """Return the tight box of a mask, XYXY in original pixels."""
    x, y, width, height = (float(value) for value in coco_mask.toBbox(rle))
    return x, y, x + width, y + height


def run_lengths(counts: str) -> np.ndarray:
    """Decode the run lengths of a compressed code, int64 (R,): background and mask in turns, down the columns.

    The format is that of pycocotools (maskApi.c, rleToString): each run from the fourth on is stored as its difference
    to the run two before it.
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


def to_rle(segmentation: Segmentation | RLE, hw: HW, origin: str) -> RLE | None:
    """Convert any form of COCO's `segmentation` field to a code. Return None if it has no pixel.

    Args:
        hw: height and width of the photo.
        origin: names the annotation in errors.
    Raises:
        DataError: a polygon has half a point or an endless outline, or a code is damaged or has another size than the
            photo.
    """
    if isinstance(segmentation, list):
        polygons = _checked_polygons(segmentation, origin)
        rle = coco_mask.merge(coco_mask.frPyObjects(polygons, *hw)) if polygons else None
    else:
        rle = _checked_code(segmentation, hw, origin)
    if rle is None or not rle_area(rle):
        return None
    return _readable(rle)


def _checked_polygons(polygons: list[list[float]], origin: str) -> list[list[float]]:
    """Return the polygons that can enclose a pixel."""
    outline = 0.0
    for polygon in polygons:
        if len(polygon) % 2:
            raise DataError(f"{origin}: a polygon of its segmentation has {len(polygon)} numbers, not pairs of x and y")
        if polygon:
            outline += (max(polygon) - min(polygon)) * len(polygon) / 2  # at least its own outline
    if outline > MOST_OUTLINE and (outline := sum(map(_outline, polygons))) > MOST_OUTLINE:
        raise DataError(
            f"{origin}: the outline of its segmentation is {outline:,.0f} pixels long (at most {MOST_OUTLINE:,.0f}); "
            "give coordinates in pixels of the photo"
        )
    return [polygon for polygon in polygons if len(polygon) >= MIN_POLYGON_NUMBERS]


def _outline(polygon: list[float]) -> float:
    """Return the steps from pixel to pixel along a polygon, the last one back to its start included."""
    points = np.array(polygon).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, 0)).max(1).sum()) if len(points) else 0.0


def _checked_code(code: Code | RLE, hw: HW, origin: str) -> RLE:
    if list(code["size"]) != list(hw):
        raise DataError(
            f"{origin}: its mask is {code['size']} (height, width) but its photo is {list(hw)}; "
            "export the annotations again from the same photos"
        )
    counts = code["counts"]
    if isinstance(counts, str):
        rle = RLE(size=code["size"], counts=counts)
        _checked_runs(rle, origin)
        return rle
    _check_cover(sum(counts), hw, origin)
    return _readable(coco_mask.frPyObjects(code, *hw))


def _pieces(starts: np.ndarray, ends: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut runs of pixels [start, end), counted down the columns, where a column ends.

    Returns:
        of each piece its column, its first row, and the row after its last, int64 (P,) each.
    """
    first = starts // height
    num_pieces = (ends - 1) // height - first + 1  # a run of length 0 may give one: a piece without rows
    index = np.repeat(np.arange(len(starts)), num_pieces)
    column = first[index] + np.arange(len(index)) - (np.cumsum(num_pieces) - num_pieces)[index]
    top = np.maximum(starts[index] - column * height, 0)
    bottom = np.minimum(ends[index] - column * height, height)
    return column, top, np.maximum(bottom, top)


def _count(x: np.ndarray, top: np.ndarray, bottom: np.ndarray, row_edges: np.ndarray, cols: int) -> np.ndarray:
    """Count the pixels that pieces of columns have in each cell, float64 (cols, rows).

    A piece is everything above its bottom minus everything above its top. Everything above a row is all rows of the
    cells above the row's cell, and those rows of the cell itself that lie above the row.

    Args:
        x: column of cells of each piece, (P,).
        top, bottom: the first row of each piece and the row after its last, (P,); all lie inside `row_edges`.
        row_edges: the first row of each cell, and the end, (rows + 1,).
    """
    rows = len(row_edges) - 1
    ends, sign = np.concatenate([bottom, top]), np.repeat([1.0, -1.0], len(x))
    y = np.searchsorted(row_edges, ends, side="right") - 1  # the cell of each end; `rows` is the end of the last cell
    place = np.tile(x, 2) * (rows + 1) + y
    num_ends = np.bincount(place, sign, cols * (rows + 1)).reshape(cols, rows + 1)
    in_cell = np.bincount(place, sign * (ends - row_edges[y]), cols * (rows + 1)).reshape(cols, rows + 1)
    num_through = num_ends[:, ::-1].cumsum(1)[:, -2::-1]  # pieces that go on below each cell, (cols, rows)
    return num_through * np.diff(row_edges) + in_cell[:, :rows]


def _checked_runs(rle: RLE, origin: str) -> np.ndarray:
    """Return the runs of a code, int64 (R,). Raises DataError when they do not add up to its size."""
    if not WELL_FORMED.match(rle["counts"]):
        raise DataError(f"{origin}: its code is no run-length code: the annotation is damaged; export it again")
    runs = run_lengths(rle["counts"])
    height, width = rle["size"]
    _check_cover(-1 if (runs < 0).any() else int(runs.sum()), (height, width), origin)
    return runs


def _check_cover(num_pixels: int, hw: HW, origin: str) -> None:
    """Raise DataError unless the runs of a code cover the pixels of its size. num_pixels: -1 for a negative run."""
    if num_pixels != hw[0] * hw[1]:
        found = "are negative" if num_pixels < 0 else f"cover {num_pixels} pixels"
        raise DataError(
            f"{origin}: the runs of its code {found}, its size {hw[0]} x {hw[1]} has {hw[0] * hw[1]}: "
            "the annotation is damaged; export it again"
        )


def _readable(rle: Any) -> RLE:
    """Return pycocotools' code with text instead of bytes, as JSON needs it."""
    counts = rle["counts"]
    return RLE(size=[int(side) for side in rle["size"]], counts=counts if isinstance(counts, str) else counts.decode())
