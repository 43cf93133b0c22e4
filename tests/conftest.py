"""What several tests share: a tiny real teacher, and real image shards."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.config.schema import TeacherConfig
from distill.data.rle import encode_mask
from distill.data.shards.index import ShardIndex
from distill.data.shards.sa1b import annotation_row, sample_annotation
from distill.data.shards.writer import ShardWriter
from distill.models.checkpoint import save_model
from distill.models.sam import ModelSpec, build_from_spec
from distill.models.teacher import Teacher, load_teacher

pytest_plugins = (
    "tests.fixtures.photos",
    "tests.fixtures.comparison",
    "tests.fixtures.datasets",
    "tests.fixtures.caches",
)

TINY = ModelSpec("efficientvit_sam_t", 64, embedding_dim=32, embedding_size=8, decoder_mlp_dim=64, norm_eps=1e-6)
SIZES = ((48, 64), (64, 48), (60, 60))  # of the photos, in turn

MakePhotoShards = Callable[..., ShardIndex]


def pytest_configure(config: pytest.Config) -> None:
    """Share the cores among the workers of pytest-xdist: more threads than cores make every test slower.

    Where OMP_NUM_THREADS asks for more all the same, idle threads wait without spinning.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read by the workers, and by processes that tests start
    if hasattr(config, "workerinput") and "OMP_NUM_THREADS" not in os.environ:
        num_threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
        os.environ["OMP_NUM_THREADS"] = str(num_threads)  # of the processes that tests start
        torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a tiny model with random weights."""
    path = tmp_path_factory.mktemp("teacher") / "student.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_model(build_from_spec(TINY), path)
    return path


@pytest.fixture(scope="session")
def tiny_teacher(teacher_file: Path) -> Teacher:
    """Load that model as a teacher."""
    return load_teacher(TeacherConfig(name=str(teacher_file)))


@pytest.fixture
def photo_shards(tmp_path: Path) -> MakePhotoShards:
    """Give a function that writes image shards of random photos, some of them cut short, and opens their index."""

    def make(
        num_photos: int = 8, samples_per_shard: int = 3, *, name: str = "images", bad: set[int] = frozenset(), **options
    ) -> ShardIndex:
        with ShardWriter(tmp_path / name, samples_per_shard) as writer:
            for i in range(num_photos):
                photo = random_photo(i, SIZES[i % len(SIZES)])
                annotation = annotate(f"photo{i}", SIZES[i % len(SIZES)]) if options.get("annotated", True) else None
                writer.add(f"photo{i}", photo[: len(photo) // 3] if i in bad else photo, annotation)
        return ShardIndex.open(tmp_path / name)

    return make


def random_photo(seed: int, hw: tuple[int, int]) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (hw[0] // 4, hw[1] // 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((hw[1], hw[0])).save(buffer, "JPEG")
    return buffer.getvalue()


def annotate(key: str, hw: tuple[int, int]) -> dict:
    """Two rectangles as instances."""
    rows = []
    for i, (y0, x0, y1, x1) in enumerate([(5, 5, 30, 40), (20, 10, 45, 45)]):
        mask = np.zeros(hw, np.uint8)
        mask[y0:y1, x0:x1] = 1
        rows.append(annotation_row(i, encode_mask(mask), hw))
    return sample_annotation(key, hw, rows)
