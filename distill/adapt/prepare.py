"""The checks of an adaptation before any work: photos, masks, teacher and student, and how the stages are called."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from distill.adapt.data import AnnotatedPhotos, check_parts, read_annotated, split
from distill.adapt.options import AdaptOptions, StudentChoice, choose_student
from distill.adapt.steps import Settings
from distill.config.loading import load_recipe
from distill.config.schema import FeatureRecipe, MaskRecipe, StudentConfig, TeacherConfig
from distill.data.coco import as_json
from distill.errors import DataError
from distill.models.initialization import build_student
from distill.models.sam import PromptableModel
from distill.models.teacher import Teacher, load_teacher

CACHE_RECIPE, FEATURE_RECIPE, MASK_RECIPE = "adapt/cache", "adapt/feature", "adapt/mask"


@dataclass(frozen=True)
class Prepared:
    """An adaptation whose parts were checked. train, val: the two parts of the photos. notes: what was left out."""

    options: AdaptOptions
    teacher: Teacher
    student: StudentChoice
    train: AnnotatedPhotos
    val: AnnotatedPhotos
    notes: list[str] = field(default_factory=list)

    @property
    def teacher_words(self) -> list[str]:
        """The teacher as overrides of a recipe."""
        checkpoint = self.options.teacher_checkpoint
        words = [f"teacher.name={self.options.teacher}"]
        return words if checkpoint is None else [*words, f"teacher.checkpoint={checkpoint}"]

    @property
    def teacher_source(self) -> str:
        """The teacher as `load_model` reads it."""
        return str(self.options.teacher_checkpoint or self.options.teacher)

    @property
    def teacher_name(self) -> str | None:
        """Which published model a released teacher is; None for a model of ours."""
        return self.options.teacher if self.options.teacher_checkpoint is not None else None

    @property
    def feature_words(self) -> list[str]:
        """The overrides of the feature stage, without its data and its length."""
        return [*self.teacher_words, *self.student.overrides, f"seed={self.options.seed}"]

    def mask_words(self, start: str) -> list[str]:
        """Return the overrides of the mask stage, without its data and its length.

        Args:
            start: the run that it starts from.
        """
        size = [f"student.image_size={self.student.image_size}"] if self.student.image_size else []
        student = [f"student.name={self.student.name}", *size, f"student.init_from={start}"]
        return [*self.teacher_words, *student, f"seed={self.options.seed}"]

    def build_student(self) -> PromptableModel:
        """Build the student as the feature stage starts with it."""
        choice = self.student
        config = StudentConfig(choice.name, choice.image_size, choice.init_from, choice.pretrained)
        return build_student(config, self.teacher)

    def settings(self) -> Settings:
        """Return what must be the same when the adaptation goes on, as JSON holds it."""
        data = json.dumps([as_json(self.train.content), as_json(self.val.content)], sort_keys=True).encode()
        options = self.options
        return {
            "photos": str(options.photos.resolve()),
            "masks": hashlib.sha256(data).hexdigest()[:16],
            "teacher": self.teacher.weights_sha256[:16],
            "student": " ".join(self.student.overrides),
            "seed": options.seed,
            "feature steps": options.feature_steps,
            "mask steps": options.mask_steps,
            "minutes": options.minutes,
        }


def prepare(options: AdaptOptions) -> Prepared:
    """Read and check everything that an adaptation is given.

    Raises:
        DistillError: photos, masks, teacher or student cannot be used, or do not fit each other.
    """
    if (options.val_photos is None) != (options.val_annotations is None):
        raise DataError("--val-photos and --val-annotations go together; give both, or neither")
    teacher = load_teacher(TeacherConfig(options.teacher, _text(options.teacher_checkpoint)))
    spec = teacher.model.spec
    student = choose_student(options, spec.encoder, spec.embedding_size)
    found, notes = _read(options, options.photos, options.annotations)
    if options.val_photos is None or options.val_annotations is None:
        train, val = split(found, val_share=options.val_share, seed=options.seed)
    else:
        train, (val, further) = found, _read(options, options.val_photos, options.val_annotations)
        notes += further
        check_parts(train, val)
    if options.val_masks is not None:
        val = val.with_few_masks(options.val_masks, options.seed)
    prepared = Prepared(options, teacher, student, train, val, notes)
    prepared.build_student()  # refuses a student that is unknown, or of another shape than the teacher
    return prepared


def planned_steps(prepared: Prepared) -> tuple[int, int]:
    """Return the steps of the feature stage and of the mask stage: those of the options, else of the recipes."""
    options = prepared.options
    anywhere = ["data.images=shards", "cache.dir=cache", "run=run"]
    feature = load_recipe(FEATURE_RECIPE, [*prepared.feature_words, *anywhere], check_paths=False)
    mask = load_recipe(MASK_RECIPE, [*prepared.mask_words("feature"), *anywhere], check_paths=False)
    assert isinstance(feature, FeatureRecipe) and isinstance(mask, MaskRecipe)
    return (
        options.feature_steps or int(feature.trainer["max_steps"]),
        options.mask_steps or int(mask.trainer["max_steps"]),
    )


def _read(options: AdaptOptions, photos: Path, annotations: Path) -> tuple[AnnotatedPhotos, list[str]]:
    return read_annotated(
        photos,
        annotations,
        connected_regions=options.connected_regions,
        skip_unannotated=options.skip_unannotated,
    )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
