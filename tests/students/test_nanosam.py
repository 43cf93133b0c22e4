"""NanoSAM's encoder: size, work and names as published, at its own size and at others."""

from __future__ import annotations

import pytest
import torch

from distill.errors import DistillError
from distill.models.complexity import count_encoder
from distill.students import build_encoder


def test_size_and_work_are_the_published_ones() -> None:
    num_parameters, macs = count_encoder("nano_sam")
    assert round(num_parameters / 1e6, 1) == 15.8
    assert round(macs / 1e9, 1) == 43.6


def test_names_and_shapes() -> None:
    """The tensors are a ResNet-18 without its classifier, four upsampling layers, two projections, one position."""
    state = build_encoder("nano_sam").state_dict()
    own = {name: tuple(tensor.shape) for name, tensor in state.items() if not name.startswith("backbone.")}
    assert own == {
        "pos_embedding": (1, 256, 64, 64),
        "up_1.0.weight": (256, 512, 3, 3),
        "up_1.0.bias": (256,),
        "up_1.2.weight": (256, 256, 3, 3),
        "up_1.2.bias": (256,),
        "up_1.4.weight": (256, 256, 3, 3),
        "up_1.4.bias": (256,),
        "up_1.6.weight": (256, 256, 3, 3),
        "up_1.6.bias": (256,),
        "proj.0.weight": (256, 256, 3, 3),
        "proj.0.bias": (256,),
        "proj.2.weight": (256, 256, 1, 1),
        "proj.2.bias": (256,),
    }
    backbone = [name for name in state if name.startswith("backbone.")]
    assert len(backbone) == 120 and "backbone.layer4.1.bn2.running_var" in backbone


def test_the_embedding_ends_without_a_norm() -> None:
    """The last convolution sets the scale of the embedding."""
    encoder = build_encoder("nano_sam", image_size=64, embedding_dim=16, embedding_size=4).eval()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = encoder(pixels) - encoder.pos_embedding
        encoder.proj[2].weight *= 3
        encoder.proj[2].bias *= 3
        torch.testing.assert_close(encoder(pixels) - encoder.pos_embedding, 3 * before, rtol=1e-4, atol=1e-4)


def test_a_size_that_the_strides_do_not_divide() -> None:
    with pytest.raises(DistillError, match="nano_sam: image_size 80 is not a multiple of 32"):
        build_encoder("nano_sam", image_size=80)
