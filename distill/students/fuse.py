"""Structural re-parameterisation: batch norms folded into convolutions, and branches into one convolution.

A fused model computes what the model computes in eval mode, with fewer and larger steps. It is for evaluation,
benchmarks and export. Its tensors are not those of the checkpoint format, and it cannot be trained further.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.hooks import RemovableHandle

from distill.errors import DistillError

FUSED_MARK = "_is_fused"  # an attribute of fused encoders
MAX_DIFFERENCE = 1e-4  # between the fused output and the module's own, as a share of the largest value


@torch.inference_mode(False)  # inference tensors do not count changes in place
@torch.no_grad()
def fuse(module: nn.Module, pixels: Tensor | None = None) -> nn.Module:
    """Return a fused copy of a student encoder or of a complete promptable model, in eval mode.

    Two things are fused. A module with a method `fused()` is replaced by the module which that method returns
    (RepViT's branches). A batch norm is folded into a convolution if its input is the untouched output of that one
    convolution. One run of the encoder finds these pairs, so module names play no part. A second run checks the result.

    Args:
        module: an encoder, or a model with an `image_encoder`. It is not changed.
        pixels: the input (1, 3, S, S) of both runs; by default noise at the module's own `image_size`.
    Raises:
        DistillError: fusing would change the output by more than 1e-4 of its largest value.
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
    replacements: dict[nn.Module, nn.Module] = {conv: fuse_conv_bn_eval(conv, norm) for conv, norm in pairs}
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
    """Tell whether an encoder, or the encoder of a complete model, is fused."""
    return hasattr(getattr(module, "image_encoder", module), FUSED_MARK)


def _noise_for(encoder: nn.Module) -> Tensor:
    size = encoder.image_size
    assert isinstance(size, int)
    like = next(encoder.parameters())
    noise = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    return noise.to(like.device, like.dtype)


def _fused_branches(part: nn.Module) -> nn.Module | None:
    """Return one convolution for a module with branches; return None for a module without."""
    fused = getattr(part, "fused", None)
    if fused is None:
        return None
    assert callable(fused)
    one: nn.Module = fused()
    return one


def _replace(module: nn.Module, replacement: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """Replace each part of a module for which `replacement` returns another module."""
    if (new := replacement(module)) is not None:
        return new
    for name, child in module.named_children():
        setattr(module, name, _replace(child, replacement))
    return module


def _conv_norm_pairs(encoder: nn.Module, pixels: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Run an encoder and find its foldable pairs: each part ran once, the norm on the convolution's output."""
    source: dict[nn.BatchNorm2d, nn.Conv2d] = {}  # the convolution that made each norm's input
    calls: Counter[nn.Module] = Counter()

    def after_conv(conv: nn.Module, _: object, output: Tensor) -> None:
        calls[conv] += 1
        output.made_by = conv, output._version  # type: ignore[attr-defined] # no operation hands this mark on

    def before_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[norm] += 1
        conv, version = getattr(inputs[0], "made_by", (None, None))
        if conv is not None and version == inputs[0]._version:  # otherwise it was changed in place since
            assert isinstance(norm, nn.BatchNorm2d)
            source[norm] = conv

    handles = [*_add_hooks(encoder, after_conv, before_norm)]
    try:
        encoder(pixels)
    finally:
        for handle in handles:
            handle.remove()
    uses = Counter(source.values())
    once = [(conv, norm) for norm, conv in source.items() if calls[conv] == calls[norm] == uses[conv] == 1]
    return [(conv, norm) for conv, norm in once if norm.running_mean is not None]


def _add_hooks(
    encoder: nn.Module,
    after_conv: Callable[[nn.Module, object, Tensor], None],
    before_norm: Callable[[nn.Module, tuple[Tensor, ...]], None],
) -> Iterator[RemovableHandle]:
    for part in encoder.modules():
        if isinstance(part, nn.Conv2d):
            yield part.register_forward_hook(after_conv)
        elif isinstance(part, nn.BatchNorm2d):
            yield part.register_forward_pre_hook(before_norm)


def _without_norm(norm: nn.BatchNorm2d) -> nn.Module:
    """Return what remains of a norm: nothing, or the activation of timm's BatchNormAct2d."""
    rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if isinstance(part, nn.Module)]
    return nn.Sequential(*rest) if rest else nn.Identity()
