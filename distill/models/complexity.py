"""Parameters and multiply-adds of image encoders, counted on the meta device, which needs no memory and little time."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from distill.models.sam import ModelSpec
from distill.students import build_encoder, check_student_name


def count_encoder(
    name: str, *, image_size: int | None = None, embedding_dim: int = 256, embedding_size: int = 64
) -> tuple[int, int]:
    """Count the parameters of a student and its multiply-adds on one image, attention products included.

    Args:
        name: a registered student, a plug-in's, or timm/NAME.
        image_size: side of the input in pixels; None selects the student's own.
        embedding_dim: C of the teacher.
        embedding_size: E of the teacher.
    Raises:
        DistillError: as `build_encoder` does.
    """
    size = check_student_name(name).image_size if image_size is None else image_size
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder = build_encoder(
            name, image_size=size, embedding_dim=embedding_dim, embedding_size=embedding_size
        ).eval()
        built = counter.get_total_flops()  # building runs plug-ins and timm's backbones once
        encoder(torch.empty(1, 3, size, size))
    num_parameters = sum(parameter.numel() for parameter in encoder.parameters())
    return num_parameters, (counter.get_total_flops() - built) // 2


def encoder_macs(spec: ModelSpec) -> int:
    """Return the multiply-adds of a model's encoder on one image."""
    return count_encoder(
        spec.encoder,
        image_size=spec.image_size,
        embedding_dim=spec.embedding_dim,
        embedding_size=spec.embedding_size,
    )[1]
