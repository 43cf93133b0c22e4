"""How a photo's instances are asked about: by their boxes, or by simulated clicks, one after the other.

Each way is a task (see `workers.drive`): it yields what worker processes are to do and goes on with their results, so
that the model answers for one photo while masks of others are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.config.schema import EvaluatePromptConfig
from distill.data.coco import AnnotatedPhoto, Instance
from distill.data.rle import RLE
from distill.evaluation.mask_scoring import Click, Judgement, Question, first_clicks, judge, read_resized
from distill.evaluation.predictors import Asked, Reply, Subject, View
from distill.evaluation.worker_pool import Task, Workers
from distill.geometry import HW
from distill.models.multimask import Policy
from distill.prompts.types import POSITIVE

MASKS_PER_JOB = 4  # sent to a worker together


@dataclass(frozen=True)
class InstanceScore:
    """The answer to one prompt.

    image: key of the photo. annotation_id, area, category_id: the annotation's own. iou, boundary_iou, predicted_iou:
    in 0..1, the last as the model says. score: what ranks the mask among others (AP).
    prompt: {"box_xyxy": [4]} or {"points_xy": [[2]], "labels": [1]} in original pixels. segmentation: the mask's code.
    """

    image: str
    annotation_id: int | None
    area: float
    iou: float | None
    predicted_iou: float
    prompt: dict[str, Any]
    category_id: int | None = None
    boundary_iou: float | None = None
    score: float | None = None
    segmentation: RLE | None = None


@dataclass
class PhotoScores:
    """The answers of one photo, in the order of its prompts; cosine: of its embedding and a teacher's, if measured."""

    image: str
    scores: list[InstanceScore] = field(default_factory=list)
    cosine: float | None = None


@dataclass(frozen=True)
class Protocol:
    """How a model is asked.

    prompt: boxes or simulated clicks. multimask: which of its masks counts, after each click; see answers.Policy.
    prompt_batch_size: prompts per forward of the decoder.
    """

    prompt: EvaluatePromptConfig
    multimask: Policy = "single"
    prompt_batch_size: int = 64


def ask_photo(subject: Subject, photo: AnnotatedPhoto, protocol: Protocol, workers: Workers) -> Task[PhotoScores]:
    """The scores of one photo's instances, in their order. Raises DataError when the photo cannot be decoded."""
    view = yield from look_at(subject, photo.path, photo.hw, workers)
    ask = ask_boxes if protocol.prompt.kind == "box" else ask_clicks
    found = PhotoScores(photo.key)
    for start in range(0, len(photo.instances), protocol.prompt_batch_size):
        instances = photo.instances[start : start + protocol.prompt_batch_size]
        answers = yield from ask(view, instances, photo.hw, protocol, workers)
        found.scores += [
            instance_score(photo.key, instance, answer) for instance, answer in zip(instances, answers, strict=True)
        ]
    return found


@dataclass
class Answer:
    """The judged answer to one prompt."""

    judgement: Judgement
    predicted_iou: float
    prompt: dict[str, Any]


def look_at(subject: Subject, path: Any, hw: HW, workers: Workers) -> Task[View]:
    """Read a photo in a worker, and let the subject see it."""
    if subject.image_size is None:
        yield []
        return subject.look(None, hw)
    ((resized, _),) = yield [workers.submit(read_resized, path, hw, subject.image_size)]
    return subject.look(resized, hw)


def ask_boxes(
    view: View, instances: Sequence[Instance], hw: HW, protocol: Protocol, workers: Workers
) -> Task[list[Answer]]:
    """One answer per ground-truth box."""
    boxes = np.array([instance.bbox_xyxy for instance in instances], np.float64)  # (P, 4), original pixels
    reply = view.answer(Asked(boxes_xyxy=boxes, targets=instances), protocol.multimask, protocol.prompt_batch_size)
    judgements = yield from judged(reply, hw, [instance.rle for instance in instances], workers)
    return [
        Answer(judgement, float(reply.predicted_iou[i, judgement.chosen]), {"box_xyxy": boxes[i].tolist()})
        for i, judgement in enumerate(judgements)
    ]


