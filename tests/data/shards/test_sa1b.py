from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest

from distill.data.rle import decode_mask, encode_mask
from distill.data.shards.sa1b import (
    MaskRow,
    annotation_row,
    boxes_of,
    centre_xy,
    decode_masks,
    parse_annotations,
    sample_annotation,
)
from distill.errors import DataError
from distill.geometry import mask_to_low_res

HW = (30, 40)


@pytest.fixture
def rows(box_mask):
    masks = [box_mask(HW, 3, 10, 5, 25), box_mask(HW, 0, 30, 0, 40), np.zeros(HW, bool)]
    return [annotation_row(i, encode_mask(mask), HW) for i, mask in enumerate(masks[:2])], masks


def test_annotations_have_sa1b_s_fields(rows) -> None:
    row = rows[0][0]
    assert set(row) == {
        "id", "segmentation", "bbox", "area", "predicted_iou", "stability_score", "crop_box", "point_coords"
    }  # fmt: skip
    assert row["bbox"] == [5, 3, 20, 7] and row["area"] == 140 and row["crop_box"] == [0, 0, 40, 30]
    assert json.loads(json.dumps(row)) == row


def parsed(rows: list[dict]) -> list[MaskRow]:
    return msgspec.convert(rows, list[MaskRow])


def test_annotations_are_read_back_without_empty_masks(rows) -> None:
    kept, masks = rows
    empty = {**kept[0], "id": 9, "segmentation": encode_mask(masks[2])}
    annotations = parse_annotations(json.dumps(sample_annotation("k", HW, [*kept, empty])).encode(), "here")
    assert annotations.hw == HW and annotations.rows == parsed(kept) and annotations.areas == [140, 1200]


def test_only_the_drawn_masks_are_decoded_at_low_resolution(rows) -> None:
    kept, masks = rows
    kept[0]["segmentation"]["counts"] = "0"  # not read: it has too few runs
    low_res = decode_masks(parsed(kept), [1], 16, HW)
    assert low_res.shape == (1, 16, 16) and low_res.dtype == np.float32
    np.testing.assert_allclose(low_res[0], mask_to_low_res(masks[1], 16), atol=1e-6)


def test_boxes_become_xyxy(rows) -> None:
    assert boxes_of(parsed(rows[0]), [1, 0]).tolist() == [[0, 0, 40, 30], [5, 3, 25, 10]]
    assert boxes_of(parsed(rows[0]), []).shape == (0, 4)


def test_the_centre_lies_in_the_mask_far_from_its_border(box_mask) -> None:
    assert centre_xy(encode_mask(box_mask(HW, 0, 7, 0, 7))) == (3.5, 3.5)
    ring = box_mask(HW, 2, 28, 2, 38) & ~box_mask(HW, 10, 20, 4, 30)
    x, y = centre_xy(encode_mask(ring))
    assert ring[int(y), int(x)] and x > 30


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[]", b"{}", b'{"image": {"height": 30, "width": 40}, "annotations": [{}]}'],
)
def test_other_json_is_named(content: bytes) -> None:
    with pytest.raises(DataError, match="here: .*an annotation in SA-1B's layout is needed"):
        parse_annotations(content, "here")


def test_a_mask_of_another_photo_is_named(rows) -> None:
    content = sample_annotation("k", (40, 30), rows[0])
    with pytest.raises(DataError, match=r"here: mask 0 is \[30, 40\]"):
        parse_annotations(json.dumps(content).encode(), "here")
    with pytest.raises(DataError):
        decode_masks(parsed(rows[0]), [0], 16, (40, 30))


def test_masks_are_the_ones_that_were_encoded(rows) -> None:
    kept, masks = rows
    assert np.array_equal(decode_mask(kept[0]["segmentation"]), masks[0])


def test_a_box_of_five_numbers_is_named(rows) -> None:
    rows[0][0]["bbox"] = [5, 3, 20, 7, 7]
    with pytest.raises(DataError, match="mask 0 has 5 numbers"):
        parse_annotations(json.dumps(sample_annotation("a", HW, rows[0])).encode(), "a")
