"""RepViT for SAM: blocks, grids, branches. Its numbers are in test_goldens.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distill.errors import DistillError
from distill.students import build_encoder
from distill.students.repvit import ARCHITECTURES, RepVGGDW, RepViTEncoder, SqueezeExcite, round_to_multiple

NAMES = sorted(ARCHITECTURES)


def encoder_of(name: str, embedding_size: int = 4, image_size: int = 64) -> RepViTEncoder:
    torch.manual_seed(0)
    return build_encoder(name, image_size=image_size, embedding_dim=16, embedding_size=embedding_size).eval()


@pytest.mark.parametrize("embedding_size", [1, 4, 7, 16])
def test_any_grid(embedding_size: int):
    with torch.no_grad():
        out = encoder_of("edge_sam", embedding_size)(torch.randn(2, 3, 64, 64))
    assert out.shape == (2, 16, embedding_size, embedding_size)


@pytest.mark.parametrize(("name", "stride", "good"), [("edge_sam", 32, 96), ("repvit_sam", 16, 80)])
def test_image_size_must_fit_the_stride(name: str, stride: int, good: int):
    with torch.no_grad():
        assert encoder_of(name, 5, good)(torch.randn(1, 3, good, good)).shape == (1, 16, 5, 5)
    with pytest.raises(DistillError, match=f"{name}: image_size {good + 8} is not a multiple of {stride}"):
        build_encoder(name, image_size=good + 8)


@pytest.mark.parametrize(("name", "count"), [("edge_sam", 10), ("repvit_sam", 24)])
def test_number_of_squeezing_blocks(name: str, count: int):
    with torch.device("meta"):
        encoder = build_encoder(name)
    assert sum(isinstance(module, SqueezeExcite) for module in encoder.modules()) == count


def test_rounding_of_the_squeeze():
    assert [round_to_multiple(width / 4, 8) for width in (8, 48, 80, 96, 160, 640)] == [8, 16, 24, 24, 40, 160]


@pytest.mark.parametrize("norm_after_branches", [False, True])
def test_branches_are_one_convolution(norm_after_branches: bool):
    torch.manual_seed(0)
    mixer = RepVGGDW(6, norm_after_branches=norm_after_branches)
    x = torch.randn(4, 6, 9, 9)
    for _ in range(3):
        mixer(3 * x + 1)  # running statistics far from their first values
    mixer.eval()
    before = {name: tensor.clone() for name, tensor in mixer.state_dict().items()}
    fused = mixer.fused()
    assert isinstance(fused, nn.Conv2d) and fused.groups == 6
    torch.testing.assert_close(fused(x), mixer(x), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in mixer.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_output_is_float32_under_autocast(name: str):
    encoder, pixels = encoder_of(name), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = encoder(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            actual = encoder(pixels)
    assert actual.dtype == torch.float32
    assert F.cosine_similarity(actual.flatten(), expected.flatten(), 0) > 0.97
