"""The contract of every registered student, tested at small sizes: what stages, evaluation and export rely on."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from distill.export.onnx import export_encoder
from distill.models.checkpoint import load_model, save_model
from distill.models.sam import ModelSpec, PromptableModel, build_from_spec
from distill.students import STUDENTS, build_encoder, check_student_name
from distill.students.fuse import fuse
from distill.students.layers import _pool_by_products
from distill.students.timm_names import TIMM_PREFIX

IMAGE_SIZE, EMBEDDING_DIM, EMBEDDING_SIZE = 128, 16, 8
TIMM = tuple(
    TIMM_PREFIX + name for name in ("resnet18", "mobilenetv3_small_050@16+sam", "vit_tiny_patch16_224.augreg_in21k")
)
# ViT-L and ViT-H are ViT-B's code with other numbers, and take gigabytes.
NAMES = [*(name for name in STUDENTS if name not in ("sam_vit_l", "sam_vit_h")), *TIMM]
LARGE = ("efficientvit_sam_xl0", "efficientvit_sam_xl1", "sam_vit_b")
MODELS = [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in NAMES]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Iterator[PromptableModel]:
    """Build a small model of each student in eval mode, with batch statistics of noise. Tests do not change it."""
    name = request.param
    with torch.random.fork_rng():
        torch.manual_seed(0)
        spec = ModelSpec(
            name,
            IMAGE_SIZE,
            embedding_dim=EMBEDDING_DIM,
            embedding_size=EMBEDDING_SIZE,
            decoder_mlp_dim=32,
            norm_eps=check_student_name(name).norm_eps,
        )
        built = build_from_spec(spec)
        with torch.no_grad():
            built.image_encoder.train()(pixels(4))
    yield built.eval()
    del built
    gc.collect()


def pixels(count: int) -> torch.Tensor:
    return torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(count))


def test_shape_and_attributes(model: PromptableModel):
    encoder = model.image_encoder
    with torch.no_grad():
        embedding = model.encode(pixels(2))
    assert embedding.shape == (2, EMBEDDING_DIM, EMBEDDING_SIZE, EMBEDDING_SIZE)
    assert embedding.dtype == torch.float32 and embedding.isfinite().all()
    assert (encoder.image_size, encoder.embedding_dim, encoder.embedding_size) == (
        IMAGE_SIZE,
        EMBEDDING_DIM,
        EMBEDDING_SIZE,
    )


def test_gradient_reaches_every_trainable_tensor(model: PromptableModel):
    encoder = copy.deepcopy(model.image_encoder).train()
    with torch.no_grad():
        for parameter in encoder.parameters():  # a residual branch that starts at zero would hide its inner tensors
            parameter += 1e-3 * torch.randn_like(parameter)
    embedding = encoder(pixels(2))
    target = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(0))
    (embedding * target).sum().backward()  # the sum of squares after a norm is a constant
    trainable = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    assert trainable
    without = [name for name, p in trainable.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    assert all(p.grad.isfinite().all() for p in trainable.values())


def test_eval_is_deterministic_and_blind_to_batch_mates(model: PromptableModel):
    batch = pixels(3)
    with torch.no_grad():
        together = model.encode(batch)
        assert torch.equal(model.encode(batch), together)
        for i in range(len(batch)):
            torch.testing.assert_close(model.encode(batch[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-4)


def test_saved_and_loaded(model: PromptableModel, tmp_path: Path):
    save_model(model, tmp_path / "student.safetensors")
    loaded = load_model(tmp_path / "student.safetensors")
    assert loaded.spec == model.spec
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    with torch.no_grad():
        assert torch.equal(loaded.encode(pixels(1)), model.encode(pixels(1)))


def test_fused_computes_the_same(model: PromptableModel):
    fused = fuse(model)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in fused.modules())
    with torch.no_grad():
        torch.testing.assert_close(fused.encode(pixels(2)), model.encode(pixels(2)), rtol=1e-4, atol=1e-4)


def test_traced_to_onnx(model: PromptableModel, tmp_path: Path):
    """The fused encoder gives the same for another batch than the traced one."""
    exported = export_encoder(model, tmp_path / "encoder.onnx")
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"pixels": pixels(2).numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, model.encode(pixels(2)).numpy(), rtol=1e-3, atol=1e-3)


FINER_THAN_GRID = ["efficientvit_sam_t", "mobile_sam", "edge_sam", "nano_sam", "timm/mobilenetv3_small_050@16+sam"]


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in FINER_THAN_GRID])
def test_a_coarser_grid_is_traced_to_onnx(name: str, tmp_path: Path):
    """A teacher's grid that does not divide the student's own: 8 cells become 6."""
    model = build_from_spec(ModelSpec(name, IMAGE_SIZE, embedding_dim=16, embedding_size=6, decoder_mlp_dim=32))
    exported = export_encoder(model.requires_grad_(False), tmp_path / "encoder.onnx")
    assert exported.difference < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_counting_needs_no_memory(name: str):
    """Every student runs on the meta device at its own size, with SAM's embedding."""
    size = check_student_name(name).image_size
    with torch.device("meta"), torch.no_grad():
        embedding = build_encoder(name).eval()(torch.empty(1, 3, size, size))
    assert embedding.shape == (1, 256, 64, 64)


@pytest.mark.parametrize(("cells", "grid"), [(64, 48), (8, 6), (7, 3), (12, 4)])
def test_pooling_in_graphs_is_adaptive_pooling(cells: int, grid: int):
    maps = torch.randn(2, 3, cells, cells, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(_pool_by_products(maps, grid), torch.nn.functional.adaptive_avg_pool2d(maps, grid))
