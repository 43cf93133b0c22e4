"""From shards to tensors: a worker reads one batch of photos with their masks and embeddings."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from distill.config.names import HFLIP, IDENTITY
from distill.data.cache.embeddings import EmbeddingCache
from distill.data.cache.views import flip_boxes, view_of
from distill.data.images import decode_image
from distill.data.shards.index import Member, ShardIndex
from distill.data.shards.sa1b import boxes_of, decode_masks, parse_annotations
from distill.errors import DataError, DistillError
from distill.geometry import HW, boxes_to_prompt_frame, letterbox, valid_masks
from distill.models.sam import LOW_RES_PER_CELL, PROMPT_PIXELS_PER_CELL
from distill.prompts.sampling import draw_instances

FLIPPED_SHARE = 0.5
MAX_REPLACEMENTS = 100  # photos that are tried to replace a batch in which none can be decoded


class Request(NamedTuple):
    """A batch to read: positions in the index, and the epoch, which decides which instances are drawn."""

    epoch: int
    positions: list[int]


class BadPhoto(NamedTuple):
    """A photo that was left out, and the reason."""

    key: str
    reason: str


class LoadedBatch(NamedTuple):
    """What a worker sends: the fields of an ImageBatch and the bad photos, or the error that ends the run."""

    fields: dict[str, Any]
    bad: list[BadPhoto]
    error: DistillError | None = None


class _Sample(NamedTuple):
    key: str
    hw: HW
    pixels: Tensor  # (3, S, S)
    teacher_embedding: Tensor | None  # (C, E, E)
    teacher_pixels: Tensor | None  # (3, T, T)
    masks: Tensor | None  # (n, 4E, 4E)
    boxes_xyxy: Tensor | None  # (n, 4) prompt frame


class PhotoBatches(Dataset[LoadedBatch]):
    """Batches by request. A photo that cannot be decoded is left out of its batch and named.

    A batch is never empty: when none of its photos can be decoded, the next photo that can be decoded replaces them.

    Args:
        image_size: S, the longest side of the student's input in pixels.
        embedding_size: E, the teacher's grid; it sets the prompt frame and the low-res masks.
        max_instances: masks drawn per photo; 0: batches without masks.
        instance_odds, instance_draw: which masks are drawn (see DataConfig).
        teacher_image_size: T; batches also hold the teacher's input, for an online teacher. None: they do not.
        cache: batches hold the teacher's embeddings from it.
        hflip: whether half of the photos, at random, are flipped left to right with their masks and boxes.
    """

    def __init__(
        self,
        index: ShardIndex,
        *,
        image_size: int,
        embedding_size: int,
        seed: int,
        max_instances: int = 0,
        instance_odds: Literal["uniform", "area"] = "uniform",
        instance_draw: Literal["distinct", "repeat", "replacement"] = "distinct",
        teacher_image_size: int | None = None,
        cache: EmbeddingCache | None = None,
        hflip: bool = False,
    ) -> None:
        self.index = index
        self.image_size = image_size
        self.embedding_size = embedding_size
        self.seed = seed
        self.max_instances = max_instances
        self.instance_odds = instance_odds
        self.instance_draw = instance_draw
        self.teacher_image_size = teacher_image_size
        self.cache = cache
        self.hflip = hflip

    def __getitem__(self, request: Request) -> LoadedBatch:
        """Read a batch. An error that must end the run is returned, not raised."""
        bad: list[BadPhoto] = []
        try:
            samples = [self._read(request.epoch, position, bad) for position in request.positions]
            good = [sample for sample in samples if sample is not None]
            return LoadedBatch(self._collate(good or [self._replacement(request, bad)]), bad)
        except DistillError as error:  # sent as a value, since a worker's exception would arrive as a traceback
            return LoadedBatch({}, bad, error)

    def _replacement(self, request: Request, bad: list[BadPhoto]) -> _Sample:
        num_tried = min(MAX_REPLACEMENTS, len(self.index))
        for step in range(1, num_tried + 1):
            sample = self._read(request.epoch, (request.positions[-1] + step) % len(self.index), bad)
            if sample is not None:
                return sample
        raise DataError(
            f"{self.index.directory}: none of {num_tried} photos in a row can be used; the last: {bad[-1].reason}"
        )

    def _read(self, epoch: int, position: int, bad: list[BadPhoto]) -> _Sample | None:
        """Read one sample. If its photo or its annotations are damaged, note it in `bad` and return None."""
        member = self.index.member(position)
        image_bytes = self.index.read_image_bytes(member)
        annotation_bytes = self.index.read_annotation(member) if self.max_instances else None
        if self.cache is not None and not self.cache.has(member.key, member.shard):
            origin = self.index.origin(member)
            bad.append(BadPhoto(member.key, f"{origin}: no embedding; it could not be decoded for the cache"))
            return None
        try:
            image = decode_image(image_bytes, self.index.origin(member))
            rng = np.random.default_rng([self.seed, epoch, position])
            view = HFLIP if self.hflip and rng.random() < FLIPPED_SHARE else IDENTITY
            masks, boxes = self._instances(member, annotation_bytes, image.shape[:2], rng, flip=view == HFLIP)
        except DataError as error:
            bad.append(BadPhoto(member.key, str(error)))
            return None
        image = view_of(image, view)
        return _Sample(
            key=member.key,
            hw=image.shape[:2],
            pixels=letterbox(image, self.image_size),
            teacher_embedding=None if self.cache is None else self.cache.read(member.key, member.shard, view=view),
            teacher_pixels=None if self.teacher_image_size is None else letterbox(image, self.teacher_image_size),
            masks=masks,
            boxes_xyxy=boxes,
        )

    def _instances(
        self, member: Member, annotation_bytes: bytes | None, hw: HW, rng: np.random.Generator, *, flip: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Draw instances and return their masks (n, 4E, 4E) and boxes (n, 4) in the prompt frame.

        Returns None twice if batches hold no masks.
        """
        if not self.max_instances:
            return None, None
        low_res_size = LOW_RES_PER_CELL * self.embedding_size
        if annotation_bytes is None:
            return torch.zeros(0, low_res_size, low_res_size), torch.zeros(0, 4)
        origin = self.index.origin(member)
        annotations = parse_annotations(annotation_bytes, origin)
        if annotations.hw != hw:
            raise DataError(f"{origin}: the photo is {hw} (height, width) but its annotations say {annotations.hw}")
        drawn = draw_instances(
            np.array(annotations.areas, np.float64),
            self.max_instances,
            odds=self.instance_odds,
            draw=self.instance_draw,
            rng=rng,
        )
        once, place = np.unique(drawn, return_inverse=True)  # an instance drawn twice is decoded once
        masks = decode_masks(annotations.rows, once.tolist(), low_res_size, hw, flip=flip)[place]  # (n, 4E, 4E)
        boxes = boxes_of(annotations.rows, drawn.tolist())  # (n, 4)
        boxes = flip_boxes(boxes, hw[1]) if flip else boxes
        boxes = boxes_to_prompt_frame(boxes, hw, PROMPT_PIXELS_PER_CELL * self.embedding_size)
        return torch.from_numpy(masks), torch.from_numpy(boxes).float()

    def _collate(self, samples: list[_Sample]) -> dict[str, Any]:
        original_hw = torch.tensor([sample.hw for sample in samples])  # (B, 2)
        fields = {
            "keys": [sample.key for sample in samples],
            "pixels": torch.stack([sample.pixels for sample in samples]),  # (B, 3, S, S)
            "original_hw": original_hw,
            "valid": valid_masks(original_hw, self.embedding_size),  # (B, E, E)
            "teacher_embeddings": _stack([sample.teacher_embedding for sample in samples]),  # (B, C, E, E)
            "teacher_pixels": _stack([sample.teacher_pixels for sample in samples]),  # (B, 3, T, T)
        }
        masks = [sample.masks for sample in samples if sample.masks is not None]
        if masks:
            counts = [len(masks_of_photo) for masks_of_photo in masks]
            fields["masks"] = torch.cat(masks)  # (N, 4E, 4E)
            fields["mask_counts"] = counts
            fields["mask_image_index"] = torch.arange(len(samples)).repeat_interleave(torch.tensor(counts))  # (N,)
            fields["boxes_xyxy"] = torch.cat([s.boxes_xyxy for s in samples if s.boxes_xyxy is not None])  # (N, 4)
        return fields


def _stack(tensors: list[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if present else None
