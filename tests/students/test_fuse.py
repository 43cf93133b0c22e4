"""Fusing: which pairs are found, what is not changed, and that the output stays the same."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import DistillError
from distill.models.sam import ModelSpec, build_from_spec
from distill.students import build_encoder
from distill.students.fuse import fuse

PIXELS = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def with_statistics(module: nn.Module) -> nn.Module:
    """Give norms statistics, weights and biases as after a long training."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(generator=generator)
            part.running_var.uniform_(0.5, 2, generator=generator)
            if part.affine:
                nn.init.uniform_(part.weight, 0.5, 2, generator=generator)
                nn.init.normal_(part.bias, generator=generator)
    return module.eval()


def count(module: nn.Module, sort: type[nn.Module]) -> int:
    return sum(isinstance(part, sort) for part in module.modules())


def fused_and_checked(module: nn.Module, pixels: Tensor = PIXELS) -> nn.Module:
    with_statistics(module)
    fused = fuse(module, pixels)
    torch.testing.assert_close(fused(pixels), module(pixels), rtol=1e-4, atol=1e-4)
    return fused


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_fold(bias: bool, affine: bool, groups: int):
    conv = nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=groups, bias=bias)
    norm = with_statistics(nn.BatchNorm2d(6, affine=affine))
    module = nn.Sequential(conv, norm).eval()
    fused = fuse(module, PIXELS)
    assert count(fused, nn.BatchNorm2d) == 0
    torch.testing.assert_close(fused(PIXELS), module(PIXELS))


def test_the_module_is_left_as_it_is():
    module = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).train()
    before = copy.deepcopy(module.state_dict())
    fused = fuse(module, PIXELS)
    assert module.training and not fused.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_norm_after_an_activation_stays():
    fused = fused_and_checked(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    )
    assert count(fused, nn.BatchNorm2d) == 1


def test_a_norm_after_an_activation_in_place_stays():
    fused = fused_and_checked(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4)))
    assert count(fused, nn.BatchNorm2d) == 1


def test_a_convolution_or_norm_used_twice_stays():
    shared = nn.Conv2d(3, 3, 1)
    norm = nn.BatchNorm2d(3)
    fused = fused_and_checked(nn.Sequential(shared, nn.BatchNorm2d(3), shared, norm, nn.Conv2d(3, 3, 1), norm))
    assert count(fused, nn.BatchNorm2d) == 2


class Branching(nn.Module):
    """A module that reads a convolution's output beside its norm: folding changes it, and no hook can see that."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.gelu(x) + self.norm(x)


def test_what_would_change_is_refused():
    with pytest.raises(DistillError, match="Branching cannot be fused: its output would change by"):
        fuse(with_statistics(Branching()), PIXELS)


def test_without_norms_nothing_is_run():
    module = nn.Linear(2, 2)
    assert torch.equal(fuse(module).weight, module.weight)


def test_inside_inference_mode():
    with torch.inference_mode():
        fused = fuse(with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), PIXELS)
    assert count(fused, nn.BatchNorm2d) == 0


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv3_small_050"])  # bn1 beside conv1; BatchNormAct2d
def test_timm_backbones(backbone: str):
    encoder = build_encoder(f"timm/{backbone}", image_size=64, embedding_dim=16, embedding_size=4)
    assert count(fused_and_checked(encoder, torch.randn(1, 3, 64, 64)), nn.BatchNorm2d) == 0


def test_a_whole_model():
    spec = ModelSpec("edge_sam", 64, embedding_dim=16, embedding_size=4, decoder_mlp_dim=32)
    model = with_statistics(build_from_spec(spec))
    fused = fuse(model)
    assert type(fused) is type(model) and fused.spec == spec
    assert count(fused, nn.BatchNorm2d) == 0 and count(model, nn.BatchNorm2d) > 0
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(fused.encode(pixels), model.encode(pixels), rtol=1e-4, atol=1e-4)
