"""ONNX files answer as torch does: the encoder for any batch, the decoder for any prompt, and both for a photo."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from distill.errors import DistillError
from distill.export.onnx import OnnxDecoder, export_decoder, export_encoder, export_onnx
from distill.geometry import boxes_to_prompt_frame, letterbox, points_to_prompt_frame
from distill.models.predictor import Predictor
from distill.models.sam import ModelSpec, PromptableModel, build_from_spec

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
    assert tuple(item.name for item in decoder.get_inputs()) == OnnxDecoder.INPUTS
    assert tuple(item.name for item in decoder.get_outputs()) == OnnxDecoder.OUTPUTS


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


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("kind", ["points", "box", "both"])
def test_both_files_answer_as_the_predictor(model, exported: Path, kind: str, with_mask: bool) -> None:
    predictor = Predictor(model)
    predictor.set_image(PHOTO)
    asked, coords, labels = prompt(kind, model.prompt_size)
    mask = np.random.default_rng(1).standard_normal((1, model.low_res_size, model.low_res_size)).astype(np.float32)
    expected = predictor.predict(**asked, mask_input=mask if with_mask else None)

    pixels = letterbox(PHOTO, model.image_size)[None].numpy()
    (embedding,) = session(exported / "encoder.onnx").run(None, {"pixels": pixels})
    values = (
        embedding,
        coords[None].astype(np.float32),
        labels[None].astype(np.float32),
        mask[None],
        np.array([float(with_mask)], np.float32),
        np.array(PHOTO.shape[:2], np.float32),
    )
    inputs = dict(zip(OnnxDecoder.INPUTS, values, strict=True))
    logits, iou, low_res = session(exported / "decoder.onnx").run(None, inputs)
    assert logits.shape == (1, 4, *PHOTO.shape[:2])
    np.testing.assert_allclose(iou[0, 1:], expected[1], atol=1e-4)
    np.testing.assert_allclose(low_res[0, 1:], expected[2], atol=1e-3)
    assert ((logits[0, 1:] > 0) == expected[0]).mean() > 0.999


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
