"""The gate of exports: what passes is written with its report; what loses masks is refused, and its layers named."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from PIL import Image

from distill.data.rle import encode_mask
from distill.errors import DataError, DistillError
from distill.export.blame import bisect
from distill.export.judge import Judge, JudgeSet
from distill.export.precision import half_tensor
from distill.export.run import Request, export_model
from distill.models.sam import ModelSpec, PromptableModel, build_from_spec

SPEC = ModelSpec("timm/mobilenetv3_small_050@16+sam", 64, 32, 4, 64)


@pytest.fixture(scope="module")
def model() -> PromptableModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_from_spec(SPEC).requires_grad_(False)


def write_set(folder: Path, hw: tuple[int, int] = (60, 80)) -> JudgeSet:
    """Write two photos with two instances each."""
    images, annotations = [], []
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (*hw, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i, "height": hw[0], "width": hw[1], "file_name": f"{i}.png"})
        for k, (top, left) in enumerate([(2, 3), (9, 12)]):
            mask = np.zeros(hw, bool)
            mask[top : top + 10, left : left + 9] = True
            rle = encode_mask(mask)
            annotations.append({"id": 2 * i + k, "image_id": i, "category_id": 1, "segmentation": rle, "area": 90})
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
    return JudgeSet(folder, path)


@pytest.fixture(scope="module")
def judge(model: PromptableModel, tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return Judge(model, [write_set(tmp_path_factory.mktemp("judge"))])


def test_half_precision_is_written_with_its_report(model: PromptableModel, judge: Judge, tmp_path: Path):
    written = export_model(model, tmp_path / "out", Request(precision="fp16"), judge)
    assert written.agreement is not None and written.agreement.least > 0.99
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["agreement"]["num_prompts"] == 8 and report["agreement"]["cosine"] > 0.999
    assert report["stored_as_an_engine_stores_it"]["boxes"] > 0.99
    described = json.loads((tmp_path / "out" / "model.json").read_text())
    assert set(described["files"]) == {"encoder.onnx", "decoder.onnx"} == set(report["files"])
    graph = onnx.load(tmp_path / "out" / "decoder.onnx").graph
    assert {item.type.tensor_type.elem_type for item in (*graph.input, *graph.output)} == {TensorProto.FLOAT}
    held = {item.name: item.data_type for item in graph.initializer}
    by_kind = Counter(held[node.input[1]] for node in graph.node if node.op_type == "MatMul" and node.input[1] in held)
    assert by_kind[TensorProto.FLOAT16] > 20
    norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
    assert norms and all(held[node.input[1]] == TensorProto.FLOAT for node in norms)


def test_a_decoder_is_judged_alone_on_each_photos_own_embedding(model: PromptableModel, tmp_path: Path):
    """Photos of nuclei begin alike: with the same dark rows."""
    judged = write_set(tmp_path)
    for path in tmp_path.glob("*.png"):
        pixels = np.array(Image.open(path))
        pixels[:30] = 0
        Image.fromarray(pixels).save(path)
    judge, seen = Judge(model, [judged]), []

    def decode(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.append(feeds["image_embeddings"])
        count, side = len(feeds["point_coords"]), model.low_res_size
        return {"low_res_masks": np.zeros((count, 4, side, side)), "iou_predictions": np.zeros((count, 4))}

    assert judge.agreement(None, decode).cosine == pytest.approx(1)
    assert not np.array_equal(*seen)
    assert all(np.array_equal(one, photo.embedding) for one, photo in zip(seen, judge.photos, strict=True))


def overflowing(model: PromptableModel) -> PromptableModel:
    """Return the same function with weights for which an attention's scores leave the range of half precision."""
    changed = build_from_spec(model.spec)
    changed.load_state_dict(model.state_dict())
    attention = changed.mask_decoder.transformer.layers[1].cross_attn_token_to_image
    with torch.no_grad():
        attention.q_proj.weight *= 3e4
        attention.q_proj.bias *= 3e4
        attention.k_proj.weight *= 3e4
        attention.k_proj.bias *= 3e4
    return changed.requires_grad_(False)


