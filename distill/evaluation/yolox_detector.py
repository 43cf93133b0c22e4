"""A detector in YOLOX's form, given as ONNX: photos in, boxes with scores and classes out.

The form is that of YOLOX (arXiv:2107.08430; github.com/Megvii-BaseDetection/YOLOX, from version 0.1.1 on), as its
tools/export_onnx.py writes it. Files are named below by their place there. A photo is resized into the top left corner
of the input, blue before green before red, 0 to 255, and padded with grey: yolox/data/data_augment.py, `preproc`. Each
cell of the grids of STRIDES gives one row: centre, size, objectness, and a score for each class.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.ops import nms

from distill.errors import DataError
from distill.geometry import HW
from distill.outside import read_bytes

STRIDES = (8, 16, 32)  # yolox/models/yolo_head.py
STRIDES_P6 = (*STRIDES, 64)  # yolox/utils/demo_utils.py, `demo_postprocess` with p6
GREY = 114  # of the padding: yolox/data/data_augment.py
BOX, OBJECTNESS, CLASSES = slice(0, 4), 4, slice(5, None)  # columns of a row: yolox/models/yolo_head.py
SCORE_SLACK = 1e-3  # by which a score of half precision may leave 0..1
MOST_BYTES = 2_000_000_000  # of a graph: protobuf's limit

MEND = "give a detector that YOLOX's tools/export_onnx.py wrote, or detections of your own: data.detections=FILE"

Boxes = Literal["auto", "grid", "pixels"]
BOXES: tuple[Boxes, ...] = get_args(Boxes)


@dataclass(frozen=True)
class DetectorRules:
    """Which boxes of a photo are kept.

    least_score: of the objectness times the score of the best class. nms_iou: of two boxes of one class that overlap
    by more, the one with the lower score is left out.
    """

    least_score: float = 0.01  # yolox/exp/yolox_base.py, test_conf
    nms_iou: float = 0.65  # yolox/exp/yolox_base.py, nmsthre


class FoundBox(NamedTuple):
    """A box XYXY in original pixels, which may leave the photo; its class, counted from 0, and its score in 0..1."""

    box_xyxy: tuple[float, float, float, float]
    class_index: int
    score: float


class YoloxDetector:
    """A detector in ONNX Runtime. It runs on a GPU if this build of the runtime has one, and else on the CPU.

    input_hw: the size of its input. num_classes: how many classes it knows. batch_size: the number of photos that the
    graph takes, or None if any number will do. in_pixels: True if the graph itself turns its rows into boxes in input
    pixels, as after `--decode_in_inference`.

    Args:
        boxes: "grid": the graph gives offsets to the cells of the grids; "pixels": it gives boxes in input pixels;
            "auto": the second if the graph holds an exponential, which only that step needs.
    Raises:
        DataError: the file is absent or is no ONNX graph, keeps its weights in other files, or has another form.
    """

    def __init__(self, path: str | Path, *, boxes: Boxes = "auto") -> None:
        self.path = Path(path)
        data = read_bytes(self.path, "detector", MEND, most=MOST_BYTES)
        has_exponential = _check_graph(data, self.path)
        self.in_pixels = has_exponential if boxes == "auto" else boxes == "pixels"
        self._session = _open_session(data, self.path)
        self.batch_size, self.input_hw = self._read_input()
        self.strides, self.num_classes = self._probe()

    def detect(self, photos: Sequence[np.ndarray], rules: DetectorRules, names: Sequence[str]) -> list[list[FoundBox]]:
        """Return the boxes of each photo, the highest score first.

        Args:
            photos: uint8 (H, W, 3) RGB.
            names: of the photos, for errors.
        Raises:
            DataError: the graph fails, or gives scores that are none or boxes that are not finite.
        """
        size = self.batch_size or max(1, len(photos))
        found: list[list[FoundBox]] = []
        for start in range(0, len(photos), size):
            chosen = photos[start : start + size]
            placed = [place_photo(photo, self.input_hw) for photo in chosen]
            pixels = np.stack([pixels for pixels, _ in placed])  # (B, 3, H, W)
            if len(chosen) < size:  # the graph takes complete batches alone
                pixels = np.concatenate([pixels, np.repeat(pixels[-1:], size - len(chosen), 0)])
            rows = self._run(pixels, f"{self.path}: on {names[start]}")  # (B, A, 5 + classes)
            for i, (_, scale) in enumerate(placed):
                origin = f"{self.path}: on {names[start + i]}"
                check_scores(rows[i], origin)
                found.append(choose_boxes(self._boxes(rows[i]), rows[i], scale, rules, origin))
        return found

    def _boxes(self, rows: np.ndarray) -> np.ndarray:
        """Return the boxes of rows (A, 5 + classes): centre and size in input pixels, float64 (A, 4)."""
        given = rows[:, BOX].astype(np.float64)
        return given if self.in_pixels else decode_boxes(given, self.input_hw, self.strides)

    def _read_input(self) -> tuple[int | None, HW]:
        """Return the number of photos in a batch, None if it is free, and the size of a photo."""
        inputs = self._session.get_inputs()
        found = [f"{value.name} {value.type} {tuple(value.shape)}" for value in inputs]
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
            raise DataError(
                f"{self.path}: takes {', '.join(found)}; YOLOX's form has one input, float32 (batch, 3, height, width);"
                f" {MEND}"
            )
        batch, channels, height, width = inputs[0].shape
        if not isinstance(height, int) or not isinstance(width, int):
            raise DataError(
                f"{self.path}: the size of its input is free ({found[0]}); export it again with a fixed height and "
                "width (a free batch may stay)"
            )
        is_whole = height % STRIDES[-1] == 0 and width % STRIDES[-1] == 0 and min(height, width) > 0
        if channels != 3 or not is_whole:
            raise DataError(
                f"{self.path}: takes {found[0]}; YOLOX's form has 3 channels, and a height and a width that are "
                f"multiples of {STRIDES[-1]}; {MEND}"
            )
        return batch if isinstance(batch, int) and batch > 0 else None, (height, width)

    def _probe(self) -> tuple[tuple[int, ...], int]:
        """Run the graph on grey. Return the strides of its grids and its number of classes."""
        outputs = self._session.get_outputs()
        if len(outputs) != 1:
            raise DataError(
                f"{self.path}: gives {len(outputs)} outputs ({', '.join(value.name for value in outputs)}); YOLOX's "
                f"form has one, without a suppression of boxes in the graph; {MEND}"
            )
        size = self.batch_size or 1
        grey = np.full((size, 3, *self.input_hw), GREY, np.float32)
        shape = self._run(grey, str(self.path)).shape
        num_rows = {num_cells(self.input_hw, strides): strides for strides in (STRIDES, STRIDES_P6)}
        if len(shape) != 3 or shape[0] != size or shape[1] not in num_rows or shape[2] <= CLASSES.start:
            height, width = self.input_hw
            raise DataError(
                f"{self.path}: gives {tuple(shape)}; for {height} x {width} pixels YOLOX's form gives ({size}, "
                f"{num_cells(self.input_hw, STRIDES)}, 5 + classes): a row for each cell of the grids of strides "
                f"{', '.join(map(str, STRIDES))}; {MEND}"
            )
        return num_rows[shape[1]], shape[2] - CLASSES.start

    def _run(self, pixels: np.ndarray, origin: str) -> np.ndarray:
        """Return the output for pixels (B, 3, H, W)."""
        (value,) = self._session.get_inputs()
        try:
            output: np.ndarray = self._session.run(None, {value.name: pixels})[0]
        except Exception as error:  # the errors of ONNX Runtime have no class in common but this
            raise DataError(f"{origin}: the detector cannot be run ({_first_line(error)}); {MEND}") from error
        return output


def place_photo(photo: np.ndarray, input_hw: HW) -> tuple[np.ndarray, float]:
    """Return a photo, uint8 (H, W, 3) RGB, as a detector's input, float32 (3, h, w), and the scale from it to there.

    It is resized bilinearly without antialiasing, as OpenCV does, to whole pixels that are rounded down.
    """
    height, width = photo.shape[:2]
    scale = min(input_hw[0] / height, input_hw[1] / width)
    size = max(1, int(height * scale)), max(1, int(width * scale))
    pixels = torch.from_numpy(np.ascontiguousarray(photo[:, :, ::-1])).permute(2, 0, 1)[None].float()  # (1, 3, H, W)
    if size != (height, width):
        pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False).round()
    placed = np.full((3, *input_hw), GREY, np.float32)
    placed[:, : size[0], : size[1]] = pixels[0].numpy()
    return placed, scale


def num_cells(input_hw: HW, strides: Sequence[int]) -> int:
    """Return how many cells the grids of some strides have together."""
    return sum((input_hw[0] // stride) * (input_hw[1] // stride) for stride in strides)


def decode_boxes(rows: np.ndarray, input_hw: HW, strides: Sequence[int]) -> np.ndarray:
    """Turn what a cell says into a box: yolox/models/yolo_head.py, `decode_outputs`.

    Args:
        rows: (A, 4) offset of the centre to the cell's corner in cells, X and Y, and the logarithm of width and height
            in cells. Cells go row by row, from the smallest stride to the largest.
    Returns:
        (A, 4) centre, X and Y, width and height, in input pixels.
    """
    corners, sizes = [], []
    for stride in strides:
        num_rows, num_columns = input_hw[0] // stride, input_hw[1] // stride
        corners += [(x, y) for y, x in itertools.product(range(num_rows), range(num_columns))]
        sizes += [stride] * (num_rows * num_columns)
    stride_of = np.array(sizes, np.float64)[:, None]  # (A, 1)
    with np.errstate(over="ignore"):  # an infinite size is refused if its score counts
        return np.concatenate([(rows[:, :2] + np.array(corners)) * stride_of, np.exp(rows[:, 2:]) * stride_of], 1)


def check_scores(rows: np.ndarray, origin: str) -> None:
    """Refuse rows (A, 5 + classes) whose scores are not in 0..1, as without the last sigmoid. Raises DataError."""
    scores = rows[:, OBJECTNESS:]
    inside = (scores >= -SCORE_SLACK) & (scores <= 1 + SCORE_SLACK)  # NaN is not
    if not inside.all():
        raise DataError(
            f"{origin}: gives a score of {scores[~inside][0]:g}, and YOLOX's form has scores in 0..1, behind their "
            f"sigmoid; {MEND}"
        )


def choose_boxes(
    boxes: np.ndarray, rows: np.ndarray, scale: float, rules: DetectorRules, origin: str
) -> list[FoundBox]:
    """Return the boxes that the rules keep, the highest score first: yolox/utils/boxes.py, `postprocess`.

    Args:
        boxes: (A, 4) centre and size in input pixels.
        rows: (A, 5 + classes).
        scale: from original to input pixels.
    Raises:
        DataError: a box that would be kept is not finite.
    """
    classes = rows[:, CLASSES].argmax(1)
    scores = np.clip(rows[:, OBJECTNESS] * rows[np.arange(len(rows)), CLASSES.start + classes], 0, 1)
    chosen = np.flatnonzero(scores >= rules.least_score)
    centres, sizes = boxes[chosen, :2], boxes[chosen, 2:]
    corners = np.concatenate([centres - sizes / 2, centres + sizes / 2], 1) / scale  # (N, 4)
    if not np.isfinite(corners).all():
        raise DataError(f"{origin}: gives a box that is not finite; {MEND}, or see --boxes")
    kept: list[int] = []
    for class_index in np.unique(classes[chosen]):
        of_class = np.flatnonzero(classes[chosen] == class_index)
        best = nms(
            torch.from_numpy(corners[of_class]), torch.from_numpy(scores[chosen][of_class]).double(), rules.nms_iou
        )
        kept += of_class[best.numpy()].tolist()
    kept.sort(key=lambda i: -scores[chosen[i]])
    found = []
    for i in kept:
        x0, y0, x1, y1 = corners[i].tolist()
        found.append(FoundBox((x0, y0, x1, y1), int(classes[chosen[i]]), float(scores[chosen[i]])))
    return found


def _check_graph(data: bytes, path: Path) -> bool:
    """Return whether a graph holds an exponential. Raises DataError when it is none, or needs further files."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise DataError(f"{path}: no ONNX graph ({_first_line(error)}); {MEND}") from error
    graphs = list(_graphs(model.graph))
    tensors = itertools.chain.from_iterable(_tensors(graph) for graph in graphs)
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
        raise DataError(f"{path}: keeps its weights in other files; save it as one file (onnx.save_model does)")
    return any(node.op_type == "Exp" for graph in graphs for node in graph.node)


def _graphs(graph: Any) -> Iterator[Any]:
    """Yield a graph and the graphs in its nodes, such as the branches of a condition."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _tensors(graph: Any) -> Iterator[Any]:
    """Yield the tensors that a graph holds: its weights and the constants of its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)


def _open_session(data: bytes, path: Path) -> Any:
    """Return a session of ONNX Runtime with as many threads as torch has. Raises DataError when it cannot be opened."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors: the exceptions say them
    usable = onnxruntime.get_available_providers()
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in usable]
    try:
        return onnxruntime.InferenceSession(data, options, providers=providers)
    except Exception as error:  # the errors of ONNX Runtime have no class in common but this
        raise DataError(f"{path}: no graph that ONNX Runtime can run ({_first_line(error)}); {MEND}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
