"""The models of a comparison, each with its evaluations and the records of its training."""

from __future__ import annotations

import os
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
from distill.models.checkpoint import (
    STUDENT_FILE,
    TRAINING_SUFFIX,
    find_weights,
    is_packaged,
    read_metadata,
)
from distill.models.spec_header import SPEC_KEY, parse_spec
from distill.runtimes.exported import hash_model, is_exported, read_spec
from distill.training.directory import CHECKPOINTS
from distill.training.record import TRAINING_KINDS, Training, read_trainings

WEIGHTS_SUFFIX = ".safetensors"
RELEASED = (".pt", ".pth")  # suffixes of files that others published


@dataclass
class ComparedModel:
    """One model of a comparison, which is one row of its tables.

    label: its name in tables and plots. is_named: whether the user chose it.
    source: what `load_model` reads; None if the weights are not on this machine, or for a baseline.
    sha256: of the weights; None for a baseline.
    name: which published model a released file holds.
    trainings: the stages that led to the weights, the first one first.
    bench: its row of a bench document, as `distill bench models` writes it.
    """

    label: str
    source: str | None
    sha256: str | None
    name: str | None = None
    trainings: list[Training] = field(default_factory=list)
    evaluations: dict[ProtocolKey, FinishedEvaluation] = field(default_factory=dict)
    bench: dict[str, Any] | None = None
    is_named: bool = False

    @property
    def image_size(self) -> int | None:
        """The side of the square that the encoder reads, in pixels; None if nothing says it."""
        if self.bench is not None and self.bench.get("image_size") is not None:
            return int(self.bench["image_size"])
        for training in reversed(self.trainings):
            if (size := training.recipe.get("student", {}).get("image_size")) is not None:
                return int(size)
        return _image_size_of(self.source) if self.source is not None else None

    def rename(self, label: str) -> None:
        """Give the model the label that the user chose. Raises RunError if the user gave it another one before."""
        if self.is_named and self.label != label:
            raise RunError(
                f"'{self.label}' and '{label}' have the same weights, and one model has one row: give both sources one "
                "label, or leave one of them out"
            )
        self.label, self.is_named = label, True

    def add(self, evaluation: FinishedEvaluation) -> None:
        """Add an evaluation. Raises RunError if the model has one by the same protocol from another directory."""
        own = self.evaluations.setdefault(evaluation.protocol, evaluation)
        if own.directory.resolve() != evaluation.directory.resolve():
            raise RunError(
                f"{self.label}: two evaluations by {evaluation.protocol.title}: {own.directory} and "
                f"{evaluation.directory}; give one of them"
            )


def read_models(sources: Sequence[str], folders: Sequence[Path] = ()) -> tuple[list[ComparedModel], list[str]]:
    """Read the models of a comparison with their evaluations.

    Args:
        sources: runs, evaluations and models, each as PATH or LABEL=PATH.
        folders: directories that hold evaluations. Those of the given models are added to them; without `sources`, all
            evaluations are read.
    Returns:
        the models in the order given, and notes on what was left out.
    Raises:
        DistillError: a source is none of these, is not finished, or is given twice.
    """
    models: list[ComparedModel] = []
    for source in sources:
        label, path = split_label(source)
        if not is_packaged(path) and is_evaluation(Path(path)):
            add_evaluation(models, read_evaluation(Path(path)), label)
        else:
            models.append(read_model(path, label, models))
    notes = []
    for folder in folders:
        found, unfinished = find_evaluations(folder)
        notes += [f"{directory} is not finished, and left out" for directory in unfinished]
        for evaluation in found:
            if not sources:
                add_evaluation(models, evaluation, None)
            elif (model := find_model(models, evaluation)) is not None:
                model.add(evaluation)
            elif any(_same_place(model.source, evaluation.metrics["model"]) for model in models):
                notes.append(
                    f"{evaluation.directory} evaluated other weights of {evaluation.metrics['model']}: left out"
                )
    _make_labels_unique(models)
    return models, notes


def split_label(source: str) -> tuple[str | None, str]:
    """Split LABEL=PATH into both. A path alone has the label None, and may hold a '=' itself."""
    label, equals, path = source.partition("=")
    if not equals or Path(source).exists() or "/" in label:
        return None, source
    return label, path


