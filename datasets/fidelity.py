"""What a codec costs, measured on a few photos of the job before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.datasets.cachefiles import Fidelity
from distill.datasets.codecs import decode_embedding, encode_embedding
from distill.datasets.sa1b import boxes_of, parse_annotations
from distill.datasets.shards import Member
from distill.datasets.tars import TAR_BLOCK
from distill.datasets.teacherpool import Photo, TeacherPool
from distill.errors import DataError
from distill.geometry import HW, boxes_to_prompt_frame, points_to_prompt_frame, resized_hw, valid_grid_hw
from distill.prompts import POSITIVE, Prompts
from distill.teacher import Teacher

NUM_PHOTOS = 4
MAX_BOXES = 32  # per photo
POINTS_PER_SIDE = 8  # of the grid of points that stands in for boxes
NUM_TRIES = 10  # photos tried in place of one that cannot be decoded
NUM_DIGITS = 6


@dataclass(frozen=True)
class _PhotoFidelity:
    relative_l2: float
    cosine: float
    ious: Tensor  # (P,)
    ious_float32: Tensor  # (P,)
    prompts: str
    bytes: int


def measure_fidelity(pool: TeacherPool, codec: str) -> Fidelity:
    """Encode and decode the embeddings of a few photos, spread over the job, and compare.

    Raises DataError when none of them can be decoded.
    """
    num_samples = len(pool.index)
    num_photos = min(NUM_PHOTOS, num_samples)
    starts = [num_samples * i // num_photos for i in range(num_photos)]
    members = [[pool.index.member(at) for at in range(start, min(start + NUM_TRIES, num_samples))] for start in starts]
    measured = [item for item in pool.map(lambda tries: _measure_first(pool, tries, codec), members) if item]
    if not measured:
        tried = ", ".join(tries[0].key for tries in members)
        raise DataError(f"{pool.index.directory}: none of the photos tried can be decoded ({tried}, ...); restore them")
    ious, ious_float32 = (torch.cat([getattr(item, name) for item in measured]) for name in ("ious", "ious_float32"))
    return Fidelity(
        num_images=len(measured),
        num_prompts=len(ious),
        prompts=" and ".join(sorted({item.prompts for item in measured})),
        relative_l2=_mean([item.relative_l2 for item in measured]),
        cosine=_mean([item.cosine for item in measured]),
        mask_iou=_mean(ious.tolist()),
        mask_iou_float32=_mean(ious_float32.tolist()),
        bytes_per_image=_mean([item.bytes for item in measured]),
    )


def _mean(values: list[float]) -> float:
    return float(f"{math.fsum(values) / len(values):.{NUM_DIGITS}g}")


def _measure_first(pool: TeacherPool, members: list[Member], codec: str) -> _PhotoFidelity | None:
    """Measure the first of some photos that can be decoded."""
    for member in members:
        photo = pool.load(member)
        if photo.pixels is not None:
            return _measure(pool, member, photo, codec)
    return None


def _measure(pool: TeacherPool, member: Member, photo: Photo, codec: str) -> _PhotoFidelity:
    teacher = pool.teacher
    assert photo.pixels is not None and photo.original_hw is not None
    embedding = pool.embed([photo.pixels])[0].cpu()  # (C, E, E)
    blob = encode_embedding(embedding, photo.original_hw, codec, key=member.key)
    decoded = decode_embedding(blob, fill_padding=True)
    rows, cols = valid_grid_hw(photo.original_hw, teacher.embedding_size)
    exact, stored = embedding[:, :rows, :cols], decoded[:, :rows, :cols]
    float32 = decoded.clone()
    float32[:, :rows, :cols] = exact
    prompts, kind = _prompts(pool, member, photo.original_hw)
    masks = [_masks(teacher, item, prompts, photo.original_hw) for item in (embedding, float32, decoded)]
    return _PhotoFidelity(
        relative_l2=float((stored - exact).norm() / exact.norm().clamp_min(torch.finfo(torch.float32).tiny)),
        cosine=float(F.cosine_similarity(stored, exact, dim=0).mean()),
        ious=_iou(masks[2], masks[0]),
        ious_float32=_iou(masks[1], masks[0]),
        prompts=kind,
        bytes=TAR_BLOCK + len(blob) + -len(blob) % TAR_BLOCK,
    )


def _prompts(pool: TeacherPool, member: Member, original_hw: HW) -> tuple[Prompts, str]:
    """The boxes of a photo's annotations, or a grid of points where there are none, in the prompt frame."""
    annotation = pool.index.read_annotation(member)
    prompt_size = pool.teacher.prompt_size
    if annotation is not None:
        rows = parse_annotations(annotation, pool.index.origin(member)).rows
        if rows:
            of_photo = boxes_of(rows, range(min(len(rows), MAX_BOXES)))  # (P, 4)
            boxes = torch.from_numpy(boxes_to_prompt_frame(of_photo, original_hw, prompt_size)).float()
            return Prompts(torch.zeros(len(boxes), dtype=torch.long), boxes_xyxy=boxes), "box"
    centres = (np.arange(POINTS_PER_SIDE) + 0.5) / POINTS_PER_SIDE
    x, y = np.meshgrid(centres * original_hw[1], centres * original_hw[0])
    points = points_to_prompt_frame(np.stack([x.ravel(), y.ravel()], -1), original_hw, prompt_size)  # (P, 2)
    labels = torch.full((len(points), 1), POSITIVE)
    index = torch.zeros(len(points), dtype=torch.long)
    return Prompts(index, points_xy=torch.from_numpy(points).float()[:, None], point_labels=labels), "point"


def _masks(teacher: Teacher, embedding: Tensor, prompts: Prompts, original_hw: HW) -> Tensor:
    """Low-res masks, bool (P, h, w), cut to the photo."""
    device = next(teacher.model.parameters()).device
    on_device = {name: value.to(device) for name, value in vars(prompts).items() if value is not None}
    logits, _ = teacher.decode(embedding[None].to(device), Prompts(**on_device), multimask=False)  # (P, 1, 4E, 4E)
    height, width = resized_hw(original_hw, teacher.model.low_res_size)
    return logits[:, 0, :height, :width].cpu() > 0


def _iou(masks: Tensor, reference: Tensor) -> Tensor:
    """IoU (P,) of bool masks (P, h, w); two empty masks agree."""
    union = (masks | reference).sum((1, 2))
    return torch.where(union > 0, (masks & reference).sum((1, 2)) / union.clamp_min(1), 1.0)
