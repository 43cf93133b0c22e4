"""Any timm `features_only` backbone as a student: timm/NAME[.TAG][@[FINEST-]COARSEST][+sam|+slim].

`@16` keeps the backbone up to its level of stride 16 and removes the stages after it. These hold most of the
parameters, and a grid of stride 8 or 16 does not need them. `@8-16` also ignores the levels finer than stride 8.
`+sam` uses SAM's neck on one level instead of a light pyramid over all levels; `+slim` makes the pyramid narrower and
its convolutions separable, which on SAM's grid costs a sixteenth.

A TAG names one of timm's pre-trained weights. The encoder's input is normalised by SAM's constants. With a TAG the
encoder converts it to the normalisation with which those weights were trained; without a TAG it does not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from distill.errors import CheckpointError, DistillError
from distill.geometry import PIXEL_MEAN, PIXEL_STD
from distill.students.finite import check_finite_weights
from distill.students.layers import SamNeck, to_grid
from distill.students.neck import PyramidNeck
from distill.students.timm_names import SLIM_NECK, Choice, parse_name
from distill.text import first_few

MAX_REDUCTION = 32  # the largest stride of a level that a neck takes
MAX_STRIDE_RATIO = 4  # between the strides of a level and of the grid, in either direction
MAX_PIXEL = 255  # SAM's constants are for values 0 to 255, timm's for 0 to 1
SAME_MAP = 1e-6  # two normalisations count as equal if scale and shift differ by less


class TimmEncoder(nn.Module):
    """A timm backbone and a neck: pixels (B, 3, S, S) -> embeddings (B, C, E, E).

    A pyramid fuses the levels from a quarter of the grid's stride to stride 32. SAM's neck takes the coarsest level
    that is no coarser than the grid. Strides in the name replace these limits.
    """

    pixel_scale: Tensor | None
    pixel_shift: Tensor | None

    def __init__(self, choice: Choice, *, image_size: int, embedding_dim: int, embedding_size: int) -> None:
        super().__init__()
        self.choice = choice
        self.image_size = image_size
        self.embedding_dim = embedding_dim
        self.embedding_size = embedding_size
        stride = image_size / embedding_size
        offered = _try_backbone(choice.backbone, image_size)
        levels = _pick_levels(choice, offered.reduction(), image_size, embedding_size)
        options = _size_options(choice.backbone, image_size)
        self.backbone: nn.Module = timm.create_model(choice.backbone, features_only=True, out_indices=levels, **options)
        self.is_channels_last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
        _cut_after(self.backbone, offered.module_name(levels[-1]))
        channels = [offered.channels()[i] for i in levels]
        if choice.sam_neck:
            self.neck: nn.Module = SamNeck(channels[-1], embedding_dim)
        else:
            cells = [max(1, int(stride / offered.reduction()[i])) for i in levels]
            slim = choice.neck == SLIM_NECK
            self.neck = PyramidNeck(channels, embedding_dim, embedding_size, cells_per_level=cells, slim=slim)
        pixel_map = _pixel_map(choice.backbone) if choice.has_tag else None
        scale, shift = (None, None) if pixel_map is None else (torch.tensor(v).view(1, 3, 1, 1) for v in pixel_map)
        self.register_buffer("pixel_scale", scale, persistent=False)
        self.register_buffer("pixel_shift", shift, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        if self.pixel_scale is not None and self.pixel_shift is not None:
            pixels = pixels * self.pixel_scale + self.pixel_shift
        features = self.backbone(pixels)
        if self.is_channels_last:
            features = [feature.permute(0, 3, 1, 2) for feature in features]  # (B, h, w, c) -> (B, c, h, w)
        embedding: Tensor = self.neck(to_grid(features[-1], self.embedding_size) if self.choice.sam_neck else features)
        return embedding


def _pixel_map(backbone: str) -> tuple[list[float], list[float]] | None:
    """Return the scale and shift (RGB) from SAM's normalisation to the one that timm's weights of this name expect.

    Return None if the two are the same, as for most ImageNet weights.
    """
    config = _config(backbone)
    scale = [ours / (MAX_PIXEL * std) for ours, std in zip(PIXEL_STD, config.std, strict=True)]
    shift = [
        (ours / MAX_PIXEL - mean) / std for ours, mean, std in zip(PIXEL_MEAN, config.mean, config.std, strict=True)
    ]
    is_same = all(abs(a - 1) < SAME_MAP and abs(b) < SAME_MAP for a, b in zip(scale, shift, strict=True))
    return None if is_same else (scale, shift)


def _config(backbone: str) -> Any:
    """Return timm's description of the weights of this name; without a tag, of its default weights."""
    return timm.get_pretrained_cfg(backbone)


def _size_options(backbone: str, image_size: int) -> dict[str, Any]:
    """Return the option that sets the input size of a backbone whose constructor fixes it, such as a ViT."""
    config = _config(backbone)
    return {"img_size": image_size} if config is not None and config.fixed_input_size else {}


