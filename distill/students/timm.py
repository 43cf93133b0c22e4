"""Any timm `features_only` backbone as a student, through a light feature pyramid."""

from __future__ import annotations

from typing import Any

import timm
from torch import Tensor, nn

from distill.errors import DistillError, did_you_mean
from distill.students import TIMM_PREFIX
from distill.students.neck import PyramidNeck

MAX_REDUCTION = 32  # the coarsest level that the neck takes
MAX_CELLS = 4  # the finest: this many of its cells along a side of one cell of the grid


class TimmEncoder(nn.Module):
    """A timm backbone and a neck: (B, 3, S, S) -> (B, C, E, E).

    The levels from a quarter of the grid's stride to stride 32 are fused at the grid.
    """

    def __init__(
        self, backbone_name: str, *, image_size: int, embedding_dim: int, embedding_size: int, pretrained: bool = False
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.embedding_dim = embedding_dim
        self.embedding_size = embedding_size
        self.backbone: nn.Module = timm.create_model(backbone_name, features_only=True, pretrained=pretrained)
        info: Any = self.backbone.feature_info
        stride = image_size / embedding_size
        levels = [i for i, reduction in enumerate(info.reduction()) if stride / MAX_CELLS <= reduction <= MAX_REDUCTION]
        if not levels:
            raise DistillError(
                f"timm/{backbone_name}: strides {info.reduction()} cannot reach a {embedding_size} x {embedding_size} "
                f"grid from {image_size} pixels; choose student.image_size near {16 * embedding_size}"
            )
        self.levels = levels
        self.neck = PyramidNeck(
            [info.channels()[i] for i in levels],
            [max(1, int(stride / info.reduction()[i])) for i in levels],
            embedding_dim,
            embedding_size,
        )

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.backbone(pixels)
        embedding: Tensor = self.neck([features[i] for i in self.levels])
        return embedding


def build(name: str, *, image_size: int, embedding_dim: int, embedding_size: int) -> TimmEncoder:
    """`timm/NAME` with random weights. Raises DistillError on a name that timm does not know."""
    backbone_name = name[len(TIMM_PREFIX) :]
    known = timm.list_models()
    if backbone_name.split(".")[0] not in known:
        raise DistillError(f"timm has no model '{backbone_name}'. {did_you_mean(backbone_name, known)}")
    return TimmEncoder(backbone_name, image_size=image_size, embedding_dim=embedding_dim, embedding_size=embedding_size)
