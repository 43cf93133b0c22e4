"""The registry of students: one literal dict from a name to the module that builds it. It imports no torch.

A student of another package is an entry point of the group `distill.students`. The entry point's name is the student's
name; its object is a `Student`, which names the module that builds the encoder.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distill.errors import DistillError, did_you_mean
from distill.students.timm_names import TIMM_PREFIX, parse_name

if TYPE_CHECKING:
    from torch import nn

TIMM_IMAGE_SIZE = 512
PLUGIN_GROUP = "distill.students"


@dataclass(frozen=True)
class Student:
    """The registry's entry for one student.

    module: dotted name of the module with `build(name, *, image_size, embedding_dim, embedding_size)`. It returns an
        nn.Module that maps normalised pixels (B, 3, S, S) to an embedding (B, C, E, E).
    image_size: side S, in pixels, of the input that the published model reads.
    summary: one line for the list of students.
    norm_eps: epsilon of every norm layer of the complete promptable model; None keeps the constructors' own.
    published: the released checkpoint files whose tensors fit, with their projects; empty if there are none.
    own_decoder: True if the released files hold a decoder other than SAM's, which is not supported; the encoder is.
    container: the key under which the published code expects the tensors in a file; empty if they are at the top.
    encoder_only: True if the published file holds only the encoder.
    """

    module: str
    image_size: int
    summary: str
    norm_eps: float | None = None
    published: str = ""
    own_decoder: bool = False
    container: str = ""
    encoder_only: bool = False


# EfficientViT-SAM's set_norm_eps reaches the decoder's LayerNorms too: published code, golden numbers.
EFFICIENTVIT_EPS = 1e-6


def _efficientvit(member: str, image_size: int) -> Student:
    return Student(
        "distill.students.efficientvit",
        image_size,
        f"EfficientViT-SAM-{member.upper()}",
        EFFICIENTVIT_EPS,
        f"efficientvit_sam_{member}.pt of EfficientViT",
        container="state_dict",
    )


STUDENTS: dict[str, Student] = {
    "efficientvit_sam_t": Student(
        "distill.students.efficientvit", 256, "this project's small member, for CPUs", EFFICIENTVIT_EPS
    ),
    "efficientvit_sam_l0": _efficientvit("l0", 512),
    "efficientvit_sam_l1": _efficientvit("l1", 512),
    "efficientvit_sam_l2": _efficientvit("l2", 512),
    "efficientvit_sam_xl0": _efficientvit("xl0", 1024),
    "efficientvit_sam_xl1": _efficientvit("xl1", 1024),
    "mobile_sam": Student(
        "distill.students.tinyvit",
        1024,
        "MobileSAM: TinyViT-5M",
        published="mobile_sam.pt of MobileSAM; TinySAM's tinysam_42.3.pth",
    ),
    "tinyvit_sam_11m": Student("distill.students.tinyvit", 1024, "TinyViT-11M, laid out as MobileSAM"),
    "tinyvit_sam_21m": Student("distill.students.tinyvit", 1024, "TinyViT-21M, laid out as MobileSAM"),
    "edge_sam": Student(
        "distill.students.repvit",
        1024,
        "EdgeSAM: RepViT-M1, last two stages fused",
        published="edge_sam.pth and edge_sam_3x.pth of EdgeSAM",
    ),
    "repvit_sam": Student(
        "distill.students.repvit", 1024, "RepViT-SAM: RepViT-M2.3", published="repvit_sam.pt of RepViT"
    ),
    "efficient_sam_vitt": Student(
        "distill.students.efficientsam",
        1024,
        "EfficientSAM-Ti's encoder with SAM's decoder",
        published="efficient_sam_vitt.pt of EfficientSAM",
        own_decoder=True,
    ),
    "efficient_sam_vits": Student(
        "distill.students.efficientsam",
        1024,
        "EfficientSAM-S's encoder with SAM's decoder",
        published="efficient_sam_vits.pt of EfficientSAM",
        own_decoder=True,
    ),
    "nano_sam": Student(
        "distill.students.nanosam",
        1024,
        "NanoSAM: ResNet-18 with MobileSAM's decoder",
        published="checkpoint.pth of NanoSAM's training, the encoder alone",
        container="model",
        encoder_only=True,
    ),
    "sam_vit_b": Student("distill.students.vit", 1024, "SAM ViT-B", published="sam_vit_b_01ec64.pth of SAM"),
    "sam_vit_l": Student("distill.students.vit", 1024, "SAM ViT-L", published="sam_vit_l_0b3195.pth of SAM"),
    "sam_vit_h": Student("distill.students.vit", 1024, "SAM ViT-H", published="sam_vit_h_4b8939.pth of SAM"),
}


def plugins() -> dict[str, importlib.metadata.EntryPoint]:
    """Find the students of other installed packages without loading them. They cannot replace a name of ours.

    Raises:
        DistillError: two packages give the same name to different students.
    """
    found: dict[str, importlib.metadata.EntryPoint] = {}
    for point in importlib.metadata.entry_points(group=PLUGIN_GROUP):
        if point.name in STUDENTS:
            continue
        if point.name in found and point.value != found[point.name].value:
            raise DistillError(
                f"two installed packages give the student '{point.name}': {found[point.name].value} and {point.value}; "
                "uninstall one"
            )
        found[point.name] = point
    return found


def _load_plugin(point: importlib.metadata.EntryPoint) -> Student:
    origin = f"student '{point.name}' of {point.dist.name if point.dist else 'another package'} ({point.value})"
    try:
        student = point.load()
    except Exception as error:  # another package's code: the user needs its name and its error
        raise DistillError(f"{origin} cannot be imported: {type(error).__name__}: {error}") from error
    if not isinstance(student, Student):
        raise DistillError(
            f"{origin}: the entry point names a {type(student).__name__}; it must name a distill.students.Student"
        )
    return student


def check_student_name(name: str) -> Student:
    """Return the entry of a student: one of ours, timm/NAME, or a plug-in.

    Raises:
        DistillError: an unknown name (the error lists similar ones), also among timm's; or a plug-in that cannot be
            imported.
    """
    if name.startswith(TIMM_PREFIX) and len(name) > len(TIMM_PREFIX):
        parse_name(name)
        return Student("distill.students.timm", TIMM_IMAGE_SIZE, f"timm's {name[len(TIMM_PREFIX) :]} through a neck")
    if name in STUDENTS:
        return STUDENTS[name]
    others = plugins()
    if name not in others:
        hint = did_you_mean(name, [*STUDENTS, *others])
        raise DistillError(
            f"unknown student '{name}'. {hint} Or timm/NAME, for a timm backbone; or install the package that has it"
        )
    return _load_plugin(others[name])


def build_encoder(
    name: str, *, image_size: int | None = None, embedding_dim: int = 256, embedding_size: int = 64
) -> nn.Module:
    """Build an untrained student encoder: normalised pixels (B, 3, S, S) -> embeddings (B, C, E, E).

    Args:
        image_size: S; None selects the student's own.
        embedding_dim: C of the teacher.
        embedding_size: E of the teacher.
    Raises:
        DistillError: an unknown name, a size that the student does not support, or a plug-in that fails.
    """
    entry = check_student_name(name)
    sizes = {
        "image_size": entry.image_size if image_size is None else image_size,
        "embedding_dim": embedding_dim,
        "embedding_size": embedding_size,
    }
    if name not in STUDENTS and not name.startswith(TIMM_PREFIX):
        from distill.students.plugin import build_plugin

        return build_plugin(name, entry, **sizes)
    encoder: nn.Module = importlib.import_module(entry.module).build(name, **sizes)
    return encoder
