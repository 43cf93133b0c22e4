"""An estimate of an adaptation: a few photos go through every step in a temporary directory, and are timed."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.adapt.data import ANNOTATIONS_FILE, AnnotatedPhotos
from distill.adapt.prepare import CACHE_RECIPE, FEATURE_RECIPE, MASK_RECIPE, Prepared
from distill.adapt.steps import Steps
from distill.config.loading import load_recipe
from distill.config.schema import CacheRecipe, EvaluateRecipe, FeatureRecipe, MaskRecipe
from distill.data.cache.job import CacheJob
from distill.errors import RunError
from distill.evaluation.run import evaluate_recipe
from distill.models.checkpoint import STUDENT_FILE, save_model
from distill.models.devices import usable_device
from distill.text import duration, size
from distill.training.dry_run import HOUR, dry_run

REHEARSED_PHOTOS = 8
EVALUATED_PHOTOS = 2
MANY_STEPS = 1000  # so that the validations of an estimated stage average out
# Export, speed and page, in seconds: measured on two cores with students of 1 to 10 M parameters.
REST_SECONDS = 45.0


@dataclass(frozen=True)
class Estimate:
    """What the steps of an adaptation take, in seconds; the two stages for `feature_steps` and `mask_steps`."""

    cache: float
    feature: float
    mask: float
    evaluate: float
    feature_steps: int
    mask_steps: int
    cache_bytes: int

    @property
    def fixed(self) -> float:
        """Seconds of everything but the two stages."""
        return self.cache + self.evaluate + REST_SECONDS

    @property
    def total(self) -> float:
        """Seconds of everything."""
        return self.fixed + self.feature + self.mask

    def within(self, minutes: float) -> Estimate:
        """Return the estimate with both stages lengthened or shortened alike, so that everything takes `minutes`.

        Raises:
            RunError: what does not depend on the steps takes longer alone.
        """
        scale = (minutes * 60 - self.fixed) / (self.feature + self.mask)
        feature_steps, mask_steps = int(self.feature_steps * scale), int(self.mask_steps * scale)
        if min(feature_steps, mask_steps) < 1:
            raise RunError(
                f"--minutes {minutes:g}: caching and evaluating take {duration(self.fixed)} by themselves; give more "
                "minutes, or fewer validation photos by --val-share"
            )
        feature = self.feature / self.feature_steps * feature_steps
        mask = self.mask / self.mask_steps * mask_steps
        return Estimate(self.cache, feature, mask, self.evaluate, feature_steps, mask_steps, self.cache_bytes)

    def rows(self) -> list[tuple[str, str, str]]:
        """Return a row for each step: its name, what it does, and how long it takes."""
        steps = {
            "cache": ("the teacher's embeddings of the training photos, " + size(self.cache_bytes), self.cache),
            "feature": (f"{self.feature_steps} steps: the student learns the teacher's embedding", self.feature),
            "mask": (f"{self.mask_steps} steps: encoder and decoder learn the masks", self.mask),
            "evaluate": ("teacher, zero-shot and adapted student, by box and by click", self.evaluate),
            "rest": ("ONNX export, speed, page", REST_SECONDS),
            "all": ("", self.total),
        }
        return [(name, what, duration(seconds)) for name, (what, seconds) in steps.items()]


def rehearse(prepared: Prepared, feature_steps: int, mask_steps: int, protocols: tuple[str, ...]) -> Estimate:
    """Run a few photos through every step, and estimate what the adaptation takes on this machine.

    Raises:
        DistillError: a step fails, as it would fail in the adaptation.
    """
    with tempfile.TemporaryDirectory(prefix="distill-adapt-") as folder:
        steps = Steps(Path(folder), prepared.options.device)
        with contextlib.redirect_stdout(io.StringIO()):  # the steps print commands, which are of no use here
            sample = {"train": typical(prepared.train), "val": typical(prepared.val)}
            for split, part in sample.items():
                annotations = steps.out / split / ANNOTATIONS_FILE
                part.write(annotations)
                steps.build_shards(split, part.photos, annotations)
            seconds, num_bytes = _time_cache(prepared, steps)
            feature = _time_stage(steps, FEATURE_RECIPE, [*prepared.feature_words, f"cache.dir={steps.out / 'cache'}"])
            mask = _time_stage(steps, MASK_RECIPE, prepared.mask_words("null"))
            evaluate = _time_evaluations(prepared, steps, protocols)
    per_photo = len(prepared.train) / len(sample["train"])
    return Estimate(
        cache=seconds * per_photo,
        feature=feature * feature_steps,
        mask=mask * mask_steps,
        evaluate=evaluate * len(prepared.val),
        feature_steps=feature_steps,
        mask_steps=mask_steps,
        cache_bytes=round(num_bytes * per_photo),
    )


def typical(part: AnnotatedPhotos) -> AnnotatedPhotos:
    """Return the photos whose numbers of masks are nearest to the mean."""
    counts = Counter(row.image_id for row in part.content.annotations)
    mean = part.num_masks / len(part)
    ids = [image.id for image in part.content.images]
    order = sorted(range(len(ids)), key=lambda number: abs(counts[ids[number]] - mean))
    return part.select(order[:REHEARSED_PHOTOS])


def _time_cache(prepared: Prepared, steps: Steps) -> tuple[float, int]:
    """Return the seconds that caching the sample took, and its bytes."""
    words = [f"data.images={steps.shards('train')}", f"cache.dir={steps.out / 'cache'}", *prepared.teacher_words]
    recipe = load_recipe(CACHE_RECIPE, words, kinds=("cache",))
    assert isinstance(recipe, CacheRecipe)
    job = CacheJob.from_recipe(recipe)
    job.teacher.to(usable_device(steps.device))
    job.prepare()
    started = time.monotonic()
    job.run()
    seconds = time.monotonic() - started
    totals = job.finish().totals
    assert totals is not None
    return seconds, totals.bytes


def _time_stage(steps: Steps, name: str, words: list[str]) -> float:
    """Return the seconds of one step of a stage, with its share of the validations."""
    data = [f"data.images={steps.shards('train')}", f"data.val_images={steps.shards('val')}"]
    device = ["trainer.devices=1", *([f"trainer.accelerator={steps.device}"] if steps.device else [])]
    words = [*data, *words, *device, f"run={steps.out / 'run'}", f"trainer.max_steps={MANY_STEPS}"]
    recipe = load_recipe(name, words, kinds=("feature", "mask"), check_paths=False)
    assert isinstance(recipe, FeatureRecipe | MaskRecipe)
    found: dict[str, Any] = dry_run(recipe)
    seconds: float = found["run"]["hours"] * HOUR / MANY_STEPS
    return seconds


def _time_evaluations(prepared: Prepared, steps: Steps, protocols: tuple[str, ...]) -> float:
    """Return the seconds that evaluating one photo takes: the teacher once, and the student twice."""
    student = steps.out / "untrained" / STUDENT_FILE
    student.parent.mkdir()
    save_model(prepared.build_student(), student)
    annotations = steps.out / "val" / ANNOTATIONS_FILE
    data = [f"data.images={prepared.val.photos}", f"data.annotations={annotations}"]
    models = ((prepared.teacher_source, prepared.teacher_name, 1), (str(student), None, 2))
    seconds = 0.0
    for i, (source, name, times) in enumerate(models):
        for protocol in protocols:
            run = steps.out / "evaluations" / f"{i}_{Path(protocol).name}"
            words = [*data, f"data.max_images={EVALUATED_PHOTOS}", f"run={run}"]
            recipe = load_recipe(protocol, words, kinds=("evaluate",))
            assert isinstance(recipe, EvaluateRecipe)
            metrics = evaluate_recipe(source, recipe, name=name, device=steps.device)
            seconds += times * metrics["seconds"] / metrics["num_images"]
    return seconds
