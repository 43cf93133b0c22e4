"""A detector in YOLOX's form: where boxes lie, which of them stay, and graphs of another form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from distill.errors import DataError
from distill.evaluation.yolox_detector import (
    GREY,
    STRIDES,
    STRIDES_P6,
    DetectorRules,
    YoloxDetector,
    choose_boxes,
    decode_boxes,
    num_cells,
    place_photo,
)
from tests.fixtures.yolox_graph import write_graph

RED, BLUE = (255, 0, 0), (0, 0, 255)


def paint(hw: tuple[int, int], *squares: tuple[int, int, int, int, tuple[int, int, int]]) -> np.ndarray:
    """Paint squares XYXY onto grey."""
    photo = np.full((*hw, 3), GREY, np.uint8)
    for x0, y0, x1, y1, colour in squares:
        photo[y0:y1, x0:x1] = colour
    return photo


def rows_of(boxes: list[list[float]], objectness: list[float], classes: list[list[float]]) -> np.ndarray:
    return np.concatenate([np.array(boxes), np.array(objectness)[:, None], np.array(classes)], 1)


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("batch", ["batch", 1, 3])
def test_boxes_in_the_photos_own_pixels(tmp_path, decode, batch):
    """Three photos, one twice the input's size: cells of 8 pixels hold the squares, and of both larger ones a part."""
    detector = YoloxDetector(write_graph(tmp_path / "d.onnx", batch=batch, decode=decode))
    assert (detector.in_pixels, detector.num_classes, detector.input_hw) == (decode, 2, (64, 64))
    assert detector.batch_size == (None if batch == "batch" else batch)
    large = paint((96, 128), (32, 16, 48, 32, RED))  # to 48 x 64: the cell in column 2, row 1
    photos = [large, paint((64, 64), (8, 40, 16, 48, BLUE)), paint((64, 64))]
    found = detector.detect(photos, DetectorRules(least_score=0.9), ["a", "b", "c"])
    # one cell wide and two cells high, around the centre of the cell
    assert [[(*np.round(box.box_xyxy, 3), box.class_index) for box in boxes] for boxes in found] == [
        [(32.0, 8.0, 48.0, 40.0, 0)],
        [(8.0, 36.0, 16.0, 52.0, 1)],
        [],
    ]
    assert found[0][0].score == pytest.approx(1, abs=0.02)


def test_all_grids_look_at_the_photo(tmp_path):
    detector = YoloxDetector(write_graph(tmp_path / "d.onnx"))
    photo = paint((64, 64), (32, 0, 64, 32, BLUE))
    (boxes,) = detector.detect([photo], DetectorRules(least_score=0.9, nms_iou=1), ["a"])
    widths = [box.box_xyxy[2] - box.box_xyxy[0] for box in boxes]
    assert sorted(widths) == pytest.approx([8] * 16 + [16] * 4 + [32])


def test_a_photo_is_placed_as_yolox_does():
    photo = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    pixels, scale = place_photo(photo, (64, 96))
    assert scale == min(64 / 30, 96 / 41)
    assert pixels.shape == (3, 64, 96) and pixels.dtype == np.float32
    assert (pixels[:, :, int(41 * scale) :] == GREY).all()
    same, one = place_photo(photo, (32, 41))
    assert one == 1 and (same[:, :30] == photo[:, :, ::-1].transpose(2, 0, 1)).all() and (same[:, 30:] == GREY).all()
    # OpenCV's bilinear without antialiasing: at half the size the mean of four pixels
    half, _ = place_photo(photo[:30, :40], (15, 20))
    blocks = photo[:30, :40, ::-1].reshape(15, 2, 20, 2, 3).astype(float).mean((1, 3)).transpose(2, 0, 1)
    assert np.abs(half - blocks).max() <= 0.5


