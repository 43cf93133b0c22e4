"""The fidelity of codecs: errors and bytes, measured on a few photos of the job before it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.data.cache.codecs import decode_embedding, encode_embedding
from distill.data.cache.manifest import Fidelity
from distill.data.cache.teacher_pool import Photo, TeacherPool
from distill.data.shards.index import Member
from distill.data.shards.sa1b import boxes_of, parse_annotations
from distill.data.shards.tar import TAR_BLOCK
from distill.errors import DataError
from distill.geometry import (
    HW,
    boxes_to_prompt_frame,
    grid_points,
    mask_iou,
    points_to_prompt_frame,
    resized_hw,
    valid_grid_hw,
)
from distill.models.teacher import Teacher
from distill.prompts.types import POSITIVE, Prompts

NUM_PHOTOS = 8
MAX_BOXES = 8  # per photo, each decoded three times
POINTS_PER_SIDE = 4  # of the grid of points on photos without boxes
NUM_TRIES = 10  # photos to try until one can be decoded
NUM_DIGITS = 6


@dataclass(frozen=True)
class _CodecOnPhoto:
    """Errors and bytes of one codec on one photo."""

    relative_l2: float
    cosine: float
    ious: Tensor  # (P,)
    bytes: int


@dataclass(frozen=True)
class _MeasuredPhoto:
    prompts: str
    ious_float32: Tensor  # (P,)
    codecs: dict[str, _CodecOnPhoto]


def measure_fidelity(pool: TeacherPool, codecs: Sequence[str]) -> dict[str, Fidelity]:
    """Encode and decode the embeddings of a few photos by each codec, and compare. The photos are spread over the job.

    Raises:
        DataError: none of the photos can be decoded.
    """
    num_samples = len(pool.index)
    num_photos = min(NUM_PHOTOS, num_samples)
    starts = [num_samples * i // num_photos for i in range(num_photos)]
    members = [[pool.index.member(at) for at in range(start, min(start + NUM_TRIES, num_samples))] for start in starts]
    photos = [item for item in pool.map(lambda tries: _measure_first(pool, tries, codecs), members) if item]
    if not photos:
        tried = ", ".join(tries[0].key for tries in members)
        raise DataError(f"{pool.index.directory}: none of the photos tried can be decoded ({tried}, ...); restore them")
    return {codec: _mean_over(photos, codec) for codec in codecs}


def _mean_over(photos: list[_MeasuredPhoto], codec: str) -> Fidelity:
    measured = [photo.codecs[codec] for photo in photos]
    ious = torch.cat([item.ious for item in measured])
    return Fidelity(
        num_images=len(photos),
        num_prompts=len(ious),
        prompts=" and ".join(sorted({photo.prompts for photo in photos})),
        relative_l2=_mean([item.relative_l2 for item in measured]),
        cosine=_mean([item.cosine for item in measured]),
        mask_iou=_mean(ious.tolist()),
        mask_iou_float32=_mean(torch.cat([photo.ious_float32 for photo in photos]).tolist()),
        bytes_per_image=_mean([item.bytes for item in measured]),
    )


def _mean(values: list[float]) -> float:
    return float(f"{math.fsum(values) / len(values):.{NUM_DIGITS}g}")


def _measure_first(pool: TeacherPool, members: list[Member], codecs: Sequence[str]) -> _MeasuredPhoto | None:
    """Measure on the first photo that can be decoded. Return None if none can."""
    for member in members:
        photo = pool.load(member)
        if photo.pixels:
            return _measure(pool, member, photo, codecs)
    return None


def _measure(pool: TeacherPool, member: Member, photo: Photo, codecs: Sequence[str]) -> _MeasuredPhoto:
    teacher = pool.teacher
    assert photo.original_hw is not None
    hw = photo.original_hw
    embedding = pool.embed([photo.pixels[0]])[0].cpu()  # (C, E, E)
    blobs = {codec: encode_embedding(embedding, hw, codec, key=member.key) for codec in codecs}
    decoded = {codec: decode_embedding(blob) for codec, blob in blobs.items()}
    rows, cols = valid_grid_hw(hw, teacher.embedding_size)
    exact = embedding[:, :rows, :cols]
    float32 = next(iter(decoded.values())).clone()
    float32[:, :rows, :cols] = exact
    prompts, kind = _prompts(pool, member, hw)
    reference = low_res_masks(teacher, embedding, prompts, hw)
    on_codecs = {}
    for codec, item in decoded.items():
        stored = item[:, :rows, :cols]
        on_codecs[codec] = _CodecOnPhoto(
            relative_l2=float((stored - exact).norm() / exact.norm().clamp_min(torch.finfo(torch.float32).tiny)),
            cosine=float(F.cosine_similarity(stored, exact, dim=0).mean()),
            ious=mask_iou(low_res_masks(teacher, item, prompts, hw), reference, both_empty=1.0),
            bytes=len(photo.pixels) * (TAR_BLOCK + len(blobs[codec]) + -len(blobs[codec]) % TAR_BLOCK),  # all views
        )
    ious_float32 = mask_iou(low_res_masks(teacher, float32, prompts, hw), reference, both_empty=1.0)
    return _MeasuredPhoto(kind, ious_float32, on_codecs)


def _prompts(pool: TeacherPool, member: Member, original_hw: HW) -> tuple[Prompts, str]:
    """Return the boxes of a photo's annotations, or a grid of points if it has none, and their kind.

    Coordinates are in the prompt frame.
    """
    annotation = pool.index.read_annotation(member)
    prompt_size = pool.teacher.prompt_size
    if annotation is not None:
        rows = parse_annotations(annotation, pool.index.origin(member)).rows
        if rows:
            of_photo = boxes_of(rows, range(min(len(rows), MAX_BOXES)))  # (P, 4)
            boxes = torch.from_numpy(boxes_to_prompt_frame(of_photo, original_hw, prompt_size)).float()
            return Prompts(torch.zeros(len(boxes), dtype=torch.long), boxes_xyxy=boxes), "box"
    return point_grid(original_hw, prompt_size, POINTS_PER_SIDE), "point"


def point_grid(original_hw: HW, prompt_size: int, points_per_side: int) -> Prompts:
    """Return single clicks at the centres of a grid over a photo, in the prompt frame: points_per_side ** 2 prompts."""
    points = points_to_prompt_frame(grid_points(original_hw, points_per_side), original_hw, prompt_size)  # (P, 2)
    labels = torch.full((len(points), 1), POSITIVE)
    index = torch.zeros(len(points), dtype=torch.long)
    return Prompts(index, points_xy=torch.from_numpy(points).float()[:, None], point_labels=labels)


def low_res_masks(teacher: Teacher, embedding: Tensor, prompts: Prompts, original_hw: HW) -> Tensor:
    """Decode low-res masks, bool (P, h, w), and cut off their padding."""
    device = next(teacher.model.parameters()).device
    on_device = {name: value.to(device) for name, value in vars(prompts).items() if value is not None}
    logits, _ = teacher.decode(embedding[None].to(device), Prompts(**on_device), multimask=False)  # (P, 1, 4E, 4E)
    height, width = resized_hw(original_hw, teacher.model.low_res_size)
    return logits[:, 0, :height, :width].cpu() > 0
