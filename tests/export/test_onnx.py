"""ONNX files answer as torch does: the encoder for any batch, the decoder for any prompt, and both for a photo."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from distill.errors import DistillError
from distill.export.decoder import DecoderForm
from distill.export.onnx import Shapes, export_decoder, export_encoder, export_onnx
from distill.geometry import boxes_to_prompt_frame, letterbox, masks_to_original, points_to_prompt_frame
from distill.models.predictor import Predictor
from distill.models.sam import ModelSpec, PromptableModel, build_from_spec
from distill.prompts.types import Prompts

PHOTO = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
POINTS, LABELS, BOX = [[30.0, 20.0], [60.0, 10.0]], [1, 0], [12.0, 8.0, 50.0, 41.0]


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module", params=[False, True], ids=["tokens", "painted"])
def model(request: pytest.FixtureRequest) -> PromptableModel:
    """Build a model whose prompt frame differs from its input, with and without painted prompts."""
    torch.manual_seed(0)
    return build_from_spec(ModelSpec("efficientvit_sam_t", 64, 32, 8, 64, norm_eps=1e-6, paint_prompts=request.param))


@pytest.fixture(scope="module")
def exported(model: PromptableModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "new"
    files = export_onnx(model, out)
    assert [file.path.name for file in files] == ["encoder.onnx", "decoder.onnx"]
    assert all(0 < file.difference < 1e-4 for file in files)
    return out


def test_what_is_written(model: PromptableModel, exported: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == ["decoder.onnx", "encoder.onnx", "model.json"]
    description = json.loads((exported / "model.json").read_text())
    assert (description["image_size"], description["prompt_size"]) == (64, 128)
    assert description["spec"]["encoder"] == "efficientvit_sam_t"
    encoder, decoder = (session(exported / f"{part}.onnx") for part in ("encoder", "decoder"))
    assert [item.name for item in encoder.get_inputs()] == ["pixels"]
    assert {item.name: item.shape for item in decoder.get_inputs()} == {
        "image_embeddings": [1, 32, 8, 8],
        "point_coords": ["num_prompts", "num_points", 2],
        "point_labels": ["num_prompts", "num_points"],
        "mask_input": ["num_masks", 1, 32, 32],
        "has_mask_input": ["num_masks"],
    }
    assert {item.name: item.shape for item in decoder.get_outputs()} == {
        "low_res_masks": ["num_prompts", 4, 32, 32],
        "iou_predictions": ["num_prompts", 4],
    }
    steps = Counter(node.op_type for node in onnx.load(exported / "decoder.onnx").graph.node)
    assert not steps.keys() & {"OneHot", "Shape", "Size", "NonZero", "Loop", "If", "Einsum", "Floor"}


def prompt(kind: str, prompt_size: int) -> tuple[dict, np.ndarray, np.ndarray]:
    """Return a prompt for the predictor, and the same prompt as labelled points for the ONNX file."""
    hw = PHOTO.shape[:2]
    points, corners = (np.array(values, np.float64) for values in (POINTS, BOX))
    points, corners = points_to_prompt_frame(points, hw, prompt_size), boxes_to_prompt_frame(corners, hw, prompt_size)
    if kind == "points":  # without a box, segment_anything adds a padding point
        coords, labels = np.concatenate([points, [[0, 0]]]), [*LABELS, -1]
        return {"point_coords": POINTS, "point_labels": LABELS}, coords, np.array(labels)
    coords = corners.reshape(2, 2)
    if kind == "box":
        return {"box": BOX}, coords, np.array([2, 3])
    asked = {"box": BOX, "point_coords": POINTS, "point_labels": LABELS}
    return asked, np.concatenate([points, coords]), np.array([*LABELS, 2, 3])


def run(path: Path, *values: np.ndarray) -> list[np.ndarray]:
    opened = session(path)
    return opened.run(None, {item.name: value for item, value in zip(opened.get_inputs(), values, strict=True)})


@pytest.mark.parametrize("with_mask", [False, True])
def test_both_files_answer_as_the_predictor(model, exported: Path, with_mask: bool) -> None:
    """Prompts of three kinds and lengths in one call: points of the label -2 fill the shorter ones."""
    predictor = Predictor(model)
    predictor.set_image(PHOTO)
    asked, coords, labels = zip(*(prompt(kind, model.prompt_size) for kind in ("points", "box", "both")), strict=True)
    longest = max(map(len, labels))
    fill = [(0, longest - len(row)) for row in labels]
    coords = np.stack([np.pad(row, [by, (0, 0)], constant_values=7) for row, by in zip(coords, fill, strict=True)])
    labels = np.stack([np.pad(row, by, constant_values=-2) for row, by in zip(labels, fill, strict=True)])
    mask = np.random.default_rng(1).standard_normal((3, 1, model.low_res_size, model.low_res_size)).astype(np.float32)
    expected = [
        predictor.predict(**prompts, mask_input=mask[i] if with_mask else None) for i, prompts in enumerate(asked)
    ]
    (embedding,) = run(exported / "encoder.onnx", letterbox(PHOTO, model.image_size)[None].numpy())
    points = coords.astype(np.float32), labels.astype(np.float32)
    has_mask = np.full(3, with_mask, np.float32)
    low_res, iou = run(exported / "decoder.onnx", embedding, *points, mask, has_mask)
    np.testing.assert_allclose(iou[:, 1:], [answer[1] for answer in expected], atol=1e-4)
    np.testing.assert_allclose(low_res[:, 1:], [answer[2] for answer in expected], atol=1e-3)
    if not with_mask:  # one mask stands for all
        again, _ = run(exported / "decoder.onnx", embedding, *points, mask[:1], has_mask[:1])
        np.testing.assert_allclose(again, low_res, atol=1e-5)


@pytest.fixture(scope="module")
def photo_decoder(model: PromptableModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the decoder as some clients want it: points in another frame, padding as they come, the photo's size."""
    path = tmp_path_factory.mktemp("onnx") / "decoder.onnx"
    form = DecoderForm("single", photo_size=True, point_frame=64, mask_side=256, mends_padding=True)
    export_decoder(model, path, form=form)
    return path


