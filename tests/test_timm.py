"""timm backbones as students: levels, the cut at a stride, detail finer than the grid."""

from __future__ import annotations

import pytest
import torch

from distill.errors import DistillError
from distill.students import build_encoder
from distill.students.neck import PyramidNeck

SIZES = {"image_size": 64, "embedding_dim": 16, "embedding_size": 8}


def num_parameters(name: str) -> int:
    return sum(parameter.numel() for parameter in build_encoder(name, **SIZES).parameters())


@pytest.mark.parametrize("name", ["timm/tf_efficientnet_lite0", "timm/resnet10t", "timm/mobilenetv3_small_050"])
@pytest.mark.parametrize("stride", ["", "@16", "@8"])
def test_every_trainable_tensor_gets_a_gradient(name: str, stride: str) -> None:
    encoder = build_encoder(name + stride, **SIZES).train()
    embedding = encoder(torch.randn(2, 3, 64, 64))
    assert embedding.shape == (2, 16, 8, 8)
    (embedding * torch.randn_like(embedding)).sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_a_cut_backbone_is_smaller_and_its_tensors_keep_their_names() -> None:
    assert num_parameters("timm/tf_efficientnet_lite0@16") < 0.4 * num_parameters("timm/tf_efficientnet_lite0")
    whole = build_encoder("timm/tf_efficientnet_lite0", **SIZES).state_dict()
    cut = build_encoder("timm/tf_efficientnet_lite0@16", **SIZES).state_dict()
    assert {name for name, tensor in cut.items() if whole[name].shape != tensor.shape} == set()


def test_an_unknown_stride_is_named() -> None:
    with pytest.raises(DistillError, match="'@12' is no stride; give one of @4, @8"):
        build_encoder("timm/resnet10t@12", **SIZES)


def test_detail_inside_a_cell_reaches_the_embedding() -> None:
    """Two fine levels that differ only within cells, with equal means: interpolation could not tell them apart."""
    torch.manual_seed(0)
    neck = PyramidNeck([1], 8, 4, cells_per_level=[2]).eval()
    left = torch.zeros(1, 1, 8, 8)
    left[..., ::2] = 1
    with torch.no_grad():
        difference = (neck([left]) - neck([1 - left])).abs().max()
    assert difference > 0.01