@pytest.mark.parametrize("strides", [STRIDES, STRIDES_P6])
def test_decoding_turns_back_what_coding_did(strides):
    """Each box is coded by hand in the cell that holds its centre."""
    hw = (128, 192)
    boxes, rows, first = [], [], 0
    coded = np.zeros((num_cells(hw, strides), 4))
    for stride in strides:
        columns = hw[1] // stride
        x, y, width, height = 100.25, 70.5, 30.0, 12.0
        place = first + int(y // stride) * columns + int(x // stride)
        coded[place] = (
            x / stride - x // stride,
            y / stride - y // stride,
            np.log(width / stride),
            np.log(height / stride),
        )
        rows.append(place)
        boxes.append((x, y, width, height))
        first += (hw[0] // stride) * columns
    assert first == len(coded)
    assert decode_boxes(coded, hw, strides)[rows] == pytest.approx(np.array(boxes))


def test_overlapping_boxes_of_a_class():
    boxes = np.array([[10, 10, 8, 8], [11, 10, 8, 8], [11, 10, 8, 8], [40, 40, 4, 4], [50, 50, 4, 4]], float)
    rows = rows_of(boxes.tolist(), [1, 1, 1, 0.5, 1], [[0.8, 0.1], [0.9, 0.3], [0.2, 0.7], [0.019, 0.0], [0.0, 0.02]])
    found = choose_boxes(boxes, rows, 2.0, DetectorRules(), "test")
    # The first overlaps the second by 7 / 9; the third is of the other class; the fourth has 0.0095 in all
    assert [(box.class_index, round(box.score, 3)) for box in found] == [(0, 0.9), (1, 0.7), (1, 0.02)]
    assert found[0].box_xyxy == (3.5, 3.0, 7.5, 7.0)  # in original pixels: half of the input's
    assert len(choose_boxes(boxes, rows, 2.0, DetectorRules(nms_iou=0.8), "test")) == 4
    assert choose_boxes(boxes, rows, 2.0, DetectorRules(least_score=1), "test") == []


def test_boxes_that_are_not_finite():
    rows = rows_of([[0, 0, 800, 0]], [1], [[1]])
    boxes = decode_boxes(np.array([[0.0, 0, 800, 0]] * num_cells((32, 32), STRIDES)), (32, 32), STRIDES)[:1]
    with pytest.raises(DataError, match="a box that is not finite"):
        choose_boxes(boxes, rows, 1.0, DetectorRules(), "test")
    rows[0, 4] = 0  # so low a score is not looked at
    assert choose_boxes(boxes, rows, 1.0, DetectorRules(), "test") == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"side": 60}, r"takes images tensor\(float\) .*60, 60.* multiples of 32"),
        ({"side": "side"}, "the size of its input is free .* fixed height and width"),
        ({"strides": (8, 16)}, r"gives \(1, 80, 7\); .*gives \(1, 84, 5 \+ classes\)"),
    ],
)
def test_graphs_of_another_form(tmp_path, options, words):
    with pytest.raises(DataError, match=words):
        YoloxDetector(write_graph(tmp_path / "d.onnx", **options))


def test_scores_without_their_sigmoid(tmp_path):
    detector = YoloxDetector(write_graph(tmp_path / "d.onnx", gain=5.0))
    with pytest.raises(DataError, match=r"d\.onnx: on sky: gives a score of 5, .* behind their sigmoid"):
        detector.detect([paint((64, 64), (0, 0, 32, 32, RED))], DetectorRules(), ["sky"])


def test_files_that_hold_no_graph(tmp_path):
    with pytest.raises(DataError, match=r"no\.onnx: the detector cannot be read .* tools/export_onnx\.py"):
        YoloxDetector(tmp_path / "no.onnx")
    for content in (b"", b"\x89PNG no graph at all", write_graph(tmp_path / "d.onnx").read_bytes()[:400]):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.onnx: (no ONNX graph|no graph that ONNX Runtime can run)"):
            YoloxDetector(tmp_path / "bad.onnx")


def test_weights_in_other_files_are_not_read(tmp_path):
    path = write_graph(tmp_path / "d.onnx")
    model = onnx.load(path)
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(DataError, match="keeps its weights in other files"):
        YoloxDetector(path)


def test_further_inputs_and_outputs_are_another_form(tmp_path):
    path: Path = write_graph(tmp_path / "d.onnx")
    model = onnx.load(path)
    model.graph.output.append(onnx.helper.make_tensor_value_info("scores", TensorProto.FLOAT, None))
    onnx.save_model(model, path)
    with pytest.raises(DataError, match=r"gives 2 outputs \(output, scores\); YOLOX's form has one"):
        YoloxDetector(path)
    model.graph.input.append(onnx.helper.make_tensor_value_info("im_shape", TensorProto.FLOAT, [1, 2]))
    onnx.save_model(model, path)
    with pytest.raises(
        DataError, match=r"takes images .*, im_shape tensor\(float\) \(1, 2\); YOLOX's form has one input"
    ):
        YoloxDetector(path)
