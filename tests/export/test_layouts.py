"""Layouts of clients: photos go into the graph as they are, and the clients' own code gets our masks.

The clients are installed by `make test-clients`; without them their tests are skipped.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image, ImageDraw

from distill.errors import DistillError
from distill.export.layouts import client_form
from distill.export.onnx import trace_encoder
from distill.export.photo_input import read_photos
from distill.export.run import Request, export_model
from distill.export.trace import save_graph
from distill.geometry import letterbox
from distill.models.predictor import Predictor
from distill.models.sam import ModelSpec, PromptableModel, build_from_spec

SPEC = ModelSpec("timm/mobilenetv3_small_050@16+sam", 128, 32, 8, 64)
FULL_SIZE = ModelSpec("timm/mobilenetv3_small_050@16+sam", 1024, 32, 64, 64)
SAM_SHAPED = ModelSpec("timm/mobilenetv3_small_050@16+sam", 1024, 256, 64, 64)
BOX = [40.0, 30.0, 150.0, 120.0]
CLICKS, LABELS = [[100.0, 70.0], [20.0, 20.0]], [1, 0]


def build(spec: ModelSpec) -> PromptableModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_from_spec(spec).requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> PromptableModel:
    return build(SPEC)


def photo(hw: tuple[int, int] = (160, 213)) -> np.ndarray:
    """Draw shapes over noise."""
    noise = np.random.default_rng(0).integers(0, 90, (*hw, 3), np.uint8)
    image = Image.fromarray(noise)
    draw = ImageDraw.Draw(image)
    draw.ellipse(BOX, fill=(220, 180, 40))
    draw.rectangle((10, 10, 35, 60), fill=(30, 60, 200))
    return np.asarray(image)


def iou(mask: np.ndarray, other: np.ndarray) -> float:
    return float((mask & other).sum() / max(1, (mask | other).sum()))


@pytest.mark.parametrize("pixels", ["uint8", "float32"])
@pytest.mark.parametrize("hw", [(160, 213), (300, 90), (50, 40), (128, 128)])
def test_a_photo_becomes_the_letterbox_inside_the_graph(model, tmp_path: Path, hw, pixels) -> None:
    graph = trace_encoder(model, what="encoder", opset=18, shapes=client_form("samexporter", model).shapes)
    merged = read_photos(graph.model, model.image_size, "photo", pixels)
    merged.graph.output.append(_value(merged, "photo_pixels"))
    save_graph(merged, tmp_path / "encoder.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    embedding, found = session.run(None, {"photo": photo(hw).astype(pixels)})
    expected = letterbox(photo(hw), model.image_size)[None]
    step = 1 / 57  # one level of 255
    assert np.abs(found - expected.numpy()).max() <= 1.01 * step
    assert np.abs(found - expected.numpy()).mean() < 0.25 * step  # of noise; Pillow rounds twice
    with torch.no_grad():
        np.testing.assert_allclose(embedding, model.encode(expected).numpy(), atol=0.1)


def _value(merged, name: str):
    import onnx

    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 128, 128])


def load(path: Path) -> ModuleType:
    """Import a file that was exported."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["box", "clicks"])
def test_samexporter(tmp_path: Path, kind: str) -> None:
    client = pytest.importorskip("samexporter.sam_onnx")
    model = build(FULL_SIZE)  # the client scales every photo to 1024 pixels; a smaller model's is scaled twice
    export_model(model, tmp_path, Request(layout="samexporter"))
    session = client.SegmentAnythingONNX(str(tmp_path / "model.encoder.onnx"), str(tmp_path / "model.decoder.onnx"))
    marks = [{"type": "rectangle", "data": BOX}]
    if kind == "clicks":
        marks = [{"type": "point", "data": xy, "label": label} for xy, label in zip(CLICKS, LABELS, strict=True)]
    found = session.predict_masks(session.encode(photo()[..., ::-1].copy()), marks)
    masks = _ours(model, kind)
    assert found.shape == (1, 4, 160, 213)
    assert min(iou(found[0, i] > 0, mask) for i, mask in enumerate(masks)) > 0.99


@pytest.mark.parametrize("kind", ["box", "clicks"])
def test_osam_and_labelme(tmp_path: Path, kind: str) -> None:
    osam = pytest.importorskip("osam")
    model = build(SPEC)
    export_model(model, tmp_path, Request(layout="labelme"))
    registered = load(tmp_path / "distill_osam.py")
    points, labels = (np.reshape(BOX, (2, 2)), [2, 3]) if kind == "box" else (np.array(CLICKS), LABELS)
    prompt = osam.types.Prompt(points=points, point_labels=np.array(labels))
    request = osam.types.GenerateRequest(model=registered.Distilled.name, image=photo(), prompt=prompt)
    (annotation,) = osam.apis.generate(request).annotations
    osam.apis.running_model = None
    box = annotation.bounding_box
    found = np.zeros((160, 213), bool)
    found[box.ymin : box.ymax + 1, box.xmin : box.xmax + 1] = annotation.mask
    assert iou(found, _ours(model, kind)[0]) > 0.999
    labelme = pytest.importorskip("labelme._automation")
    session = labelme.OsamSession(registered.Distilled.name)
    (again,) = session.run(photo(), "photo", points=points, point_labels=np.array(labels)).annotations
    assert np.array_equal(again.mask, annotation.mask)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["box", "clicks"])
def test_x_anylabeling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    client = pytest.importorskip("anylabeling.services.auto_labeling.efficientvit_sam")
    model = build(SAM_SHAPED)
    export_model(model, tmp_path, Request(layout="x-anylabeling"))
    encoder = client.SamEncoder(str(tmp_path / "encoder.onnx"))
    decoder = client.SamDecoder(str(tmp_path / "decoder.onnx"), 1024)
    encoded = encoder(photo())
    points, labels = (np.reshape(BOX, (2, 2)), [2, 3]) if kind == "box" else (np.array(CLICKS), LABELS)
    found = decoder.run(
        encoded["image_embedding"],
        encoded["origin_image_size"],
        points.astype(np.float32),
        np.array(labels, np.float32),
    )
    assert iou(found[0] > 0, _ours(model, kind)[0]) > 0.999


def _ours(model: PromptableModel, kind: str) -> list[np.ndarray]:
    """Return our own masks of a prompt: token 0, then the three of the multimask output."""
    predictor = Predictor(model)
    predictor.set_image(photo())
    prompt = {"box": BOX} if kind == "box" else {"point_coords": CLICKS, "point_labels": LABELS}
    single, _, _ = predictor.predict(**prompt, multimask_output=False)
    three, _, _ = predictor.predict(**prompt, multimask_output=True)
    return [*single, *three]


def test_a_model_that_a_client_cannot_take(model: PromptableModel) -> None:
    with pytest.raises(DistillError, match="it takes embeddings of 256 channels on a grid of 64"):
        client_form("x-anylabeling", model)