def ask_clicks(
    view: View, instances: Sequence[Instance], hw: HW, protocol: Protocol, workers: Workers
) -> Task[list[Answer]]:
    """One answer per instance after `num_clicks` simulated clicks; from the second on, with the previous logits.

    An instance without an error left gets no more clicks and keeps its answer.
    """
    people = [Clicker(instance) for instance in instances]
    for person, point in zip(people, (yield from _first_clicks(instances, workers)), strict=True):
        person.click((point, POSITIVE))
    num_clicks = protocol.prompt.num_clicks
    for num_click in range(1, num_clicks + 1):
        active = [person for person in people if len(person.points_xy) == num_click]
        if not active:
            break
        asked = _asked_by(active)
        reply = view.answer(asked, protocol.multimask, protocol.prompt_batch_size)
        clicked = asked.points_xy if num_click < num_clicks else None
        truths = [person.instance.rle for person in active]
        judgements = yield from judged(reply, hw, truths, workers, clicked_xy=clicked)
        for i, (person, judgement) in enumerate(zip(active, judgements, strict=True)):
            person.hear(judgement, reply, i)
    return [person.answer() for person in people]


@dataclass
class Clicker:
    """A simulated person who wants one instance and clicks on what is wrong with the last answer.

    points_xy: clicks so far, XY in original pixels; labels: POSITIVE or NEGATIVE. logits: (4E, 4E) of the last answer.
    """

    instance: Instance
    points_xy: list[list[float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    judgement: Judgement | None = None
    predicted_iou: float = 0.0
    logits: Tensor | None = None

    def click(self, click: Click | None) -> None:
        """Click once more; None: nothing is wrong."""
        if click is not None:
            self.points_xy.append(click[0])
            self.labels.append(click[1])

    def hear(self, judgement: Judgement, reply: Reply, row: int) -> None:
        """Take the answer to the clicks so far, and make the next one."""
        self.judgement = judgement
        self.predicted_iou = float(reply.predicted_iou[row, judgement.chosen])
        self.logits = None if reply.logits is None else reply.logits[row, judgement.chosen]
        self.click(judgement.click)

    def answer(self) -> Answer:
        assert self.judgement is not None
        prompt = {"points_xy": self.points_xy, "labels": self.labels}
        return Answer(self.judgement, self.predicted_iou, prompt)


def _first_clicks(instances: Sequence[Instance], workers: Workers) -> Task[list[list[float]]]:
    codes = [instance.rle for instance in instances]
    parts = yield [workers.submit(first_clicks, codes[i : i + MASKS_PER_JOB]) for i in _starts(len(codes))]
    return [point for part in parts for point in part]


def _asked_by(people: Sequence[Clicker]) -> Asked:
    """The prompts of people with equally many clicks."""
    previous = [person.logits for person in people if person.logits is not None]
    return Asked(
        points_xy=np.array([person.points_xy for person in people], np.float64),  # (A, K, 2)
        labels=np.array([person.labels for person in people], np.int64),
        mask_logits=torch.stack(previous)[:, None] if previous else None,  # (A, 1, 4E, 4E)
        targets=[person.instance for person in people],
    )


def judged(
    reply: Reply,
    hw: HW,
    truths: Sequence[RLE | None],
    workers: Workers,
    *,
    clicked_xy: np.ndarray | None = None,
) -> Task[list[Judgement]]:
    """Judge P answers in workers, a few at a time.

    Args:
        clicked_xy: (P, K, 2) clicks so far when another is wanted.
    """
    questions = [
        Question(candidates, hw, truth, None if clicked_xy is None else clicked_xy[i])
        for i, (candidates, truth) in enumerate(zip(reply.candidates, truths, strict=True))
    ]
    parts = yield [workers.submit(judge, questions[i : i + MASKS_PER_JOB]) for i in _starts(len(questions))]
    return [judgement for part in parts for judgement in part]


def instance_score(image: str, instance: Instance, answer: Answer) -> InstanceScore:
    """What an evaluation keeps of an answer about an annotated instance."""
    return InstanceScore(
        image=image,
        annotation_id=instance.id,
        area=instance.area,
        iou=answer.judgement.iou,
        predicted_iou=answer.predicted_iou,
        prompt=answer.prompt,
        category_id=instance.category_id,
        boundary_iou=answer.judgement.boundary_iou,
        score=answer.predicted_iou,
        segmentation=answer.judgement.rle,
    )


def _starts(num: int) -> range:
    return range(0, num, MASKS_PER_JOB)