def _try_backbone(backbone: str, image_size: int) -> Any:
    """Run a backbone once on the meta device, without memory or computation; return timm's description of its levels.

    Raises:
        DistillError: the backbone has no levels, or it cannot read images of this size.
    """
    try:
        with torch.device("meta"), torch.no_grad():
            whole = timm.create_model(backbone, features_only=True, **_size_options(backbone, image_size)).eval()
            features = whole(torch.empty(1, 3, image_size, image_size))
    except Exception as error:  # timm's code: the user needs the name and the error
        raise DistillError(
            f"timm/{backbone} cannot read {image_size} x {image_size} pixels: {type(error).__name__}: {error}"
        ) from error
    is_channels_last = getattr(whole, "output_fmt", "NCHW") == "NHWC"
    info: Any = whole.feature_info
    for reduction, feature in zip(info.reduction(), features, strict=True):
        side = feature.shape[1 if is_channels_last else 2]
        if side != -(-image_size // reduction):  # patches that reach over the right or bottom edge are not read
            raise DistillError(
                f"timm/{backbone}: image_size {image_size} is not a multiple of {reduction}, the width of its patches; "
                f"choose student.image_size={round(image_size / reduction) * reduction}"
            )
    return info


def _pick_levels(choice: Choice, reductions: list[int], image_size: int, embedding_size: int) -> list[int]:
    """Return the indices of the levels that the neck takes.

    Raises:
        DistillError: no level can reach the grid.
    """
    stride = image_size / embedding_size
    if choice.sam_neck and choice.coarsest is None:
        finest, coarsest = float(choice.finest or 1), max(stride, min(reductions))
    else:
        finest, coarsest = choice.finest or stride / MAX_STRIDE_RATIO, choice.coarsest or MAX_REDUCTION
    levels = [i for i, reduction in enumerate(reductions) if finest <= reduction <= coarsest]
    if not levels or min(reductions[i] for i in levels) > MAX_STRIDE_RATIO * stride:
        raise DistillError(
            f"timm/{choice.backbone}: levels of strides {reductions}, of which {finest:g} to {coarsest:g} count, "
            f"cannot reach a {embedding_size} x {embedding_size} grid from {image_size} pixels; choose "
            f"student.image_size near {16 * embedding_size}, or other strides: timm/NAME@FINEST-COARSEST"
        )
    return levels[-1:] if choice.sam_neck else levels


def _cut_after(backbone: nn.Module, last: str) -> None:
    """Remove the stages after the module `last`, such as "blocks.4", if its parent is a sequence of stages.

    In families without such a parent, timm's features_only wrapper has removed them already.
    """
    parent, _, place = last.rpartition(".")
    stages = dict(backbone.named_modules()).get(parent)
    if isinstance(stages, nn.Sequential) and place.isdigit():
        del stages[int(place) + 1 :]


def load_pretrained(encoder: TimmEncoder, weights: Mapping[str, Tensor] | None, *, source: str) -> None:
    """Load the weights of a classifier into a backbone, without its head and without the stages that were removed.

    Args:
        weights: under timm's names, or names that timm translates. None fetches those of the encoder's TAG from
            timm's hub.
        source: where the weights come from, for error messages.
    Raises:
        CheckpointError: the weights cannot be fetched, do not fit, are not finite, or were trained with another
            normalisation.
    """
    name = encoder.choice.backbone
    if not encoder.choice.has_tag and _pixel_map(name) is not None:
        raise CheckpointError(
            f"{source}: timm's weights of {name} were not trained on pixels normalised as SAM's; name the weights, so "
            f"that pixels are mapped: student.name=timm/{timm.list_pretrained(name + '.*')[0]}"
        )
    overlay = None if weights is None else {"state_dict": dict(weights), "num_classes": _num_classes(name, weights)}
    try:
        classifier = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, **_size_options(name, encoder.image_size)
        )
    except Exception as error:  # errors of timm, of the hub and of the network
        mend = "give a local file: student.pretrained=FILE" if weights is None else "the file is of another model"
        raise CheckpointError(f"{source}: {type(error).__name__}: {error}; {mend}") from error
    whole = classifier.state_dict()
    names = {own: _classifier_name(own) for own in encoder.backbone.state_dict()}
    if absent := [own for own, name in names.items() if name not in whole]:
        raise CheckpointError(f"{source}: no tensor for {len(absent)} of the backbone's: {first_few(absent)}")
    found = {own: whole[name] for own, name in names.items()}
    check_finite_weights(found, source)
    encoder.backbone.load_state_dict(found)


def _num_classes(backbone: str, weights: Mapping[str, Tensor]) -> int:
    """Return the width of the head in a classifier's file, which may differ from that of timm's own weights."""
    config = _config(backbone)
    head = weights.get(f"{config.classifier}.weight")
    return int(config.num_classes if head is None else len(head))


def _classifier_name(name: str) -> str:
    """Return a tensor's name in the classifier, given its name in the features_only form.

    The latter may begin with `model.`, or with `stages_0.` instead of `stages.0.`.
    """
    return re.sub(r"^(\w+?)_(\d+)\.", r"\1.\2.", name.removeprefix("model."))


def build(name: str, *, image_size: int, embedding_dim: int, embedding_size: int) -> TimmEncoder:
    """Build a timm backbone and its neck with random weights.

    Args:
        image_size: S.
        embedding_dim: C.
        embedding_size: E.
    Raises:
        DistillError: a wrong name, or a backbone that cannot be used at these sizes.
    """
    return TimmEncoder(
        parse_name(name), image_size=image_size, embedding_dim=embedding_dim, embedding_size=embedding_size
    )