def test_an_attention_that_overflows_is_refused_and_named(model: PromptableModel, judge: Judge, tmp_path: Path):
    changed = overflowing(model)
    strict = Judge(changed, judge.sets)
    with pytest.raises(DistillError, match=r"nothing is written. To blame: decoder\.layers\.1\.to_image") as refused:
        export_model(changed, tmp_path / "out", Request(precision="fp16"), strict)
    assert "the rest would pass" in str(refused.value) and "--keep decoder.layers.1.to_image" in str(refused.value)
    assert not (tmp_path / "out").exists()
    mended = export_model(changed, tmp_path / "out", Request(precision="fp16", mend=True), strict)
    assert mended.kept[0].startswith("decoder.layers.1.to_image")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["kept_in_float32"] == list(mended.kept)


def test_a_threshold_that_nothing_reaches(model: PromptableModel, judge: Judge, tmp_path: Path):
    other = Judge(model, judge.sets)
    for photo in other.photos:
        photo.masks = ~photo.masks
    with pytest.raises(DistillError, match="at least 0.999 is asked of both means, so nothing is written"):
        export_model(model, tmp_path / "out", Request(), other)
    assert not (tmp_path / "out").exists()


def test_a_photo_that_is_too_small(model: PromptableModel, tmp_path: Path):
    with pytest.raises(DataError, match="40 x 20 pixels; a photo of the judge has at least 32 on each side"):
        Judge(model, [write_set(tmp_path, (20, 40))])


@pytest.mark.parametrize("guilty", [{3}, {0}, {9}, {2, 7}, set(), set(range(10))])
def test_bisection_finds_the_guilty(guilty: set[int]):
    def passes(some: Sequence[str]) -> bool:
        return not guilty & {int(name) for name in some}

    blame = bisect([str(i) for i in range(10)], passes)
    assert {int(name) for name in blame.layers} <= guilty
    assert blame.complete == (len(guilty) <= 8) and len(blame.layers) == min(8, len(guilty))


def test_rounding_to_bfloat16_is_torchs():
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32) * 10.0 ** np.arange(-20, 20).repeat(25)
    values = values.astype(np.float32)
    found = np.frombuffer(half_tensor(values, "x", TensorProto.BFLOAT16, True).raw_data, np.float32)
    np.testing.assert_array_equal(found, torch.from_numpy(values).bfloat16().float().numpy())


def test_int8_is_calibrated_and_leaves_layers_out(model: PromptableModel, judge: Judge, tmp_path: Path):
    calibration = [photo.pixels for photo in judge.photos] * 4
    request = Request(precision="int8", calibration=calibration, least_iou=0.3, keep=("encoder.neck",))
    export_model(model, tmp_path, request, judge)
    graph = onnx.load(tmp_path / "encoder.onnx").graph
    scaled = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    convolutions = {node.name: set(node.input[:2]) <= scaled for node in graph.node if node.op_type == "Conv"}
    assert {is_scaled for name, is_scaled in convolutions.items() if name.startswith("/neck/")} == {False}
    assert {is_scaled for name, is_scaled in convolutions.items() if not name.startswith("/neck/")} == {True}
    assert not any("Quantize" in node.op_type for node in onnx.load(tmp_path / "decoder.onnx").graph.node)


def test_tensorrt_gets_typed_graphs_and_the_commands(model: PromptableModel, judge: Judge, tmp_path: Path):
    report = export_model(model, tmp_path, Request(target="tensorrt", precision="bf16", least_iou=0.9), judge)
    assert report.agreement is None  # no runtime for it here
    assert report.stored is not None and report.stored.least > 0.9
    held = {item.data_type for item in onnx.load(tmp_path / "encoder.onnx").graph.initializer}
    assert TensorProto.BFLOAT16 in held
    script = (tmp_path / "build_engines.sh").read_text()
    assert "trtexec \\\n  --onnx=encoder.onnx" in script and "--stronglyTyped" in script
    assert "--optShapes=pixels:16x3x64x64" in script and "point_coords:64x16x2" in script
