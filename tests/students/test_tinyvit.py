"""TinyViT: sizes, windows, and the attention bias that must follow its weights. Its numbers are in test_goldens.py."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from distill.config.schema import OptimConfig
from distill.errors import DistillError
from distill.models.sam import ModelSpec, build_from_spec
from distill.stages.optim import freeze_parts
from distill.students import build_encoder
from distill.students.tinyvit import SIZES, Attention, TinyViTBlock, TinyViTEncoder

NAMES = sorted(SIZES)


def encoder_of(name: str = "mobile_sam", embedding_size: int = 4) -> TinyViTEncoder:
    torch.manual_seed(0)
    return build_encoder(name, image_size=64, embedding_dim=16, embedding_size=embedding_size).eval()


# What the ImageNet models have (TinyViT, paper, table 3: 5.4, 11.0 and 21.2 M), classifier included, neck left out.
@pytest.mark.parametrize(
    ("name", "millions"), [("mobile_sam", 5.4), ("tinyvit_sam_11m", 11.0), ("tinyvit_sam_21m", 21.2)]
)
def test_parameters(name: str, millions: float):
    with torch.device("meta"):
        encoder = build_encoder(name)
    count = sum(p.numel() for key, p in encoder.named_parameters() if not key.startswith("neck"))
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("embedding_size", [2, 4, 7, 16])
def test_any_grid(embedding_size: int):
    with torch.no_grad():
        assert encoder_of(embedding_size=embedding_size)(torch.randn(2, 3, 64, 64)).shape == (
            2,
            16,
            *[embedding_size] * 2,
        )


def test_image_size_must_fit_the_stride():
    with pytest.raises(DistillError, match="mobile_sam: image_size 72 is not a multiple of 16"):
        build_encoder("mobile_sam", image_size=72)


def test_bias_follows_every_load():
    """The bias is never stale: not after a load by copy or by assignment, a change in place, or train() and eval()."""
    pixels = torch.randn(1, 3, 64, 64)
    source = encoder_of()
    for module in source.modules():
        if isinstance(module, Attention):
            torch.nn.init.normal_(module.attention_biases)
    state = source.state_dict()
    assert not any("relative_index" in key or key.endswith(".ab") for key in state)
    with torch.no_grad():
        expected = source(pixels)
        loaded = encoder_of()
        assert not torch.allclose(loaded(pixels), expected, atol=1e-3)  # random weights, and a first pass
        loaded.load_state_dict(state)
        torch.testing.assert_close(loaded(pixels), expected)
        assigned = encoder_of()
        assigned.load_state_dict(state, assign=True)
        torch.testing.assert_close(assigned(pixels), expected)
        swapped = copy.deepcopy(loaded)
        for target, parameter in zip(swapped.parameters(), source.parameters(), strict=True):
            target.data = parameter.data + 0.01  # as weight averaging swaps weights in
        for parameter in source.parameters():
            parameter.add_(0.01)
        torch.testing.assert_close(swapped(pixels), source(pixels))
        torch.testing.assert_close(swapped.train().eval()(pixels), source(pixels))


def test_bias_is_one_number_per_distance():
    attention = Attention(width=8, num_heads=2, window=3)
    index = attention.relative_index
    assert index.shape == (9, 9) and index.diagonal().eq(0).all() and index.eq(index.T).all()
    assert index[0].tolist() == list(range(9))  # the corner sees every distance once, row by row
    assert index[4].tolist() == [4, 3, 4, 1, 0, 1, 4, 3, 4]


def test_windows_are_cut_and_put_back():
    """A window attends as its patch alone does, and a map that windows do not fill is padded with zeros."""
    torch.manual_seed(0)
    x = torch.randn(2, 8, 6, 9)
    block = TinyViTBlock(8, num_heads=2, window=3).eval()
    with torch.no_grad():
        out = block._attend(x)
        patch = x[:, :, 3:6, 6:9]
        expected = block.attn(patch.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (3, 3))
        torch.testing.assert_close(out[:, :, 3:6, 6:9], expected)
        ragged = block._attend(x[:, :, :5, :8])
        padded = block._attend(F.pad(x[:, :, :5, :8], (0, 1, 0, 1)))
        torch.testing.assert_close(ragged, padded[:, :, :5, :8])


def test_the_classifier_never_trains():
    model = build_from_spec(ModelSpec("mobile_sam", 64, embedding_dim=16, embedding_size=4, decoder_mlp_dim=32))
    freeze_parts(model, OptimConfig())
    frozen = {name for name, p in model.image_encoder.named_parameters() if not p.requires_grad}
    assert frozen == {"norm_head.weight", "norm_head.bias", "head.weight", "head.bias"}


def test_output_is_float32_under_autocast():
    encoder, pixels = encoder_of(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = encoder(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            actual = encoder(pixels)
    assert actual.dtype == torch.float32
    assert F.cosine_similarity(actual.flatten(), expected.flatten(), 0) > 0.98
