"""The JSON beside each photo in SA-1B's layout: reading and writing it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, Union

import msgspec
import numpy as np
from msgspec import Meta
from scipy.ndimage import distance_transform_edt

from distill.data.rle import RLE, coverage, decode_mask, rle_area, rle_box_xyxy
from distill.errors import DataError
from distill.geometry import HW
from distill.outside import MOST_PHOTO_PIXELS, Coordinate, Identity, Side, parse_json

MEND = "an annotation in SA-1B's layout is needed: build the shard again"
MOST_MASKS = 100_000  # of a photo; SA-1B has about 100


class MaskRow(msgspec.Struct, gc=False):
    """A row of SA-1B's `annotations`, as far as it is used. bbox: XYWH in original pixels."""

    segmentation: RLE
    bbox: list[Coordinate]
    id: Union[Identity, None] = None


class _Image(msgspec.Struct):
    height: Side
    width: Side


class _Sample(msgspec.Struct):
    image: _Image
    annotations: Annotated[list[MaskRow], Meta(max_length=MOST_MASKS)]


class Annotations(NamedTuple):
    """The annotations of one photo: its (height, width), the rows of SA-1B's `annotations`, and their areas.

    areas: of the masks, in original pixels.
    """

    hw: HW
    rows: list[MaskRow]
    areas: list[int]


def parse_annotations(data: bytes, origin: str) -> Annotations:
    """Read the JSON of a sample. Rows without a pixel or a box are left out.

    A mask is well formed, but whether its runs add up is known when it is decoded.

    Raises:
        DataError: the JSON is not in SA-1B's layout, or a mask has another size than the photo.
    """
    content = parse_json(data, _Sample, origin, MEND, lax=True)
    hw = content.image.height, content.image.width
    if hw[0] * hw[1] > MOST_PHOTO_PIXELS:
        raise DataError(f"{origin}: {hw[0]} x {hw[1]} pixels are too many for a photo ({MOST_PHOTO_PIXELS:,}); {MEND}")
    rows, areas = [], []
    for row in content.annotations:
        if tuple(row.segmentation["size"]) != hw:
            raise DataError(
                f"{origin}: mask {row.id} is {row.segmentation['size']} but its photo {list(hw)}; build the shard again"
            )
        if not row.bbox or not (area := rle_area(row.segmentation)):
            continue
        if len(row.bbox) != 4:
            raise DataError(f"{origin}: the box of mask {row.id} has {len(row.bbox)} numbers, not 4; {MEND}")
        if row.bbox[2] < 0 or row.bbox[3] < 0:
            raise DataError(f"{origin}: the box of mask {row.id} is {row.bbox}, with a negative side; {MEND}")
        rows.append(row)
        areas.append(area)
    return Annotations(hw, rows, areas)


def decode_masks(
    annotations: Sequence[MaskRow],
    indices: Sequence[int],
    low_res_size: int,
    original_hw: HW,
    *,
    flip: bool = False,
) -> np.ndarray:
    """Return the coverage of the chosen instances at the resolution at which losses compare masks.

    Args:
        annotations: rows of a photo.
        indices: the n rows to decode.
        low_res_size: 4E.
        original_hw: height and width of the photo.
        flip: decode the masks of the photo flipped left to right.

    Returns:
        float32 (n, 4E, 4E) in [0, 1]; padding is 0.

    Raises:
        DataError: a mask has another size than the photo, or its RLE is damaged.
    """
    masks = np.zeros((len(indices), low_res_size, low_res_size), np.float32)
    for row, index in enumerate(indices):
        rle = annotations[index].segmentation
        if tuple(rle["size"]) != tuple(original_hw):
            raise DataError(f"mask {annotations[index].id} is {rle['size']} but its photo {list(original_hw)}")
        masks[row] = coverage(rle, low_res_size, flip=flip)
    return masks  # (n, 4E, 4E)


def boxes_of(annotations: Sequence[MaskRow], indices: Sequence[int]) -> np.ndarray:
    """Return the boxes of the chosen instances, float32 (n, 4) XYXY in original pixels (SA-1B stores XYWH)."""
    boxes = np.array([annotations[index].bbox for index in indices], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def annotation_row(
    identity: int,
    rle: RLE,
    hw: HW,
    *,
    bbox_xyxy: Sequence[float] | None = None,
    area: float | None = None,
    category_id: int | None = None,
) -> dict[str, Any]:
    """Return a row of SA-1B's `annotations` for a mask that a person drew.

    Args:
        rle: the mask, with at least one pixel.
        hw: height and width of the photo.
        bbox_xyxy: in original pixels. None takes the box of the mask.
        area: in original pixels. None takes the area of the mask.
    """
    x0, y0, x1, y1 = bbox_xyxy if bbox_xyxy is not None else rle_box_xyxy(rle)
    row = {
        "id": identity,
        "segmentation": rle,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": rle_area(rle) if area is None else area,
        # In SA-1B these are scores by SAM itself; a mask that a person drew counts as correct.
        "predicted_iou": 1.0,
        "stability_score": 1.0,
        "crop_box": [0, 0, hw[1], hw[0]],
        "point_coords": [list(centre_xy(rle))],
    }
    if category_id is not None:
        row["category_id"] = category_id
    return row


def sample_annotation(key: str, hw: HW, rows: list[dict[str, Any]], *, suffix: str = "jpg") -> dict[str, Any]:
    """Return the complete JSON of a sample."""
    image = {"image_id": key, "width": hw[1], "height": hw[0], "file_name": f"{key}.{suffix}"}
    return {"image": image, "annotations": rows}


def centre_xy(rle: RLE) -> tuple[float, float]:
    """Return the centre of the mask's pixel that is farthest from the mask's border: XY in original pixels."""
    x0, y0, x1, y1 = (int(side) for side in rle_box_xyxy(rle))
    window = np.pad(decode_mask(rle)[y0:y1, x0:x1], 1)  # pixels outside the photo are outside the mask too
    distance = distance_transform_edt(window)
    row, column = np.unravel_index(int(distance.argmax()), distance.shape)
    return x0 + float(column) - 1 + 0.5, y0 + float(row) - 1 + 0.5
