"""The EfficientViT-SAM encoders: shapes, sizes, precision. Their numbers are in test_goldens.py."""

from __future__ import annotations

import pytest
import torch
from segment_anything.modeling.common import LayerNorm2d
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from distill.errors import DistillError
from distill.students import build_encoder
from distill.students.efficientvit import ARCHITECTURES, LiteMLA, relu_attention

TINY = "efficientvit_sam_t"


def tiny_encoder(image_size: int = 64, embedding_dim: int = 32, embedding_size: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return build_encoder(TINY, image_size=image_size, embedding_dim=embedding_dim, embedding_size=embedding_size).eval()


# E coarser than, equal to, and finer than every map that the neck fuses (8, 4 and 2 for S = 64)
@pytest.mark.parametrize(("embedding_dim", "embedding_size"), [(32, 2), (24, 4), (32, 8), (16, 11), (256, 64)])
def test_any_embedding(embedding_dim: int, embedding_size: int):
    encoder = tiny_encoder(64, embedding_dim, embedding_size)
    assert (encoder.image_size, encoder.embedding_dim, encoder.embedding_size) == (64, embedding_dim, embedding_size)
    assert encoder(torch.randn(2, 3, 64, 64)).shape == (2, embedding_dim, embedding_size, embedding_size)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_member_takes_another_size(name: str):
    encoder = build_encoder(name, image_size=64, embedding_dim=16, embedding_size=4).eval()
    assert encoder(torch.randn(1, 3, 64, 64)).shape == (1, 16, 4, 4)


@pytest.mark.parametrize(
    ("name", "image_size"), [(TINY, 72), ("efficientvit_sam_l0", 16), ("efficientvit_sam_xl0", 96)]
)
def test_image_size_must_fit_the_strides(name: str, image_size: int):
    with pytest.raises(DistillError, match=f"{name}: image_size {image_size} is not a multiple"):
        build_encoder(name, image_size=image_size)


def test_tiny_member_is_small():
    encoder = build_encoder(TINY, embedding_dim=256, embedding_size=32).eval()
    assert encoder.image_size == 256
    assert 1e6 < sum(p.numel() for p in encoder.parameters()) < 1.5e6
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.randn(1, 3, 256, 256))
    assert counter.get_total_flops() / 2 < 0.6e9


def test_every_norm_has_the_published_epsilon():
    norms = [m for m in tiny_encoder().modules() if isinstance(m, (nn.BatchNorm2d, LayerNorm2d))]
    assert norms and all(norm.eps == 1e-6 for norm in norms)


def test_gradient_reaches_every_parameter():
    encoder = tiny_encoder(image_size=128).train()
    encoder(torch.randn(2, 3, 128, 128)).square().sum().backward()
    without = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_channels_last_gives_the_same():
    encoder = tiny_encoder(image_size=128)
    pixels = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        expected = encoder(pixels)
        encoder.to(memory_format=torch.channels_last)
        actual = encoder(pixels.to(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_output_is_float32_under_autocast():
    encoder = tiny_encoder()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = encoder(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            actual = encoder(pixels)
    assert actual.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(actual.flatten(), expected.flatten(), 0) > 0.98


def test_attention_does_not_overflow_in_half_precision():
    attention = LiteMLA(channels=32, head_dim=16, kernel=3).eval()
    x = 500 * torch.randn(1, 32, 16, 16)  # products of its keys and values pass 65504, the largest float16
    with torch.no_grad():
        expected = attention(x)
        with torch.autocast("cpu", torch.float16):
            actual = attention(x)
    assert actual.isfinite().all()
    assert torch.nn.functional.cosine_similarity(actual.float().flatten(), expected.flatten(), 0) > 0.99


@pytest.mark.parametrize("num_positions", [4, 16, 17, 100])  # 16 per head: the order of products switches above
def test_both_orders_of_attention_are_one_function(num_positions: int):
    query, key, value = torch.randn(3, 2, 3, 16, num_positions, dtype=torch.float64)
    query, key = query.relu(), key.relu()
    weights = query.transpose(2, 3) @ key  # (B, heads, queries, keys)
    expected = (weights / weights.sum(3, keepdim=True)) @ value.transpose(2, 3)
    torch.testing.assert_close(relu_attention(query, key, value), expected.transpose(2, 3))


@pytest.mark.parametrize("num_positions", [4, 100])
def test_attention_of_nothing_is_zero(num_positions: int):
    nothing = torch.zeros(1, 1, 16, num_positions)
    assert relu_attention(nothing, nothing, torch.randn(1, 1, 16, num_positions)).eq(0).all()
