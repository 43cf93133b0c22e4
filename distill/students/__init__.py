"""The students: one literal dict from a name to the file that builds it. Importing this loads no torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distill.errors import DistillError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

TIMM_PREFIX = "timm/"
TIMM_IMAGE_SIZE = 512


@dataclass(frozen=True)
class Student:
    """Where a student is built and what it reads.

    module: file of distill/students with `build(name, *, image_size, embedding_dim, embedding_size)`.
    image_size: side S of the input in pixels that the published model reads.
    norm_eps: epsilon of every norm layer of the whole promptable model, or None for the constructors' own.
    """

    module: str
    image_size: int
    summary: str
    norm_eps: float | None = None


# EfficientViT-SAM's set_norm_eps reaches the decoder's LayerNorms too: published code, golden numbers.
EFFICIENTVIT_EPS = 1e-6

STUDENTS: dict[str, Student] = {
    "efficientvit_sam_t": Student("efficientvit", 256, "this project's small member, for CPUs", EFFICIENTVIT_EPS),
    "efficientvit_sam_l0": Student("efficientvit", 512, "EfficientViT-SAM-L0", EFFICIENTVIT_EPS),
    "efficientvit_sam_l1": Student("efficientvit", 512, "EfficientViT-SAM-L1", EFFICIENTVIT_EPS),
    "efficientvit_sam_l2": Student("efficientvit", 512, "EfficientViT-SAM-L2", EFFICIENTVIT_EPS),
    "efficientvit_sam_xl0": Student("efficientvit", 1024, "EfficientViT-SAM-XL0", EFFICIENTVIT_EPS),
    "efficientvit_sam_xl1": Student("efficientvit", 1024, "EfficientViT-SAM-XL1", EFFICIENTVIT_EPS),
    "sam_vit_b": Student("vit", 1024, "SAM ViT-B"),
    "sam_vit_l": Student("vit", 1024, "SAM ViT-L"),
    "sam_vit_h": Student("vit", 1024, "SAM ViT-H"),
}


def check_student_name(name: str) -> Student:
    """The registry's entry of a student; an unknown name raises DistillError with the near ones."""
    if name.startswith(TIMM_PREFIX) and len(name) > len(TIMM_PREFIX):
        return Student("timm", TIMM_IMAGE_SIZE, f"timm's {name[len(TIMM_PREFIX) :]} through a neck")
    if name not in STUDENTS:
        raise DistillError(
            f"unknown student '{name}'. {did_you_mean(name, STUDENTS)} Or timm/NAME, for a timm backbone"
        )
    return STUDENTS[name]


def build_encoder(
    name: str, *, image_size: int | None = None, embedding_dim: int = 256, embedding_size: int = 64
) -> nn.Module:
    """An untrained student encoder: (B, 3, S, S) normalised pixels -> (B, C, E, E).

    Args:
        image_size: S; None takes the student's own.
        embedding_dim: C, embedding_size: E: those of the teacher.
    Raises:
        DistillError: an unknown name, or a size that the student cannot have.
    """
    entry = check_student_name(name)
    module = importlib.import_module(f"distill.students.{entry.module}")
    encoder: nn.Module = module.build(
        name,
        image_size=entry.image_size if image_size is None else image_size,
        embedding_dim=embedding_dim,
        embedding_size=embedding_size,
    )
    return encoder
