"""Finished evaluations, read back from their directories. The one reader for cards, comparisons and reports."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distill.config.run_directory import read_recipe_tree
from distill.config.schema import EVALUATIONS
from distill.errors import RunError
from distill.evaluation.record import EVALUATION_METRICS_FILE, INSTANCES_FILE, MODEL_FILE
from distill.evaluation.written import InstanceLine, read_lines, read_metrics
from distill.outside import inside
from distill.runtimes.folder import holds_export

CLICK_KEY = "miou_click"  # and a number of clicks: the mean IoU after them
# The metrics that can stand for an evaluation, with their words; the first that an evaluation has is its headline.
HEADLINE_WORDS = {"miou": "mIoU", "ap": "AP", "map": "mean AP", "ar_1000": "AR@1000"}


# Who published the protocols whose names begin so, with a slash behind it.
PUBLISHERS = {
    "efficientvit_sam": "EfficientViT-SAM",
    "mobile_sam": "MobileSAM",
    "edge_sam": "EdgeSAM",
    "sam": "SAM",
    "ritm": "RITM",
}
POLICIES = {"single": "single mask", "best": "best of three", "oracle": "oracle's pick"}


class ProtocolKey(NamedTuple):
    """The part of a protocol that two evaluations must share to stand in one column."""

    name: str
    prompt: str | None
    num_clicks: int | None
    multimask: str | None

    @property
    def words(self) -> str:
        """The prompts in words, and who published the protocol."""
        publisher, _, short_name = self.name.rpartition("/")
        if self.prompt == "point" and self.num_clicks is not None:
            words = f"{self.num_clicks} click" + ("s" if self.num_clicks != 1 else "")
        else:
            words = {"box": "box", "detection": "detector boxes"}.get(self.prompt or "", short_name)
        if publisher in PUBLISHERS:
            words += f" by {PUBLISHERS[publisher]}'s rules"
        return words

    @property
    def title(self) -> str:
        """The protocol in words: who published it, and the multimask policy where it is not ours for such prompts."""
        usual = {"box": "single", "point": "best", "detection": "single"}.get(self.prompt or "", self.multimask)
        return self.words if self.multimask == usual else self.full_title

    @property
    def full_title(self) -> str:
        """The protocol in words with its multimask policy, for readers who do not know which one is usual."""
        if self.multimask is None:
            return self.words
        return f"{self.words}, {POLICIES.get(self.multimask, self.multimask)}"


@dataclass(frozen=True)
class FinishedEvaluation:
    """A finished evaluation: its directory, its protocol, and the content of metrics.json, which is checked."""

    directory: Path
    protocol: ProtocolKey
    metrics: dict[str, Any]

    @property
    def headline(self) -> str:
        """The key of the one number that stands for the evaluation."""
        return headline_of(self.metrics)

    def interval(self, key: str) -> tuple[float, float] | None:
        """Return the 95 % interval of a metric, or None where the evaluation has none."""
        found = self.metrics.get("intervals", {}).get(key)
        return None if found is None else (found[0], found[1])

    @cached_property
    def instances(self) -> ScoredInstances:
        """The scored instances, read from disk on the first use."""
        return read_instances(self.directory / INSTANCES_FILE)

    @cached_property
    def data_sha256(self) -> str:
        """The hash of what was scored: of the annotations, or of the photos' names where there are none."""
        if (annotations := self.metrics.get("annotations_sha256")) is not None:
            return str(annotations)
        if "sets" in self.metrics:
            places = {name: inside(self.directory, name, str(self.directory)) for name in self.metrics["sets"]}
            of_sets = {name: read_evaluation(place).data_sha256 for name, place in places.items()}
            return _sha256_of(of_sets)
        return _sha256_of(sorted(set(self.instances.photos)))


@dataclass(frozen=True)
class ScoredInstances:
    """N scored instances of one evaluation.

    keys: (photo, annotation id) of each. areas: (N,) in original pixels. ious: (N,), NaN for a mask without a truth.
    """

    keys: list[tuple[str, int | None]]
    areas: np.ndarray
    ious: np.ndarray

    @property
    def photos(self) -> list[str]:
        """The photo of each instance, by its key."""
        return [photo for photo, _ in self.keys]


def is_evaluation(path: Path) -> bool:
    """Return whether a directory holds an evaluation, finished or begun."""
    if holds_export(path):  # which has a model.json too
        return False
    return (path / MODEL_FILE).is_file() or read_recipe_tree(path).get("kind") in EVALUATIONS


def read_evaluation(directory: Path) -> FinishedEvaluation:
    """Read a finished evaluation.

    Raises:
        RunError: the evaluation is not finished, or its metrics.json cannot be read.
    """
    path = directory / EVALUATION_METRICS_FILE
    if not path.is_file():
        raise RunError(f"{directory}: this evaluation is not finished (no {path.name}): go on with it by resume=true")
    metrics = read_metrics(path)
    return FinishedEvaluation(directory, protocol_of(metrics), metrics)


def headline_of(metrics: Mapping[str, Any]) -> str:
    """Return the key of the one number of metrics.json that stands for the evaluation."""
    return next((key for key in HEADLINE_WORDS if key in metrics), "miou")


def metrics_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Return the numbers of metrics.json as lines for the terminal, each mean with its 95 % interval."""
    lines, intervals = [], metrics["intervals"]
    for name, value in metrics.items():
        if name == "intervals":
            break  # the protocol follows
        shown = "no such instance" if value is None else f"{value:.4f}" if isinstance(value, float) else value
        low_high = "   ({:.4f} to {:.4f})".format(*intervals[name]) if name in intervals else ""
        lines.append(f"{name:19} {shown}{low_high}")
    return lines


def protocol_of(metrics: Mapping[str, Any]) -> ProtocolKey:
    """Return the protocol that metrics.json names."""
    name = metrics.get("protocol") or metrics.get("prompt") or str(metrics["kind"])
    return ProtocolKey(name, *(metrics.get(key) for key in ("prompt", "num_clicks", "multimask")))


def find_evaluations(folder: Path, *, option: str = "--evaluations") -> tuple[list[FinishedEvaluation], list[Path]]:
    """Find the evaluations below a directory.

    An evaluation over many sets counts once: the directories of its sets are left out.

    Args:
        folder: holds evaluations, or is one.
        option: of the command that names the directory, for messages.
    Returns:
        the finished evaluations, and the directories of those that were begun but not finished.
    Raises:
        RunError: the directory does not exist, or holds no evaluation.
    """
    if not folder.is_dir():
        raise RunError(f"{option} {folder}: no such directory")
    directories = sorted(path.parent for path in folder.rglob(MODEL_FILE) if not holds_export(path.parent))
    directories = [d for d in directories if d == folder or d.parent not in directories]
    finished = [directory for directory in directories if (directory / EVALUATION_METRICS_FILE).is_file()]
    if not directories:
        raise RunError(f"{option} {folder}: no evaluation in it (no {MODEL_FILE}); `distill evaluate` writes them")
    return [read_evaluation(directory) for directory in finished], [d for d in directories if d not in finished]


def read_instances(path: Path) -> ScoredInstances:
    """Read the lines of instances.jsonl. Raises RunError when the file is missing or cut short."""
    keys, areas, ious = [], [], []
    for row in read_lines(path, InstanceLine):
        keys.append((row.image, row.annotation_id))
        areas.append(row.area)
        ious.append(float("nan") if row.iou is None else row.iou)
    return ScoredInstances(keys, np.array(areas, np.float64), np.array(ious, np.float64))


def _sha256_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
