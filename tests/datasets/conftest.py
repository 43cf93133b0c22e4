"""Photographs, COCO-format sets and shards, made small and real."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distill.datasets.rle import encode_mask
from distill.datasets.sa1b import annotation_row, sample_annotation
from distill.datasets.shards import ShardWriter

HW = (30, 40)


def _jpeg(hw: tuple[int, int] = HW, seed: int = 0, **options: Any) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def _box_mask(hw: tuple[int, int], y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = np.zeros(hw, bool)
    mask[y0:y1, x0:x1] = True
    return mask


@pytest.fixture
def jpeg() -> Callable[..., bytes]:
    """jpeg(hw, seed): the bytes of a JPEG of noise."""
    return _jpeg


@pytest.fixture
def box_mask() -> Callable[..., np.ndarray]:
    """box_mask(hw, y0, y1, x0, x1): a bool mask."""
    return _box_mask


@pytest.fixture
def make_shards() -> Callable[..., Path]:
    """make_shards(directory, num_samples, ...): shards of noise, each photo with `num_masks` masks; `bad` are cut."""

    def make(
        directory: Path, num_samples: int, *, samples_per_shard: int = 4, num_masks: int = 3, bad: tuple[int, ...] = ()
    ) -> Path:
        with ShardWriter(directory, samples_per_shard) as writer:
            for i in range(num_samples):
                hw = (HW[0] + i % 5, HW[1])
                masks = [_box_mask(hw, 2 * k, 12 + 2 * k, k, 20 + i % 7) for k in range(num_masks)]
                rows = [annotation_row(k, encode_mask(mask), hw) for k, mask in enumerate(masks)]
                image = _jpeg(hw, seed=i)
                annotation = sample_annotation(f"photo_{i:03d}", hw, rows)
                writer.add(f"photo_{i:03d}", image[: len(image) // 2] if i in bad else image, annotation)
        return directory

    return make


@pytest.fixture
def coco_files(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """coco_files(annotations, num_images): a directory of photos 0.jpg, 1.jpg, ... and a COCO-format JSON."""

    def make(
        annotations: list[dict[str, Any]], num_images: int = 2, images: list[dict[str, Any]] | None = None
    ) -> tuple[Path, Path]:
        directory = tmp_path / "photos"
        directory.mkdir(exist_ok=True)
        for i in range(num_images):
            (directory / f"{i}.jpg").write_bytes(_jpeg(seed=i))
        rows = [{"id": i, "file_name": f"{i}.jpg", "height": HW[0], "width": HW[1]} for i in range(num_images)]
        content = {"images": images if images is not None else rows, "annotations": annotations, "categories": []}
        file = tmp_path / "instances.json"
        file.write_text(json.dumps(content))
        return directory, file

    return make
