"""Structural re-parameterisation: batch norms folded into the convolutions before them, branches into one convolution.

A fused model computes what the model computes in eval mode, with fewer and larger steps. It is for evaluation, bench
and export: its tensors are not those of the checkpoint format, and it is not trained further.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import DistillError

FUSED_MARK = "_is_fused"  # an attribute of fused encoders
MAX_DIFFERENCE = 1e-4  # of the fused output from the module's own, as a share of the largest value


@torch.no_grad()
def fold_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A new convolution that computes norm(conv(x)) in eval mode. The two given are left as they are."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    shift = -norm.running_mean * scale
    if norm.affine:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    folded = copy.deepcopy(conv)
    folded.weight = nn.Parameter(conv.weight * scale[:, None, None, None], requires_grad=conv.weight.requires_grad)
    folded.bias = nn.Parameter(shift if conv.bias is None else shift + conv.bias * scale)
    return folded


@torch.inference_mode(False)  # whose tensors count no changes in place
@torch.no_grad()
def fuse(module: nn.Module, pixels: Tensor | None = None) -> nn.Module:
    """A fused copy of a student encoder or of a whole promptable model, in eval mode.

    Two things are fused: a module with a method `fused()` gives way to what that returns (RepViT's branches), and each
    batch norm whose input is the untouched output of one convolution is folded into it. Such pairs are found by running
    the encoder once, so any module has them found, whatever its names; a second run checks the result.

    Args:
        module: an encoder, or a model with an `image_encoder`. It is left as it is.
        pixels: (1, 3, S, S) to run it on; by default noise at the module's own `image_size`.
    Raises:
        DistillError: an output that fusing would change by more than 1e-4 of its largest value.
    """
    module = copy.deepcopy(module).eval()
    encoder: nn.Module = getattr(module, "image_encoder", module)
    if not any(isinstance(part, nn.BatchNorm2d) for part in encoder.modules()):
        return module
    if pixels is None:
        pixels = _noise_for(encoder)
    expected = encoder(pixels)
    encoder = _replace(encoder, _fused_branches)
    pairs = _conv_norm_pairs(encoder, pixels)
    replacements: dict[nn.Module, nn.Module] = {conv: fold_norm(conv, norm) for conv, norm in pairs}
    replacements.update((norm, _without_norm(norm)) for _, norm in pairs)
    encoder = _replace(encoder, replacements.get)
    difference = (encoder(pixels) - expected).abs().max() / expected.abs().max()
    if not difference <= MAX_DIFFERENCE:
        raise DistillError(
            f"{type(encoder).__name__} cannot be fused: its output would change by {difference:.1e} of its largest "
            f"value (at most {MAX_DIFFERENCE:.0e}); run it as it is"
        )
    setattr(encoder, FUSED_MARK, True)
    if hasattr(module, "image_encoder"):
        module.image_encoder = encoder
        return module
    return encoder


def is_fused(module: nn.Module) -> bool:
    """Whether an encoder, or the encoder of a whole model, is a fused one."""
    return hasattr(getattr(module, "image_encoder", module), FUSED_MARK)


def _noise_for(encoder: nn.Module) -> Tensor:
    size = encoder.image_size
    assert isinstance(size, int)
    like = next(encoder.parameters())
    noise = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    return noise.to(like.device, like.dtype)


def _fused_branches(part: nn.Module) -> nn.Module | None:
    """What a module with branches gives as their sum in one convolution; None for a module without."""
    fused = getattr(part, "fused", None)
    if fused is None:
        return None
    assert callable(fused)
    one: nn.Module = fused()
    return one


def _replace(module: nn.Module, replacement: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """The module with every part replaced for which there is a replacement."""
    if (new := replacement(module)) is not None:
        return new
    for name, child in module.named_children():
        setattr(module, name, _replace(child, replacement))
    return module


def _conv_norm_pairs(encoder: nn.Module, pixels: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """The convolutions and norms of which each ran once, the norm on what the convolution gave."""
    source: dict[nn.BatchNorm2d, nn.Conv2d] = {}  # of each norm's input
    calls: Counter[nn.Module] = Counter()

    def after_conv(conv: nn.Module, _: Any, output: Tensor) -> None:
        calls[conv] += 1
        output.made_by = conv, output._version  # type: ignore[attr-defined] # a mark that no operation hands on

    def before_norm(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        calls[norm] += 1
        conv, version = getattr(inputs[0], "made_by", (None, None))
        if conv is not None and version == inputs[0]._version:  # else changed in place since
            source[norm] = conv

    handles = [*_hooks(encoder, after_conv, before_norm)]
    try:
        encoder(pixels)
    finally:
        for handle in handles:
            handle.remove()
    uses = Counter(source.values())
    once = [(conv, norm) for norm, conv in source.items() if calls[conv] == calls[norm] == uses[conv] == 1]
    return [(conv, norm) for conv, norm in once if norm.running_mean is not None]


def _hooks(encoder: nn.Module, after_conv: Any, before_norm: Any) -> Iterator[Any]:
    for part in encoder.modules():
        if isinstance(part, nn.Conv2d):
            yield part.register_forward_hook(after_conv)
        elif isinstance(part, nn.BatchNorm2d):
            yield part.register_forward_pre_hook(before_norm)


def _without_norm(norm: nn.BatchNorm2d) -> nn.Module:
    """What is left of a norm: nothing, or the activation of timm's BatchNormAct2d."""
    rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if isinstance(part, nn.Module)]
    return nn.Sequential(*rest) if rest else nn.Identity()
