"""The one evaluator: any promptable model over COCO-format annotations, masks compared at the photo's own resolution.

A photo is embedded once; its prompts are answered in batches; a truth mask lives only as long as its batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.answers import Policy, answer
from distill.clicks import next_click
from distill.config import EvaluatePromptConfig
from distill.datasets.coco import CocoPhoto, CocoSet, Instance
from distill.datasets.rle import decode_mask
from distill.errors import DataError
from distill.geometry import HW, boxes_to_prompt_frame, letterbox, masks_to_original, points_to_prompt_frame
from distill.metrics import MaskIoU, mask_iou
from distill.prompts import Prompts
from distill.sam import PromptableModel

MASKS_PER_RESIZE = 4  # a mask of a 1500 x 2250 photo takes 13 MB as float logits


@dataclass(frozen=True)
class InstanceScore:
    """The answer to one instance.

    image: key of the photo. annotation_id, area: the annotation's own. iou, predicted_iou: in 0..1, the second as the
    model says. prompt: {"box_xyxy": [4]} or {"points_xy": [[2]], "labels": [1]} in original pixels.
    """

    image: str
    annotation_id: int
    area: float
    iou: float
    predicted_iou: float
    prompt: dict[str, Any]


@dataclass
class Answers:
    """P answers of a model: IoU with the truth (P,), predicted IoU (P,), and the P prompts that were asked."""

    iou: Tensor
    predicted_iou: Tensor
    prompts: list[dict[str, Any]]


@dataclass
class Clicker:
    """A simulated person who wants `truth` and clicks on what is wrong with `predicted`; both bool (H, W).

    points_xy: clicks so far, XY in original pixels; labels: POSITIVE or NEGATIVE.
    """

    truth: np.ndarray
    predicted: np.ndarray = field(init=False)
    points_xy: list[list[float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.predicted = np.zeros_like(self.truth)  # so that the first click is the centre of the truth

    def click(self) -> bool:
        """Click once more; False when nothing is wrong."""
        clicked = np.array(self.points_xy).reshape(-1, 2)
        click = next_click(self.predicted, self.truth, clicked_xy=clicked)
        if click is None:
            return False
        self.points_xy.append(click[0].tolist())
        self.labels.append(click[1])
        return True


@dataclass(frozen=True)
class Protocol:
    """How a model is asked.

    prompt: boxes or simulated clicks. multimask: token 0, or the best of the three others by predicted IoU, after each
    click. prompt_batch_size: prompts per forward of the decoder.
    """

    prompt: EvaluatePromptConfig
    multimask: Policy = "single"
    prompt_batch_size: int = 64


def photos_to_ask(coco_set: CocoSet, max_images: int = 0) -> list[CocoPhoto]:
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


def evaluate_model(
    model: PromptableModel,
    photos: Iterable[CocoPhoto],
    protocol: Protocol,
    *,
    finished: Sequence[InstanceScore] = (),
    on_photo: Callable[[list[InstanceScore]], None] | None = None,
) -> dict[str, float | int | None]:
    """Judge a model over a CocoSet, or some of its photos.

    Args:
        model: on the device that it shall run on; put into eval mode.
        finished: scores of an earlier run; their photos are not asked about again.
        on_photo: called with the scores of each photo that was asked about.
    Returns:
        `miou`, `miou_large`, `miou_medium`, `miou_small` in 0..1 (None for a group without an instance),
        `num_instances` and `num_images` (those with an instance).
    """
    model.eval()
    scores = list(finished)
    done = {score.image for score in scores}
    for photo in photos:
        if photo.instances and photo.key not in done:
            of_photo = evaluate_photo(model, photo, protocol)
            scores += of_photo
            if on_photo is not None:
                on_photo(of_photo)
    return summarize(scores)


@torch.inference_mode()
def evaluate_photo(model: PromptableModel, photo: CocoPhoto, protocol: Protocol) -> list[InstanceScore]:
    """The scores of one photo's instances, in their order. Raises DataError when the photo cannot be decoded."""
    device = next(model.parameters()).device
    pixels = letterbox(photo.load(), model.image_size)[None].to(device)  # (1, 3, S, S)
    embedding = model.encode(pixels)  # (1, C, E, E)
    ask = ask_boxes if protocol.prompt.kind == "box" else ask_clicks
    scores = []
    for start in range(0, len(photo.instances), protocol.prompt_batch_size):
        instances = photo.instances[start : start + protocol.prompt_batch_size]
        answers = ask(model, embedding, instances, photo.hw, protocol)
        scores += [
            InstanceScore(
                image=photo.key,
                annotation_id=instance.id,
                area=instance.area,
                iou=float(answers.iou[i]),
                predicted_iou=float(answers.predicted_iou[i]),
                prompt=answers.prompts[i],
            )
            for i, instance in enumerate(instances)
        ]
    return scores


