"""Any timm `features_only` backbone as a student, through a light feature pyramid.

`timm/NAME@16` keeps the backbone up to its level of stride 16 and leaves out what comes after: the deepest stages hold
most of the parameters, and a grid of stride 8 or 16 can do without them.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from distill.errors import DistillError, did_you_mean
from distill.students import TIMM_PREFIX
from distill.students.neck import PyramidNeck

MAX_REDUCTION = 32  # the coarsest level that the neck takes
STRIDES = ("4", "8", "16", "32")
MAX_CELLS = 4  # the finest: this many of its cells along a side of one cell of the grid


class TimmEncoder(nn.Module):
    """A timm backbone and a neck: (B, 3, S, S) -> (B, C, E, E).

    The levels from a quarter of the grid's stride to stride `max_reduction` are fused at the grid.
    """

    def __init__(
        self,
        backbone_name: str,
        *,
        image_size: int,
        embedding_dim: int,
        embedding_size: int,
        max_reduction: int = MAX_REDUCTION,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.embedding_dim = embedding_dim
        self.embedding_size = embedding_size
        stride = image_size / embedding_size
        with torch.device("meta"):
            offered: Any = timm.create_model(backbone_name, features_only=True).feature_info
        reductions = offered.reduction()
        levels = [i for i, reduction in enumerate(reductions) if stride / MAX_CELLS <= reduction <= max_reduction]
        if not levels:
            raise DistillError(
                f"timm/{backbone_name}: strides {reductions} cannot reach a {embedding_size} x {embedding_size} "
                f"grid from {image_size} pixels; choose student.image_size near {16 * embedding_size}"
            )
        self.backbone: nn.Module = timm.create_model(
            backbone_name, features_only=True, out_indices=levels, pretrained=pretrained
        )
        _cut_after(self.backbone, offered.module_name(levels[-1]))
        self.neck = PyramidNeck(
            [offered.channels()[i] for i in levels],
            embedding_dim,
            embedding_size,
            cells_per_level=[max(1, int(stride / reductions[i])) for i in levels],
        )

    def forward(self, pixels: Tensor) -> Tensor:
        embedding: Tensor = self.neck(self.backbone(pixels))
        return embedding


def _cut_after(backbone: nn.Module, last: str) -> None:
    """Leave out the stages after the module `last` ("blocks.4") where its parent is a sequence of stages.

    Families whose features_only wrapper does this by itself name a module at the top; nothing is left to do there.
    """
    parent, _, place = last.rpartition(".")
    stages = backbone.get_submodule(parent) if parent else None
    if isinstance(stages, nn.Sequential) and place.isdigit():
        del stages[int(place) + 1 :]


def build(name: str, *, image_size: int, embedding_dim: int, embedding_size: int) -> TimmEncoder:
    """`timm/NAME` or `timm/NAME@STRIDE` with random weights.

    Raises DistillError on a name that timm does not know, or a STRIDE that is none.
    """
    backbone_name, _, stride = name[len(TIMM_PREFIX) :].partition("@")
    known = timm.list_models()
    if backbone_name.split(".")[0] not in known:
        raise DistillError(f"timm has no model '{backbone_name}'. {did_you_mean(backbone_name, known)}")
    if stride and stride not in STRIDES:
        raise DistillError(f"{name}: '@{stride}' is no stride; give one of {', '.join('@' + s for s in STRIDES)}")
    return TimmEncoder(
        backbone_name,
        image_size=image_size,
        embedding_dim=embedding_dim,
        embedding_size=embedding_size,
        max_reduction=int(stride) if stride else MAX_REDUCTION,
    )