@pytest.mark.parametrize("hw", [(50, 70), (70, 51), (33, 200)])
@pytest.mark.parametrize("num_padding", [0, 1, 3])
def test_masks_of_the_photos_size(model, photo_decoder: Path, hw: tuple[int, int], num_padding: int) -> None:
    """Every photo's shape, and any padding of the client's beside a box or without one, is as the predictor has it."""
    embedding = torch.randn(1, 32, 8, 8, generator=torch.Generator().manual_seed(2))
    for kind in ("points", "box"):
        _, coords, labels = prompt(kind, model.prompt_size)
        given = Prompts(torch.zeros(1, dtype=torch.long))
        if kind == "box":
            given.boxes_xyxy = torch.tensor(coords, dtype=torch.float32).reshape(1, 4)
        else:
            given.points_xy = torch.tensor(coords[None, :-1], dtype=torch.float32)
            given.point_labels = torch.tensor(labels[None, :-1])
            coords, labels = coords[:-1], labels[:-1]
        with torch.no_grad():
            low_res, iou = model.decode(embedding, given, multimask=False)
        scaled = np.pad(coords * 64 / model.prompt_size, [(0, num_padding), (0, 0)])
        found = run(
            photo_decoder,
            embedding.numpy(),
            scaled[None].astype(np.float32),
            np.pad(labels, (0, num_padding), constant_values=-1)[None].astype(np.float32),
            np.zeros((1, 1, 256, 256), np.float32),
            np.full(1, -1, np.float32),  # osam's word for no mask
            np.array(hw, np.float32),
        )
        expected = masks_to_original(low_res, hw, model.prompt_size)
        np.testing.assert_allclose(found[0], expected.numpy(), atol=1e-4)
        np.testing.assert_allclose(found[1], iou.numpy(), atol=1e-5)


def test_fixed_shapes(model: PromptableModel, tmp_path: Path) -> None:
    shapes = Shapes(batch=2, prompts=3, points=2)
    encoder = export_encoder(model, tmp_path / "encoder.onnx", shapes=shapes)
    decoder = export_decoder(model, tmp_path / "decoder.onnx", shapes=shapes)
    assert session(encoder.path).get_inputs()[0].shape == [2, 3, 64, 64]
    assert [item.shape[0] for item in session(decoder.path).get_inputs()] == [1, 3, 3, 3, 3]
    assert session(decoder.path).get_outputs()[0].shape == [3, 4, 32, 32]


def test_any_batch(model: PromptableModel, exported: Path) -> None:
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    (found,) = session(exported / "encoder.onnx").run(None, {"pixels": pixels.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, model.encode(pixels).numpy(), atol=1e-4)


def test_an_old_opset_is_named(model: PromptableModel, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="decoder.onnx: ONNX opset 7 cannot express the model"):
        export_decoder(model, tmp_path / "decoder.onnx", opset=7)
    assert list(tmp_path.iterdir()) == []


class Forgetful(torch.nn.Module):
    """An encoder whose trace is wrong, because it counts its calls in Python."""

    image_size = embedding_dim = embedding_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 1)
        self.calls = 0

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.conv(pixels) + self.calls


def test_a_file_that_answers_otherwise_is_not_written(tmp_path: Path) -> None:
    spec = ModelSpec("theirs", 4, embedding_dim=4, embedding_size=4, decoder_mlp_dim=8)
    model = build_from_spec(ModelSpec("edge_sam", 32, embedding_dim=16, embedding_size=4, decoder_mlp_dim=8))
    model.image_encoder, model.spec = Forgetful(), spec
    with pytest.raises(DistillError, match="onnxruntime's answer differs from torch's by .* nothing is written"):
        export_encoder(model, tmp_path / "encoder.onnx")
    assert list(tmp_path.iterdir()) == []