def read_model(source: str, label: str | None, others: Iterable[ComparedModel] = ()) -> ComparedModel:
    """Read a model with the record of its training.

    Args:
        source: a run directory, or a file of weights.
        label: None for a name made of the path.
        others: the models that were read before.
    Raises:
        DistillError: the source holds no finished model, is a released file without a name, or has the weights of one
            of `others`.
    """
    path = Path(source)
    is_directory = path.is_dir() and not is_packaged(source)
    if is_directory and not (path / STUDENT_FILE).is_file() and not is_exported(path):
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
    sha256 = hash_model(source)
    for other in others:
        if other.sha256 == sha256:
            raise RunError(
                f"{source}: the same weights as {other.source or other.label}, so every score would be the same, and a "
                "difference in speed only noise; give them once"
            )
    trainings = read_trainings(path) if is_directory else []
    is_named = label is not None
    return ComparedModel(label or default_label(source), source, sha256, name, trainings, is_named=is_named)


def add_evaluation(models: list[ComparedModel], evaluation: FinishedEvaluation, label: str | None) -> None:
    """Add an evaluation to its model, or to a new one at the end of the list.

    A new model gets its source and its trainings if the evaluated weights are still on this machine.

    Args:
        label: of the model; None to keep the one that it has.
    Raises:
        RunError: the model has another label of the user, or another evaluation by this protocol.
    """
    model = find_model(models, evaluation)
    if model is None:
        source, sha256 = evaluation.metrics["model"], evaluation.metrics["weights_sha256"]
        is_here = sha256 is not None and _sha256_or_none(source) == sha256
        trainings = read_trainings(Path(source)) if is_here else []
        model = ComparedModel(default_label(source), source if is_here else None, sha256, None, trainings)
        models.append(model)
    if label is not None:
        model.rename(label)
    model.add(evaluation)


def find_model(models: Iterable[ComparedModel], evaluation: FinishedEvaluation) -> ComparedModel | None:
    """Find the model that was evaluated: by the hash of its weights, or a baseline by its name."""
    sha256, name = evaluation.metrics["weights_sha256"], evaluation.metrics["model"]
    for model in models:
        if model.sha256 == sha256 and (sha256 is not None or name in _baseline_names(model)):
            return model
    return None


def default_label(source: str) -> str:
    """Return the label of a model without one: the name of its run directory, or of its file.

    A checkpoint is called like its run; where that is not enough, `_make_labels_unique` adds its own name.
    """
    path = Path(source)
    if is_checkpoint(path):
        path = path.absolute().parent  # the run is above it even where the working directory is in it
        return path.parent.name if path.name == CHECKPOINTS else path.name
    return path.parent.name if path.name == STUDENT_FILE and path.parent.name else path.stem or source


def is_checkpoint(path: Path) -> bool:
    """Return whether a path is a checkpoint of a run, by its name."""
    return path.suffix == TRAINING_SUFFIX


def _same_place(source: str | None, model: str) -> bool:
    return source is not None and os.path.abspath(source) == os.path.abspath(model)


def _image_size_of(source: str) -> int | None:
    """Return the input size that a file or an export of ours states; None for other files."""
    if is_exported(source):
        return read_spec(Path(source)).image_size
    path = find_weights(source)
    if path.suffix != WEIGHTS_SUFFIX or (described := read_metadata(path).get(SPEC_KEY)) is None:
        return None
    return parse_spec(described, path).image_size


def _path_of(model: ComparedModel) -> Path:
    return Path(model.source or next(iter(model.evaluations.values())).metrics["model"])


def _baseline_names(model: ComparedModel) -> set[str]:
    return {evaluation.metrics["model"] for evaluation in model.evaluations.values()}


def _sha256_or_none(source: str) -> str | None:
    try:
        return hash_model(source)
    except (DistillError, OSError):
        return None


def _make_labels_unique(models: list[ComparedModel]) -> None:
    """Tell equal labels apart, unless the user chose them: a checkpoint by its own name, others by the folder above.

    Raises:
        RunError: two labels are still equal.
    """
    given = [model.label for model in models]
    for model in models:
        if given.count(model.label) > 1 and not model.is_named and is_checkpoint(path := _path_of(model)):
            model.label = f"{model.label}/{path.stem}"
    given = [model.label for model in models]
    for model, label in zip(models, given, strict=True):
        if given.count(label) > 1 and not model.is_named:
            path = _path_of(model)
            folder = path.parent.parent if path.name == STUDENT_FILE else path.parent
            model.label = f"{folder.name}/{label}"
    labels = [model.label for model in models]
    for label, name in zip(labels, given, strict=True):
        if labels.count(label) > 1:
            raise RunError(f"two models are called '{name}'; give each a name: NAME=PATH")