def ask_boxes(
    model: PromptableModel, embedding: Tensor, instances: Sequence[Instance], original_hw: HW, protocol: Protocol
) -> Answers:
    """One answer per ground-truth box."""
    boxes = np.array([instance.bbox_xyxy for instance in instances], np.float64)  # (P, 4), original pixels
    in_frame = boxes_to_prompt_frame(boxes, original_hw, model.prompt_size)
    prompts = Prompts(
        torch.zeros(len(boxes), dtype=torch.long, device=embedding.device),
        boxes_xyxy=torch.from_numpy(in_frame).to(embedding),
    )
    logits, predicted_iou = _answer(model, embedding, prompts, protocol)
    masks = masks_of_photo(logits, original_hw, model.prompt_size)
    ious = [_iou(mask, _truth(instance)) for mask, instance in zip(masks, instances, strict=True)]
    return Answers(torch.stack(ious), predicted_iou.cpu(), [{"box_xyxy": box} for box in boxes.tolist()])


def ask_clicks(
    model: PromptableModel, embedding: Tensor, instances: Sequence[Instance], original_hw: HW, protocol: Protocol
) -> Answers:
    """One answer per instance after `num_clicks` simulated clicks; from the second on, with the previous logits.

    An instance without an error left gets no more clicks and keeps its answer.
    """
    clickers = [Clicker(_truth(instance)) for instance in instances]
    logits = embedding.new_zeros(len(instances), model.low_res_size, model.low_res_size)  # (P, 4E, 4E)
    predicted_iou = embedding.new_zeros(len(instances))
    active = list(range(len(instances)))
    for num_click in range(protocol.prompt.num_clicks):
        active = [i for i in active if clickers[i].click()]  # those still asked have equally many clicks
        if not active:
            break
        points = np.array([clickers[i].points_xy for i in active])  # (A, K, 2), original pixels
        in_frame = points_to_prompt_frame(points, original_hw, model.prompt_size)
        prompts = Prompts(
            torch.zeros(len(active), dtype=torch.long, device=embedding.device),
            points_xy=torch.from_numpy(in_frame).to(embedding),
            point_labels=torch.tensor([clickers[i].labels for i in active], device=embedding.device),
            mask_logits=logits[active][:, None] if num_click else None,  # (A, 1, 4E, 4E)
        )
        logits[active], predicted_iou[active] = _answer(model, embedding, prompts, protocol)
        masks = masks_of_photo(logits[active], original_hw, model.prompt_size)
        for i, mask in zip(active, masks, strict=True):
            clickers[i].predicted = mask.cpu().numpy()
    return Answers(
        torch.stack([_iou(torch.from_numpy(clicker.predicted), clicker.truth) for clicker in clickers]),
        predicted_iou.cpu(),
        [{"points_xy": clicker.points_xy, "labels": clicker.labels} for clicker in clickers],
    )


def masks_of_photo(logits: Tensor, original_hw: HW, prompt_size: int) -> Iterator[Tensor]:
    """Low-res logits (P, 4E, 4E) as P masks of the photo's own resolution, bool (H, W), a few at a time."""
    for chunk in logits.split(MASKS_PER_RESIZE):
        yield from masks_to_original(chunk[:, None], original_hw, prompt_size)[:, 0] > 0  # (p, H, W)


def summarize(scores: Sequence[InstanceScore]) -> dict[str, float | int | None]:
    """Mean IoU, all and by size, over the instances; see `evaluate_model`."""
    metric = MaskIoU().set_dtype(torch.float64)
    metric.update(
        torch.tensor([score.iou for score in scores], dtype=torch.float64),
        torch.tensor([score.area for score in scores], dtype=torch.float64),
    )
    values = {name: value.item() for name, value in metric.compute().items()}
    rounded = {name: None if value != value else value for name, value in values.items()}  # NaN is not JSON
    return {**rounded, "num_images": len({score.image for score in scores})}


def _answer(model: PromptableModel, embedding: Tensor, prompts: Prompts, protocol: Protocol) -> tuple[Tensor, Tensor]:
    size = protocol.prompt_batch_size
    return answer(model, embedding, prompts, policy=protocol.multimask, prompt_batch_size=size)


def _truth(instance: Instance) -> np.ndarray:
    return np.ascontiguousarray(decode_mask(instance.rle), dtype=bool)


def _iou(mask: Tensor, truth: np.ndarray) -> Tensor:
    return mask_iou(mask, torch.from_numpy(truth).to(mask.device)).cpu()
