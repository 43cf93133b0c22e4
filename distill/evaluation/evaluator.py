"""The one evaluator: any promptable model over annotated photos, masks compared at the photo's own resolution.

A photo is encoded once, and its prompts are decoded in batches. An evaluation scores each photo by itself, in any order
and on any number of processes, and then summarizes the scores of all photos.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from distill.config.schema import EvaluateDataConfig, InstanceConfig
from distill.data.coco import AnnotatedPhoto, CocoSet
from distill.data.lvis import LvisSet
from distill.errors import DataError
from distill.evaluation.predictors import MaskPredictor, ModelPredictor
from distill.evaluation.prompting import InstanceScore, PhotoScores, PromptProtocol, score_instances
from distill.evaluation.scoring.bootstrap import Interval
from distill.evaluation.summary import Metrics, click_metrics, score_intervals, summarize
from distill.evaluation.worker_pool import WorkerPool, run_concurrently
from distill.models.sam import PromptableModel

PHOTOS_AHEAD = 2  # photos under way for each worker, and as many for the model


class Keyed(Protocol):
    """A photo with a key that is unique in its set."""

    @property
    def key(self) -> str: ...


Photo = TypeVar("Photo", bound=Keyed)


@dataclass
class Summary:
    """The result of an evaluation: its metrics (None: no such instance), and the intervals of its means."""

    metrics: Metrics
    intervals: Mapping[str, Interval]


class EvaluationProtocol(Protocol[Photo]):
    """A protocol over one set of photos.

    photos: the photos to evaluate, in the order of the record. image_ids: the set's own id of each photo, by key.
    """

    @property
    def photos(self) -> Sequence[Photo]: ...
    @property
    def image_ids(self) -> Mapping[str, int]: ...

    async def score_photo(self, predictor: MaskPredictor, photo: Photo, workers: WorkerPool) -> PhotoScores:
        """Score the predictor's masks of one photo."""
        ...

    def summarize(self, found: Sequence[PhotoScores]) -> Summary:
        """Return the metrics from the scores of all photos, in their order."""
        ...


class PromptEvaluation:
    """The evaluation of masks from ground-truth boxes or simulated clicks, over the instances of a set."""

    def __init__(
        self, coco_set: CocoSet, protocol: PromptProtocol, max_images: int = 0, rules: InstanceConfig | None = None
    ) -> None:
        self.coco_set, self.protocol, self.rules = coco_set, protocol, rules or InstanceConfig()
        self.photos = photos_with_instances(coco_set, max_images, self.rules)
        self.image_ids = coco_set.image_ids
        self.left_out = {
            "num_crowd": 0 if self.rules.crowds else coco_set.count_crowd(max_images),
            "num_empty": 0 if self.rules.empty else len(coco_set.empty),
        }
        if self.rules.min_area:
            self.left_out["num_small"] = coco_set.count_small(self.rules, max_images)

    async def score_photo(self, predictor: MaskPredictor, photo: AnnotatedPhoto, workers: WorkerPool) -> PhotoScores:
        """Score each instance of a photo."""
        return await score_instances(predictor, photo, self.protocol, workers)

    def summarize(self, found: Sequence[PhotoScores]) -> Summary:
        """Return mean IoU and the like over instances, also by clicks, and how many annotations were left out."""
        scores = [score for of_photo in found for score in of_photo.scores]
        closed = self.rules.sizes == "closed"
        prompt = self.protocol.prompt
        clicks, click_intervals = click_metrics(scores, prompt.noc, first=0 if prompt.kind == "box" else 1)
        metrics = {**summarize(scores, closed=closed), **clicks, **self.left_out}
        return Summary(metrics, {**score_intervals(scores, closed=closed), **click_intervals})


def open_set(data: EvaluateDataConfig) -> CocoSet:
    """Open the annotated photos that a recipe names. Raises DataError."""
    return (LvisSet if data.format == "lvis" else CocoSet)(data.images, data.annotations)


def photos_with_instances(
    coco_set: CocoSet, max_images: int = 0, rules: InstanceConfig | None = None
) -> list[AnnotatedPhoto]:
    """Return the first `max_images` photos of a set (0: all), without those that have no instance.

    Raises:
        DataError: none is left.
    """
    found = coco_set.photos(rules or InstanceConfig())
    photos = [photo for photo in itertools.islice(found, max_images or None) if photo.instances]
    if not photos:
        raise DataError(
            f"{coco_set.annotations_file}: no instance with pixels in its first {max_images or len(coco_set)} photos"
            f" ({coco_set.count_crowd(max_images)} crowd regions and {len(coco_set.empty)} empty masks are left out);"
            " give annotations with masks"
        )
    return photos


def evaluate_photos(
    evaluation: EvaluationProtocol[Photo], predictor: MaskPredictor, photos: Iterable[Photo], workers: WorkerPool
) -> Iterator[PhotoScores]:
    """Score photos, several of them at a time. Yield the scores of each as they come."""
    coroutines = (evaluation.score_photo(predictor, photo, workers) for photo in photos)
    return run_concurrently(coroutines, limit=photos_under_way(workers, predictor.photos_at_once))


def evaluate_model(
    model: PromptableModel | MaskPredictor,
    photos: Iterable[AnnotatedPhoto],
    protocol: PromptProtocol,
    *,
    finished: Sequence[InstanceScore] = (),
    on_photo: Callable[[list[InstanceScore]], None] | None = None,
    num_workers: int = 0,
) -> Metrics:
    """Evaluate a model, or a baseline, over a CocoSet or some of its photos, and write nothing.

    Args:
        model: on the device that it shall run on. It is put into eval mode.
        finished: scores of an earlier run. Their photos are not evaluated again.
        on_photo: called with the scores of each photo that is evaluated.
        num_workers: processes that read photos and compare masks. With 0, this process does it.
    Returns:
        metrics as `summary.summarize` gives them.
    Raises:
        DataError: a photo cannot be decoded.
    """
    predictor = ModelPredictor(model) if isinstance(model, PromptableModel) else model
    scores = list(finished)
    done = {score.image for score in scores}
    left = (photo for photo in photos if photo.instances and photo.key not in done)
    with WorkerPool(num_workers) as workers:
        coroutines = (score_instances(predictor, photo, protocol, workers) for photo in left)
        for found in run_concurrently(coroutines, limit=photos_under_way(workers, predictor.photos_at_once)):
            scores += found.scores
            if on_photo is not None:
                on_photo(found.scores)
    return summarize(scores)


def evaluate_photo(
    model: PromptableModel | MaskPredictor, photo: AnnotatedPhoto, protocol: PromptProtocol
) -> list[InstanceScore]:
    """Return the scores of one photo's instances, in their order. Raises DataError when it cannot be decoded."""
    found: list[InstanceScore] = []
    evaluate_model(model, [photo], protocol, on_photo=found.extend)
    return found


def photos_under_way(workers: WorkerPool, photos_at_once: int) -> int:
    """Return how many photos are under way at a time: enough for all workers, and for the model's calls."""
    return max(PHOTOS_AHEAD * (workers.num + 1) if workers.num else 1, photos_at_once)
