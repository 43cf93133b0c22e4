"""A comparison: models that were evaluated alike, their benches at one setting, and paired differences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from distill.comparison.models import ComparedModel
from distill.comparison.published_rows import PublishedRow, published_notes
from distill.errors import RunError, did_you_mean
from distill.evaluation.finished import FinishedEvaluation, ProtocolKey
from distill.evaluation.scoring.bootstrap import Difference, paired_difference
from distill.training.record import lost_start

# Keys of metrics.json that evaluations by one protocol must share, beside their instances.
SHARED = ("num_images", "num_instances", "num_detections", "teacher_sha256", "rules")


class BenchSetting(NamedTuple):
    """The setting at which latency was measured."""

    batch_size: int
    precision: str

    def __str__(self) -> str:
        return f"batch {self.batch_size}, {self.precision}"


@dataclass
class Comparison:
    """Models that may stand in one table.

    reference: the model that paired differences are taken to.
    protocols: those by which any model was evaluated; one column each.
    notes: what a reader must know before comparing the models.
    setting: of the benches that are shown, None without a bench. machine: what they ran on, by property. bench_date:
        the day, None if it is not recorded.
    published: rows of published numbers, which stand below the models.
    """

    models: list[ComparedModel]
    reference: ComparedModel
    protocols: list[ProtocolKey]
    notes: list[str] = field(default_factory=list)
    setting: BenchSetting | None = None
    machine: dict[str, Any] = field(default_factory=dict)
    bench_date: str | None = None
    published: Sequence[PublishedRow] = ()

    def evaluations(self, protocol: ProtocolKey) -> list[tuple[ComparedModel, FinishedEvaluation]]:
        """Return the evaluations by a protocol with their models, in the order of the models."""
        return [(model, model.evaluations[protocol]) for model in self.models if protocol in model.evaluations]


def build_comparison(
    models: Sequence[ComparedModel],
    *,
    reference: str | None,
    notes: Sequence[str] = (),
    published: Sequence[PublishedRow] = (),
) -> Comparison:
    """Compare models, after a check that they may stand in one table.

    Args:
        reference: the label of a model; None: the first model.
        notes: come before those that the comparison adds.
        published: rows that stand below the models, which were measured.
    Raises:
        RunError: there is no model, the reference is unknown, or evaluations by one protocol are over different photos
            or instances.
    """
    if not models:
        shown = f"; `distill tables {published[0].model.name}` shows the published row alone" if published else ""
        raise RunError(f"nothing to compare: give runs, evaluations or models{shown}")
    labels = [model.label for model in models]
    if reference in [row.label for row in published]:
        raise RunError(
            f"--reference {reference}: a published row has no instances to take differences to; give a model"
        )
    if reference is not None and reference not in labels:
        raise RunError(f"--reference {reference}: none of the models. {did_you_mean(reference, labels)}")
    protocols = list(dict.fromkeys(protocol for model in models for protocol in model.evaluations))
    chosen = models[labels.index(reference)] if reference is not None else models[0]
    comparison = Comparison(list(models), chosen, protocols, [*notes], published=published)
    for protocol in protocols:
        _check_same_photos(comparison.evaluations(protocol))
    comparison.notes += [*_caveats(comparison), *published_notes(comparison)]
    return comparison


def add_benches(comparison: Comparison, document: dict[str, Any], source: str, *, is_complete: bool = True) -> None:
    """Give each model its row of a bench document, and choose the setting that most models were measured at.

    Args:
        document: as `read_bench` or `bench_models` return it.
        source: its path, for messages.
        is_complete: whether every model should be in it, so that absent ones are named in the notes.
    Raises:
        RunError: the document measured none of the models.
    """
    rows = document["models"]
    for model in comparison.models:
        model.bench = next((row for row in rows if _is_of(row, model)), None)
    absent = [model.label for model in comparison.models if model.bench is None and model.source is not None]
    if len(absent) == len(comparison.models):
        known = ", ".join(str(row.get("model")) for row in rows)
        raise RunError(f"{source}: measured none of the models, but {known}; bench these, or leave --bench out")
    if absent and is_complete:
        comparison.notes.append(f"{source} did not measure {', '.join(absent)}")
    comparison.machine, comparison.bench_date = document.get("machine", {}), document.get("date")
    benched = [model for model in comparison.models if model.bench is not None]
    counts = Counter(setting for model in benched for setting in set(map(_setting, (model.bench or {})["runs"])))
    if counts:
        comparison.setting = min(counts, key=lambda s: (-counts[s], s.batch_size, s.precision != "fp32"))


def bench_run(model: ComparedModel, setting: BenchSetting | None) -> dict[str, Any] | None:
    """Return what a bench measured of a model at a setting: of its fused form, if it has one. None if nothing."""
    runs = [run for run in (model.bench or {}).get("runs", []) if _setting(run) == setting]
    return max(runs, key=lambda run: bool(run["fused"]), default=None)


def differences(comparison: Comparison, protocol: ProtocolKey) -> dict[str, Difference]:
    """Return the mean IoU of each model minus the reference's over the same instances, by label.

    The reference itself is left out. The result is empty if the reference has no evaluation by the protocol, or if the
    protocol gives single instances no IoU.
    """
    base = comparison.reference.evaluations.get(protocol)
    if base is None or not len(base.instances.ious) or base.headline != "miou":
        return {}
    truths = base.instances
    return {
        model.label: paired_difference(evaluation.instances.ious, truths.ious, truths.photos)
        for model, evaluation in comparison.evaluations(protocol)
        if model is not comparison.reference
    }


def teachers(comparison: Comparison) -> dict[str, str]:
    """Return the teacher of each model whose training is known, by label."""
    return {model.label: model.trainings[-1].teacher for model in comparison.models if model.trainings}


def _check_same_photos(evaluations: Sequence[tuple[ComparedModel, FinishedEvaluation]]) -> None:
    """Check that all evaluations are over the same instances as the first one. Raises RunError if one is not."""
    (first_model, first), *others = evaluations
    for model, evaluation in others:
        pair = f"'{first_model.label}' ({first.directory}) and '{model.label}' ({evaluation.directory})"
        mend = "evaluate both on the same photos and annotations, or leave one out"
        differing = [key for key in SHARED if first.metrics.get(key) != evaluation.metrics.get(key)]
        if first.instances.keys == evaluation.instances.keys and not differing:
            continue
        ours, theirs = set(first.instances.photos), set(evaluation.instances.photos)
        if ours != theirs:
            found = f"{len(ours)} and {len(theirs)} photos, {len(ours & theirs)} of them in common"
        elif differing:
            found = ", ".join(f"{k} {first.metrics.get(k)} and {evaluation.metrics.get(k)}" for k in differing)
        else:
            found = "the same photos, but other instances"
        raise RunError(f"{first.protocol.title}: {pair} evaluated {found}; {mend}")


def _caveats(comparison: Comparison) -> list[str]:
    """Return what a reader must know before comparing the models, one sentence each."""
    notes = []
    by_teacher: dict[str, list[str]] = {}
    for label, teacher in teachers(comparison).items():
        by_teacher.setdefault(teacher, []).append(label)
    if len(by_teacher) > 1:
        groups = "; ".join(f"{', '.join(labels)}: {teacher}" for teacher, labels in by_teacher.items())
        notes.append(f"the students have different teachers ({groups})")
    policies: dict[tuple[str | None, int | None], set[str | None]] = {}
    for protocol in comparison.protocols:
        policies.setdefault((protocol.prompt, protocol.num_clicks), set()).add(protocol.multimask)
    if any(len(found) > 1 for found in policies.values()):
        notes.append("evaluations with other multimask policies stand in columns of their own")
    notes += filter(None, (_left_out(comparison, protocol) for protocol in comparison.protocols))
    missing = [model.label for model in comparison.models if not model.evaluations]
    if missing:
        data = "--images DIR --annotations FILE evaluate"
        notes.append(f"no evaluation of {', '.join(missing)}: {data}{'s' if len(missing) == 1 else ''} what is missing")
    for model in comparison.models:
        if any(training.cost is None for training in model.trainings):
            notes.append(f"{model.label}: no record of what its training took")
        if (lost := lost_start(model.trainings)) is not None:
            notes.append(f"{model.label}: it started from {lost}, of whose training no record is left, nor of its cost")
    return notes


def _left_out(comparison: Comparison, protocol: ProtocolKey) -> str | None:
    """Return which of a detector's boxes the evaluations by a protocol leave out, or None if they use all."""
    metrics = comparison.evaluations(protocol)[0][1].metrics
    words = {
        "num_outside": "have no pixel inside their photo",
        "num_foreign": "lie on photos that the annotations do not list",
    }
    found = [
        f"{metrics[key]:,} {why}" for key, why in words.items() if isinstance(metrics.get(key), int) and metrics[key]
    ]
    return f"{protocol.title}: of the detector's boxes, {' and '.join(found)}; they are left out" if found else None


def _setting(run: dict[str, Any]) -> BenchSetting:
    return BenchSetting(int(run["batch_size"]), str(run["precision"]))


def _is_of(row: dict[str, Any], model: ComparedModel) -> bool:
    """Return whether a bench row is of a model: by the hash of the weights, or by name or path if it has no hash."""
    if row.get("weights_sha256") is not None:
        return bool(row["weights_sha256"] == model.sha256)
    measured = str(row.get("model"))
    if measured in (model.label, model.source, model.name):
        return True
    if model.source is None or not Path(measured).exists():
        return False
    return Path(measured).resolve() == Path(model.source).resolve()
