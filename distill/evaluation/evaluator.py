"""The one evaluator: any promptable model over annotated photos, masks compared at the photo's own resolution.

A photo is embedded once; its prompts are answered in batches. An evaluation is one task per photo, in any order and on
any number of processes, and a summary of what all of them found.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from distill.config.schema import EvaluateDataConfig
from distill.data.coco import AnnotatedPhoto, CocoSet
from distill.data.lvis import LvisSet
from distill.errors import DataError
from distill.evaluation import prompting as asking
from distill.evaluation.bootstrap import Interval
from distill.evaluation.predictors import ModelSubject, Subject
from distill.evaluation.prompting import InstanceScore, PhotoScores, ask_photo
from distill.evaluation.summary import Metrics, score_intervals, summarize
from distill.evaluation.worker_pool import Task, Workers, drive
from distill.models.sam import PromptableModel

AHEAD = 2  # photos under way for each worker, and as many for the model


@dataclass
class Summary:
    """What an evaluation says in the end: its numbers (None: no such instance), and intervals of its means."""

    metrics: Metrics
    intervals: Mapping[str, Interval]


class Evaluation(Protocol):
    """One protocol over one set of photos.

    photos: what is asked about, in the order of the record. image_ids: the set's own id of each photo, by key.
    """

    @property
    def photos(self) -> Sequence[Any]: ...
    @property
    def image_ids(self) -> Mapping[str, int]: ...

    def ask(self, subject: Subject, photo: Any, workers: Workers) -> Task[PhotoScores]:
        """The task that asks about one photo."""
        ...

    def summarize(self, found: Sequence[PhotoScores]) -> Summary:
        """The numbers, from what was found in all photos, in their order."""
        ...


class PromptEvaluation:
    """Masks from ground-truth boxes or simulated clicks, over the instances of a set."""

    def __init__(self, coco_set: CocoSet, protocol: asking.Protocol, max_images: int = 0) -> None:
        self.coco_set = coco_set
        self.protocol = protocol
        self.photos = photos_to_ask(coco_set, max_images)
        self.image_ids = coco_set.image_ids

    def ask(self, subject: Subject, photo: AnnotatedPhoto, workers: Workers) -> Task[PhotoScores]:
        return ask_photo(subject, photo, self.protocol, workers)

    def summarize(self, found: Sequence[PhotoScores]) -> Summary:
        scores = [score for of_photo in found for score in of_photo.scores]
        left_out = {"num_crowd": self.coco_set.num_crowd, "num_empty": len(self.coco_set.empty)}
        return Summary({**summarize(scores), **left_out}, score_intervals(scores))


def open_set(data: EvaluateDataConfig) -> CocoSet:
    """The annotated photos that a recipe names. Raises DataError."""
    return (LvisSet if data.format == "lvis" else CocoSet)(data.images, data.annotations)


def photos_to_ask(coco_set: CocoSet, max_images: int = 0) -> list[AnnotatedPhoto]:
    """The first `max_images` photos of a set (0: all), without those that have no instance.

    Raises DataError when none is left.
    """
    photos = [photo for photo in itertools.islice(coco_set, max_images or None) if photo.instances]
    if not photos:
        raise DataError(
            f"{coco_set.annotations_file}: no instance with pixels in its first {max_images or len(coco_set)} photos"
            f" ({coco_set.num_crowd} crowd regions and {len(coco_set.empty)} empty masks are left out);"
            " give annotations with masks"
        )
    return photos


def ask_all(evaluation: Evaluation, subject: Subject, photos: Iterable[Any], workers: Workers) -> Iterator[PhotoScores]:
    """Ask about photos, several of them under way; what was found in each, as it comes."""
    tasks = (evaluation.ask(subject, photo, workers) for photo in photos)
    return drive(tasks, at_once=AHEAD * (workers.num + 1) if workers.num else 1)


def evaluate_model(
    model: PromptableModel | Subject,
    photos: Iterable[AnnotatedPhoto],
    protocol: asking.Protocol,
    *,
    finished: Sequence[InstanceScore] = (),
    on_photo: Callable[[list[InstanceScore]], None] | None = None,
    num_workers: int = 0,
) -> Metrics:
    """Judge a model, or a baseline, over a CocoSet, or some of its photos.

    Args:
        model: on the device that it shall run on; put into eval mode.
        finished: scores of an earlier run; their photos are not asked about again.
        on_photo: called with the scores of each photo that was asked about.
        num_workers: processes that read photos and compare masks; 0: this one.
    Returns:
        see `scores.summarize`.
    """
    subject = ModelSubject(model) if isinstance(model, PromptableModel) else model
    scores = list(finished)
    done = {score.image for score in scores}
    left = (photo for photo in photos if photo.instances and photo.key not in done)
    with Workers(num_workers) as workers:
        tasks = (ask_photo(subject, photo, protocol, workers) for photo in left)
        for found in drive(tasks, at_once=AHEAD * (num_workers + 1) if num_workers else 1):
            scores += found.scores
            if on_photo is not None:
                on_photo(found.scores)
    return summarize(scores)


def evaluate_photo(
    model: PromptableModel | Subject, photo: AnnotatedPhoto, protocol: asking.Protocol
) -> list[InstanceScore]:
    """The scores of one photo's instances, in their order. Raises DataError when the photo cannot be decoded."""
    found: list[InstanceScore] = []
    evaluate_model(model, [photo], protocol, on_photo=found.extend)
    return found
