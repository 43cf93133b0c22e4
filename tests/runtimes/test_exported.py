"""Exported folders as models: they answer as the torch model does, in each runtime that is installed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.errors import CheckpointError, DistillError, RunError
from distill.export.runtime_files import export_for_runtimes
from distill.models.predictor import Predictor
from distill.models.sam import ModelSpec, PromptableModel, build_from_spec
from distill.prompts.types import Prompts
from distill.runtimes.exported import ExportedModel, hash_model, is_exported
from distill.runtimes.sessions import check_runtime

SPEC = ModelSpec("efficientvit_sam_t", 64, embedding_dim=32, embedding_size=8, decoder_mlp_dim=64, norm_eps=1e-6)
NEAR = 2e-4  # of the largest value: different orders of sums


@pytest.fixture(scope="module")
def model() -> PromptableModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_from_spec(SPEC).requires_grad_(False)


@pytest.fixture(scope="module")
def folder(model: PromptableModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "onnx"
    export_for_runtimes(model, out)
    return out


@pytest.fixture(params=["onnxruntime", "openvino"])
def exported(request: pytest.FixtureRequest, folder: Path) -> ExportedModel:
    pytest.importorskip(request.param)
    return ExportedModel(folder, request.param)


def prompts(kind: str) -> Prompts:
    """Return prompts on two photos, not in their order."""
    random = torch.Generator().manual_seed(1)
    index = torch.tensor([1, 0, 1])
    if kind == "box":
        low = torch.rand(3, 2, generator=random) * 60
        return Prompts(index, boxes_xyxy=torch.cat([low, low + 40], 1))
    points = torch.rand(3, 2, 2, generator=random) * 128
    masks = torch.randn(3, 1, 32, 32, generator=random) if kind == "clicks_and_mask" else None
    return Prompts(index, points_xy=points, point_labels=torch.tensor([[1, 0]] * 3), mask_logits=masks)


@pytest.mark.parametrize("kind", ["box", "clicks", "clicks_and_mask"])
@pytest.mark.parametrize("multimask", [False, True])
def test_files_answer_like_torch(model, exported, kind, multimask):
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    embeddings = model.encode(pixels)
    assert (exported.encode(pixels) - embeddings).abs().max() < NEAR * embeddings.abs().max()
    wanted = model.decode(embeddings, prompts(kind), multimask=multimask)
    found = exported.decode(embeddings, prompts(kind), multimask=multimask)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() < NEAR * other.abs().max()


def test_the_fast_decoder_and_the_general_one_agree(model, exported, folder, tmp_path):
    """Expect the general decoder's answers where the folder has no fast one."""
    shutil.copytree(folder, tmp_path / "general")
    (tmp_path / "general" / "decoder_single.onnx").unlink()
    general = ExportedModel(tmp_path / "general", exported.runtime)
    embeddings = torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(3))
    for kind in ("box", "clicks"):
        found, wanted = (one.decode(embeddings, prompts(kind), multimask=False) for one in (exported, general))
        for one, other in zip(found, wanted, strict=True):
            assert one.shape == other.shape
            assert (one - other).abs().max() < NEAR * other.abs().max()


def test_a_predictor_takes_files_for_a_model(model, exported):
    photo = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    answers = []
    for answering in (model, exported):
        predictor = Predictor(answering)
        predictor.set_image(photo)
        answers.append(predictor.predict(box=[10, 5, 60, 40], multimask_output=False, return_logits=True)[0])
    assert answers[0].shape == answers[1].shape == (1, 48, 80)
    assert abs(answers[0] - answers[1]).max() < NEAR * abs(answers[0]).max()


def test_a_mask_alone_is_no_prompt_for_files(exported):
    alone = Prompts(torch.tensor([0]), mask_logits=torch.zeros(1, 1, 32, 32))
    with pytest.raises(DistillError, match="points and boxes"):
        exported.decode(torch.zeros(1, 32, 8, 8), alone, multimask=False)


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def describe(folder: Path, **changes: object) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_hash_tells_files_apart(folder, copied):
    assert is_exported(copied) and not is_exported(copied.parent)
    assert hash_model(copied) == hash_model(folder)
    (copied / "decoder.onnx").write_bytes((copied / "decoder.onnx").read_bytes() + b"\0")
    assert hash_model(copied) != hash_model(folder)


def test_a_changed_file_is_refused(copied):
    describe(copied, files={"encoder.onnx": "0" * 64})
    with pytest.raises(CheckpointError, match=r"encoder\.onnx: not the file that model\.json describes"):
        ExportedModel(copied, "onnxruntime")


def test_files_of_another_size_are_refused(copied):
    spec = json.loads((copied / "model.json").read_text())["spec"]
    describe(copied, spec={**spec, "embedding_dim": 64})
    with pytest.raises(CheckpointError, match="its input image_embeddings is"):
        ExportedModel(copied, "onnxruntime")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_damaged_file_is_refused(copied, runtime):
    pytest.importorskip(runtime)
    (copied / "encoder.onnx").write_bytes(b"no graph")
    with pytest.raises(RunError, match=r"encoder\.onnx: \w+ cannot load it"):
        ExportedModel(copied, runtime)


def test_a_runtime_that_is_absent_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RunError, match=r"pip install 'distill-sam\[openvino\]'"):
        check_runtime("openvino", "fp32")


def test_onnxruntime_has_no_precision_of_its_own():
    with pytest.raises(RunError, match="--precision bf16"):
        check_runtime("onnxruntime", "bf16")
