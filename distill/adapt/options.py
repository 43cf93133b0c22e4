"""What an adaptation is given, and the student that it trains where none is named. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from distill.config.names import FROM_TEACHER

VAL_SHARE = 0.2
# The student where none is named: a backbone without its last stages at a small resolution (6 pixels a cell), with a
# slim neck. It takes the teacher's own backbone, so that it can start from the teacher's weights.
BACKBONE, DEPTH = "tf_efficientnet_lite2", "@16+slim"
STRIDE = 6  # 384 pixels for SAM's grid: a tenth of the MACs of the same backbone, complete, at 1024
TIMM_BACKBONE = re.compile(r"timm/([^@+]+)")


@dataclass(frozen=True)
class AdaptOptions:
    """What `distill adapt` is given. Paths are the user's.

    photos, annotations: a folder of photos, and a COCO-format file or a folder of masks.
    teacher: as `teacher.name` of a recipe. teacher_checkpoint: the released file of a `sam_vit_*`.
    val_photos, val_annotations: the validation part; None: a share `val_share` of the photos, drawn by `seed`.
    val_masks: the most masks of each held-out photo that are scored, drawn by `seed`; None: all.
    student, image_size: as in a recipe; None: chosen for the teacher.
    init_from, pretrained: what the student's encoder starts from, as in a recipe.
    feature_steps, mask_steps: of the two stages; None: the recipes' own.
    minutes: about how long everything may take; None: as long as the steps take.
    device: `cpu` or `cuda`; None: a GPU if there is one.
    """

    photos: Path
    annotations: Path
    teacher: str
    out: Path
    teacher_checkpoint: Path | None = None
    val_photos: Path | None = None
    val_annotations: Path | None = None
    val_share: float = VAL_SHARE
    val_masks: int | None = None
    connected_regions: bool = False
    skip_unannotated: bool = False
    student: str | None = None
    image_size: int | None = None
    init_from: str | None = None
    pretrained: str | None = None
    feature_steps: int | None = None
    mask_steps: int | None = None
    minutes: float | None = None
    device: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class StudentChoice:
    """The student of an adaptation: the values of the recipe's section `student`."""

    name: str
    image_size: int | None = None
    init_from: str | None = None
    pretrained: str | None = None

    @property
    def overrides(self) -> list[str]:
        """The student as overrides of the feature stage's recipe."""
        values = {"image_size": self.image_size, "init_from": self.init_from, "pretrained": self.pretrained}
        return [f"student.name={self.name}", *(f"student.{k}={v}" for k, v in values.items() if v is not None)]


def choose_student(options: AdaptOptions, encoder: str, embedding_size: int) -> StudentChoice:
    """Return the student that the options name, or the one that fits a teacher.

    Args:
        encoder: the name of the teacher's encoder.
        embedding_size: E of the teacher.
    """
    if options.student is not None:
        return StudentChoice(options.student, options.image_size, options.init_from, options.pretrained)
    own = TIMM_BACKBONE.match(encoder)
    init_from = options.init_from or (FROM_TEACHER if own and options.pretrained is None else None)
    name = f"timm/{own[1] if own else BACKBONE}{DEPTH}"
    return StudentChoice(name, options.image_size or STRIDE * embedding_size, init_from, options.pretrained)
