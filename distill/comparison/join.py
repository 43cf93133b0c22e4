"""A comparison: entries that are judged alike, their benches at one setting, and paired differences."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from distill.comparison.entries import Entry
from distill.errors import RunError, did_you_mean
from distill.evaluation.bootstrap import Difference, paired_difference
from distill.evaluation.finished import FinishedEvaluation, ProtocolKey

# What evaluations must share beside their instances.
SHARED = ("num_images", "num_instances", "num_detections", "teacher_sha256")


class Setting(NamedTuple):
    """How latency was measured."""

    batch_size: int
    precision: str

    def __str__(self) -> str:
        return f"batch {self.batch_size}, {self.precision}"


@dataclass
class Comparison:
    """protocols: the columns. reference: what paired differences are taken to. setting, machine: of the benches."""

    entries: list[Entry]
    reference: Entry
    protocols: list[ProtocolKey]
    notes: list[str] = field(default_factory=list)
    setting: Setting | None = None
    machine: dict[str, Any] = field(default_factory=dict)

    def evaluations(self, protocol: ProtocolKey) -> list[tuple[Entry, FinishedEvaluation]]:
        """Those by a protocol, in the order of the entries."""
        return [(e, e.evaluations[protocol]) for e in self.entries if protocol in e.evaluations]


def build_comparison(entries: Sequence[Entry], *, reference: str | None, notes: Sequence[str] = ()) -> Comparison:
    """Check that the entries may stand in one table.

    Args:
        reference: a label; None: the first entry.
    Raises:
        RunError: no entry, an unknown reference, or evaluations by one protocol over different photos or instances.
    """
    if not entries:
        raise RunError("nothing to compare: give runs, evaluations or models")
    labels = [entry.label for entry in entries]
    if reference is not None and reference not in labels:
        raise RunError(f"--reference {reference}: none of the models. {did_you_mean(reference, labels)}")
    protocols = list(dict.fromkeys(protocol for entry in entries for protocol in entry.evaluations))
    chosen = entries[labels.index(reference)] if reference is not None else entries[0]
    comparison = Comparison(list(entries), chosen, protocols, [*notes])
    for protocol in protocols:
        _check_same_photos(comparison.evaluations(protocol))
    comparison.notes += _caveats(comparison)
    return comparison


def add_benches(comparison: Comparison, document: dict[str, Any], source: str) -> None:
    """Give each entry its row of a bench document, and choose the setting that most of them were measured at.

    Raises RunError when the document is no bench of models.
    """
    rows = document.get("models")
    if document.get("benchmark") != "models" or not isinstance(rows, list):
        raise RunError(f"{source}: no bench of models; `distill bench models --json FILE` writes one")
    for entry in comparison.entries:
        entry.bench = next((row for row in rows if _is_of(row, entry)), None)
    absent = [entry.label for entry in comparison.entries if entry.bench is None and entry.source is not None]
    if len(absent) == len(comparison.entries):
        known = ", ".join(str(row.get("model")) for row in rows)
        raise RunError(f"{source}: measured none of the models, but {known}; bench these, or leave --bench out")
    if absent:
        comparison.notes.append(f"{source} did not measure {', '.join(absent)}")
    comparison.machine = document.get("machine", {})
    benched = [entry for entry in comparison.entries if entry.bench is not None]
    counts = Counter(setting for entry in benched for setting in set(map(_setting, (entry.bench or {})["runs"])))
    if counts:
        comparison.setting = min(counts, key=lambda s: (-counts[s], s.batch_size, s.precision != "fp32"))


def bench_run(entry: Entry, setting: Setting | None) -> dict[str, Any] | None:
    """What a bench measured of an entry at a setting, of its fused form where it has one."""
    runs = [run for run in (entry.bench or {}).get("runs", []) if _setting(run) == setting]
    return max(runs, key=lambda run: bool(run["fused"]), default=None)


def read_bench(path: Path) -> dict[str, Any]:
    """A bench file. Raises RunError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"--bench {path}: cannot be read ({error}); `distill bench models --json FILE` writes one"
        ) from None
    return document if isinstance(document, dict) else {}


def differences(comparison: Comparison, protocol: ProtocolKey) -> dict[str, Difference]:
    """Mean IoU of each entry minus the reference's over the same instances, by label; the reference left out.

    Empty without an evaluation of the reference, or where instances have no IoU of their own.
    """
    base = comparison.reference.evaluations.get(protocol)
    if base is None or not len(base.instances.ious) or base.headline != "miou":
        return {}
    truths = base.instances
    return {
        entry.label: paired_difference(evaluation.instances.ious, truths.ious, truths.photos)
        for entry, evaluation in comparison.evaluations(protocol)
        if entry is not comparison.reference
    }


def teachers(comparison: Comparison) -> dict[str, str]:
    """The teacher of each entry whose training is known, by label."""
    return {entry.label: entry.trainings[-1].teacher for entry in comparison.entries if entry.trainings}


def _check_same_photos(evaluations: Sequence[tuple[Entry, FinishedEvaluation]]) -> None:
    """Raises RunError where two evaluations judged other instances; every later one is held against the first."""
    (first_entry, first), *others = evaluations
    for entry, evaluation in others:
        pair = f"'{first_entry.label}' ({first.directory}) and '{entry.label}' ({evaluation.directory})"
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
        raise RunError(f"{first.protocol.title}: {pair} judged {found}; {mend}")


def _caveats(comparison: Comparison) -> list[str]:
    """What a reader must know before comparing the lines."""
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
    missing = [entry.label for entry in comparison.entries if not entry.evaluations]
    if missing:
        data = "--images DIR --annotations FILE evaluate"
        notes.append(f"no evaluation of {', '.join(missing)}: {data}{'s' if len(missing) == 1 else ''} what is missing")
    for entry in comparison.entries:
        if any(training.cost is None for training in entry.trainings):
            notes.append(f"{entry.label}: no record of what its training took")
    return notes


def _setting(run: dict[str, Any]) -> Setting:
    return Setting(int(run["batch_size"]), str(run["precision"]))


def _is_of(row: dict[str, Any], entry: Entry) -> bool:
    """Whether a bench row is of an entry: by the hash of its weights, else by its name or path."""
    if row.get("weights_sha256") is not None:
        return bool(row["weights_sha256"] == entry.sha256)
    model = str(row.get("model"))
    if model in (entry.label, entry.source, entry.name):
        return True
    return entry.source is not None and Path(model).exists() and Path(model).resolve() == Path(entry.source).resolve()
