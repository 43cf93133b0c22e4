"""An adaptation from photos, masks and a teacher to a small student and its page: the call behind `distill adapt`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from distill.adapt.data import ANNOTATIONS_FILE
from distill.adapt.options import AdaptOptions
from distill.adapt.prepare import CACHE_RECIPE, FEATURE_RECIPE, MASK_RECIPE, Prepared, planned_steps, prepare
from distill.adapt.rehearsal import Estimate, rehearse
from distill.adapt.report import closing_sentence, model_summary, write_report
from distill.adapt.steps import PROTOCOLS, Steps
from distill.cards.writing import refresh_card
from distill.comparison.join import Comparison, add_benches, build_comparison
from distill.comparison.measure import EvaluationData, measure_speed
from distill.comparison.models import ComparedModel, add_evaluation, read_model
from distill.comparison.tables import print_table
from distill.errors import RunError
from distill.evaluation.predictors import FILL_ELLIPSE
from distill.files import write_json
from distill.lock import hold_directory
from distill.models.devices import usable_device
from distill.outside import read_json
from distill.text import say

MARKER_FILE, PLAN_FILE = "adapt.json", "plan.json"
TEACHER, ZERO_SHOT, ADAPTED = "teacher", "zero-shot student", "adapted student"
BASELINE = "filled ellipse"  # the ellipse in each box: round objects need no model to look like much

NumSteps = Annotated[int, Meta(ge=1, le=1 << 40)]


class Plan(msgspec.Struct, frozen=True):
    """The content of plan.json: the steps of both stages that fit in the minutes."""

    feature_steps: NumSteps
    mask_steps: NumSteps


def adapt(options: AdaptOptions) -> dict[str, Any]:
    """Adapt a small student to photos: every step that is not finished in `options.out`.

    The steps are image shards, the teacher's embeddings, both stages, the evaluation of the teacher, of the student
    after the feature stage (zero-shot: it has seen no mask) and of the adapted student, the export, and the page.

    Returns:
        the content of summary.json.
    Raises:
        DistillError: what was given cannot be used, the directory holds something else, or a step fails.
    """
    usable_device(options.device)
    prepared = prepare(options)
    for line in description(prepared):
        say(line)
    with hold_directory(options.out, give="--out DIR"):
        steps = Steps(options.out, options.device)
        steps.begin(MARKER_FILE, prepared.settings(), what="adaptation")
        feature_steps, mask_steps = _plan(prepared, steps)
        _train(prepared, steps, feature_steps, mask_steps)
        return _measure(prepared, steps)


def estimate(options: AdaptOptions) -> tuple[list[str], Estimate]:
    """Return what an adaptation will do, and an estimate of its time. Nothing is written but temporary files.

    Raises:
        DistillError: what was given cannot be used, or a step fails on a few photos.
    """
    usable_device(options.device)
    prepared = prepare(options)
    found = rehearse(prepared, *planned_steps(prepared), PROTOCOLS)
    return description(prepared), found.within(options.minutes) if options.minutes else found


def description(prepared: Prepared) -> list[str]:
    """Return lines that say what an adaptation is made of, and what was left out."""
    train, val, options = prepared.train, prepared.val, prepared.options
    how = f"drawn by --seed {options.seed}" if options.val_photos is None else f"of {val.photos}"
    start = prepared.student.init_from or prepared.student.pretrained
    return [
        *prepared.notes,
        f"photos: {len(train)} with {train.num_masks:,} masks to learn from, {len(val)} with {val.num_masks:,} held "
        f"out ({how})",
        f"teacher: {options.teacher} ({prepared.teacher.model.spec.encoder}, {prepared.teacher.image_size} pixels)",
        f"student: {prepared.student.name}, {prepared.build_student().image_size} pixels, "
        + (f"begun from {start}" if start else "begun at random"),
    ]


def _plan(prepared: Prepared, steps: Steps) -> tuple[int, int]:
    """Return the steps of both stages. With --minutes they are measured once, and kept."""
    if not prepared.options.minutes:
        return planned_steps(prepared)
    path = steps.out / PLAN_FILE
    if not path.is_file():
        found = rehearse(prepared, *planned_steps(prepared), PROTOCOLS).within(prepared.options.minutes)
        write_json(path, msgspec.to_builtins(Plan(found.feature_steps, found.mask_steps)), raises=RunError)
        say(f"--minutes {prepared.options.minutes:g}: {found.feature_steps} and {found.mask_steps} steps")
    return read_plan(path)


def read_plan(path: Path) -> tuple[int, int]:
    """Read the steps of both stages from plan.json. Raises RunError when it is damaged."""
    plan = read_json(path, Plan, "plan of an adaptation", "remove it, and the steps are planned again", raises=RunError)
    return plan.feature_steps, plan.mask_steps


def _train(prepared: Prepared, steps: Steps, feature_steps: int, mask_steps: int) -> None:
    """Build shards and cache, and train both stages."""
    with steps.timed("shards"):
        for split, part in (("train", prepared.train), ("val", prepared.val)):
            annotations = steps.out / "data" / split / ANNOTATIONS_FILE
            if not annotations.is_file():
                part.write(annotations)
            steps.build_shards(split, part.photos, annotations)
    with steps.timed("cache"):
        steps.build_cache(CACHE_RECIPE, prepared.teacher_words)
    feature = [*prepared.feature_words, f"cache.dir={steps.out / 'cache'}", f"trainer.max_steps={feature_steps}"]
    with steps.timed("feature"):
        steps.train("feature", FEATURE_RECIPE, feature)
    mask = [*prepared.mask_words(str(steps.out / "feature")), f"trainer.max_steps={mask_steps}"]
    with steps.timed("mask"):
        steps.train("mask", MASK_RECIPE, mask)


def _measure(prepared: Prepared, steps: Steps) -> dict[str, Any]:
    """Evaluate, export, and write the page. Return the content of summary.json."""
    out = steps.out
    teacher = ComparedModel(TEACHER, prepared.teacher_source, prepared.teacher.weights_sha256, prepared.teacher_name)
    models = [teacher]
    models += [read_model(str(out / run), label) for run, label in (("feature", ZERO_SHOT), ("mask", ADAPTED))]
    data = EvaluationData(prepared.val.photos, out / "data" / "val" / ANNOTATIONS_FILE)
    for model in models:
        with steps.timed(f"evaluate {model.label}"):
            steps.evaluate(model, PROTOCOLS, data)
    add_evaluation(models, steps.evaluate_baseline(FILL_ELLIPSE, PROTOCOLS[0], data), BASELINE)
    with steps.timed("export"):
        onnx = steps.export("mask")
    comparison = build_comparison(models, reference=TEACHER)
    with steps.timed("speed"):
        bench = measure_speed(models, out, prepared.options.device)
    if bench is not None:
        add_benches(comparison, bench, str(out))
        for model in models[1:3]:
            refresh_card(str(model.source), list(model.evaluations.values()), bench)
    result = closing_sentence(comparison, models[2])
    comparison.notes.insert(0, result)
    summary = _summary(prepared, comparison, steps)
    write_report(comparison, out, title=f"{ADAPTED} of {prepared.options.photos.name}", summary=summary)
    print_table(comparison)
    say(f"{out / 'index.html'}: the page\n{out / 'mask'}: the student; {onnx}: its ONNX files")
    say(result)
    return summary


def _summary(prepared: Prepared, comparison: Comparison, steps: Steps) -> dict[str, Any]:
    parts = (("train", prepared.train), ("val", prepared.val))
    return {
        "photos": {name: len(part) for name, part in parts},
        "masks": {name: part.num_masks for name, part in parts},
        "models": {model.label: model_summary(comparison, model) for model in comparison.models},
        "seconds": steps.seconds(),
    }
