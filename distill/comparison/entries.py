"""What a comparison reads: models, evaluations and records of training, and what belongs to which model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.config.run_directory import read_recipe_tree
from distill.errors import CheckpointError, DistillError, RunError
from distill.evaluation.finished import (
    FinishedEvaluation,
    ProtocolKey,
    find_evaluations,
    is_evaluation,
    read_evaluation,
)
from distill.evaluation.record import MODEL_FILE
from distill.models.checkpoint import STUDENT_FILE, find_weights, is_packaged, sha256_file
from distill.training.record import TRAINING_KINDS, Training, read_trainings

RELEASED = (".pt", ".pth")


@dataclass
class Entry:
    """One line of a comparison.

    source: what `load_model` reads, None when the weights are not here; name: of a released file's model.
    trainings: the stages that led to it, the first one first. bench: its row of a bench file.
    """

    label: str
    source: str | None
    sha256: str | None
    name: str | None = None
    trainings: list[Training] = field(default_factory=list)
    evaluations: dict[ProtocolKey, FinishedEvaluation] = field(default_factory=dict)
    bench: dict[str, Any] | None = None

    def add(self, evaluation: FinishedEvaluation) -> None:
        """Raises RunError when it has one by this protocol from elsewhere."""
        own = self.evaluations.setdefault(evaluation.protocol, evaluation)
        if own.directory.resolve() != evaluation.directory.resolve():
            raise RunError(
                f"{self.label}: two evaluations by {evaluation.protocol.title}: {own.directory} and "
                f"{evaluation.directory}; give one of them"
            )


def read_entries(sources: Sequence[str], folders: Sequence[Path] = ()) -> tuple[list[Entry], list[str]]:
    """The lines of a comparison, in the order given, and notes on what was left out.

    Args:
        sources: runs, evaluations and models, each as PATH or LABEL=PATH.
        folders: directories of evaluations; those of the given models are joined to them, or all without a model.
    Raises:
        DistillError: a source that is none of these, is not finished, or is there twice.
    """
    entries: list[Entry] = []
    for source in sources:
        label, path = split_label(source)
        if not is_packaged(path) and is_evaluation(Path(path)):
            join(entries, read_evaluation(Path(path)), label)
        else:
            entries.append(read_model(path, label, entries))
    notes = []
    for folder in folders:
        found, unfinished = find_evaluations(folder)
        notes += [f"{directory} is not finished, and left out" for directory in unfinished]
        for evaluation in found:
            if not sources:
                join(entries, evaluation, None)
            elif (entry := entry_of(entries, evaluation)) is not None:
                entry.add(evaluation)
            elif any(entry.source == evaluation.metrics["model"] for entry in entries):
                notes.append(f"{evaluation.directory} judged other weights of {evaluation.metrics['model']}: left out")
    _make_labels_unique(entries)
    return entries, notes


def split_label(source: str) -> tuple[str | None, str]:
    """LABEL=PATH, or a path alone, which may hold a '=' itself."""
    label, equals, path = source.partition("=")
    if not equals or Path(source).exists() or "/" in label:
        return None, source
    return label, path


def read_model(source: str, label: str | None, others: Iterable[Entry] = ()) -> Entry:
    """A model with the record of its training. Raises DistillError."""
    path = Path(source)
    is_directory = path.is_dir() and not is_packaged(source)
    if is_directory and not (path / STUDENT_FILE).is_file():
        if read_recipe_tree(path).get("kind") in TRAINING_KINDS:
            raise RunError(f"{path}: this training has not ended (no {STUDENT_FILE}): go on with it by resume=true")
        raise RunError(
            f"{path}: neither a run (no {STUDENT_FILE}) nor an evaluation (no {MODEL_FILE}); a directory of "
            f"evaluations is given as --evaluations {path}"
        )
    name = None
    if path.suffix in RELEASED:
        if label is None:
            raise CheckpointError(f"{path}: say which released model it is: NAME={path}, as sam_vit_b={path}")
        name = label
    sha256 = sha256_file(find_weights(source))
    for other in others:
        if other.sha256 == sha256:
            raise RunError(f"{source}: the same weights as {other.source or other.label}; give them once")
    trainings = read_trainings(path) if is_directory else []
    return Entry(label or default_label(source), source, sha256, name, trainings)


def join(entries: list[Entry], evaluation: FinishedEvaluation, label: str | None) -> None:
    """Add an evaluation to the entry of its model, or to a new one, which knows its weights if they are still there."""
    entry = entry_of(entries, evaluation)
    if entry is None:
        source, sha256 = evaluation.metrics["model"], evaluation.metrics["weights_sha256"]
        is_here = sha256 is not None and _sha256_or_none(source) == sha256
        trainings = read_trainings(Path(source)) if is_here else []
        entry = Entry(label or default_label(source), source if is_here else None, sha256, None, trainings)
        entries.append(entry)
    elif label is not None:
        entry.label = label
    entry.add(evaluation)


def entry_of(entries: Iterable[Entry], evaluation: FinishedEvaluation) -> Entry | None:
    """The entry of the model that was judged."""
    sha256, model = evaluation.metrics["weights_sha256"], evaluation.metrics["model"]
    for entry in entries:
        if entry.sha256 == sha256 and (sha256 is not None or model in _baselines(entry)):
            return entry
    return None


def default_label(source: str) -> str:
    path = Path(source)
    return path.parent.name if path.name == STUDENT_FILE and path.parent.name else path.stem or source


def _baselines(entry: Entry) -> set[str]:
    return {evaluation.metrics["model"] for evaluation in entry.evaluations.values()}


def _sha256_or_none(source: str) -> str | None:
    try:
        return sha256_file(find_weights(source))
    except (DistillError, OSError):
        return None


def _make_labels_unique(entries: list[Entry]) -> None:
    """Equal names get the folder above in front. Raises RunError where that does not tell them apart."""
    given = [entry.label for entry in entries]
    for entry, label in zip(entries, given, strict=True):
        if given.count(label) > 1:
            path = Path(entry.source or next(iter(entry.evaluations.values())).metrics["model"])
            folder = path.parent.parent if path.name == STUDENT_FILE else path.parent
            entry.label = f"{folder.name}/{label}"
    labels = [entry.label for entry in entries]
    for label, name in zip(labels, given, strict=True):
        if labels.count(label) > 1:
            raise RunError(f"two models are called '{name}'; give each a name: NAME=PATH")
