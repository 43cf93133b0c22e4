"""`distill bench cache`: bytes, error and speed of codecs, and training steps from the cache and with the teacher."""

from __future__ import annotations

import io
import statistics
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distill.bench.codecs import bounds, trials
from distill.bench.padding import MASK_PHOTOS, ReferenceMasks, measure_padding
from distill.config.schema import CacheConfig, DataConfig, FeatureLossConfig, OptimConfig, TeacherConfig
from distill.data.cache.codecs import CODECS, decode_embedding, encode_embedding
from distill.data.cache.embeddings import EmbeddingCache
from distill.data.cache.job import build_cache
from distill.data.images import decode_image
from distill.data.loading.datamodule import DistillDataModule
from distill.data.shards.index import ShardIndex
from distill.data.shards.tar import append_member, list_members
from distill.data.shards.writer import ShardWriter
from distill.data.synthetic.source_photos import HELD_OUT_PHOTOGRAPHS, TRAIN_PHOTOGRAPHS, load_photographs
from distill.geometry import letterbox
from distill.models.sam import build_from_spec, spec_for
from distill.models.teacher import Teacher, load_teacher
from distill.stages.feature import FeatureStage

if TYPE_CHECKING:
    from rich.table import Table

MAP_SHAPE = (256, 64, 64)  # SAM's embedding: speeds are in maps of this shape
MAPS_IN_TAR = 8
SECONDS = 1.0  # each speed is measured for about this long
BATCH_SIZE = 4
STEPS = 3  # after one that warms up
JPEG_QUALITY = 95
# A codec is worth adding to int8 if it has no more error, decodes so many maps a second that training never waits for
# it, and takes at most this share of int8's bytes. Codecs of more error take fewer bytes, but make masks worse.
LEAST_SPEED, WORTHWHILE = 200, 0.95


def bench_cache(
    teacher_config: TeacherConfig, *, student: str, images: str | None = None, num_photos: int
) -> dict[str, Any]:
    """Measure all, and return what `--json` prints.

    Args:
        student: a registered encoder, whose steps are timed.
        images: image shards. The default is photographs that come with Python packages.
        num_photos: photos whose embeddings are measured.
    """
    teacher = load_teacher(teacher_config)
    with tempfile.TemporaryDirectory() as directory, _one_thread():
        photos = [_middle(photo) for photo in _photos(images, num_photos)]
        embeddings = [teacher.embed(letterbox(photo, teacher.image_size)[None])[0] for photo in photos]  # (C, E, E)
        return {
            "teacher": teacher.name,
            "photos": len(photos),
            "codecs": measure_codecs(teacher, embeddings),
            "padding": measure_padding(teacher, _photos(images, MASK_PHOTOS)),
            "tar": measure_tars(embeddings, Path(directory)),
            "steps": measure_steps(teacher, student, photos, Path(directory)),
        }


def measure_codecs(teacher: Teacher, embeddings: list[Tensor]) -> list[dict[str, Any]]:
    """Measure bits a value, relative L2 error and mask IoU on the embeddings, and speed on maps of SAM's shape."""
    reference = ReferenceMasks(teacher, embeddings[:MASK_PHOTOS])
    num_values = sum(embedding.numel() for embedding in embeddings)
    whole = sam_map(embeddings)
    rows = []
    for trial in trials():
        blobs = [trial.encode(embedding) for embedding in embeddings]
        blob = trial.encode(whole)
        decoded = [trial.decode(item) for item in blobs]
        row = _curve_row(trial.name, sum(map(len, blobs)) / num_values, embeddings, decoded)
        row["mask_iou"] = reference.mean_iou(decoded)
        encode, decode = (lambda trial=trial: trial.encode(whole)), (lambda trial=trial, blob=blob: trial.decode(blob))
        rows.append({**row, "encodes_per_second": _speed(encode), "decodes_per_second": _speed(decode)})
    int8 = next(row for row in rows if row["name"] == "int8")
    for row in rows:
        row["pays"] = (
            row["bits_per_value"] < WORTHWHILE * int8["bits_per_value"]
            and row["relative_l2"] <= int8["relative_l2"]
            and row["decodes_per_second"] >= LEAST_SPEED
        )
    for bound in bounds():
        measured = [bound.measure(embedding) for embedding in embeddings]
        num_bytes, decoded = sum(found for found, _ in measured), [item for _, item in measured]
        row = _curve_row(bound.name, num_bytes / num_values, embeddings, decoded)
        rows.append({**row, "mask_iou": reference.mean_iou(decoded)})
    return rows


def _open(path: Path) -> BinaryIO:
    return path.open("rb")


def measure_tars(embeddings: list[Tensor], directory: Path) -> list[dict[str, Any]]:
    """Measure how many maps a second are read from a tar: found by offset, compared with a checksum, and decoded."""
    whole = sam_map(embeddings)
    rows = []
    for codec in CODECS:
        path = directory / f"{codec}.tar"
        blob = encode_embedding(whole, MAP_SHAPE[1:], codec)
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
            for number in range(MAPS_IN_TAR):
                append_member(tar, f"{number}.safetensors", blob)
        members = list_members(partial(_open, path), str(path))

        def read(path: Path = path, members: list[Any] = members, crc32: int = zlib.crc32(blob)) -> None:
            for member in members:
                with path.open("rb") as file:
                    file.seek(member.offset)
                    data = file.read(member.size)
                assert zlib.crc32(data) == crc32
                decode_embedding(data)

        rows.append({"codec": codec, "bytes": len(blob), "maps_per_second": MAPS_IN_TAR * _speed(read)})
    return rows


def measure_steps(teacher: Teacher, student: str, photos: list[np.ndarray], directory: Path) -> list[dict[str, Any]]:
    """Measure the CPU seconds of reading a batch and of a feature stage's step on it, by the embeddings' source."""
    images = directory / "images"
    with ShardWriter(images) as writer:
        for number in range(BATCH_SIZE * (STEPS + 1)):
            buffer = io.BytesIO()
            Image.fromarray(photos[number % len(photos)]).save(buffer, "JPEG", quality=JPEG_QUALITY)
            writer.add(f"photo_{number}", buffer.getvalue(), None)
    config = CacheConfig(dir=str(directory / "cache"), codec="int8")
    build_cache(teacher, ShardIndex.open(images), config)
    rows = []
    for source in ("online", "cache"):
        cache = EmbeddingCache.open(directory / "cache") if source == "cache" else None
        read, step = _time_steps(teacher, student, images, cache)
        rows.append({"source": source, "batch_size": BATCH_SIZE, "read_seconds": read, "step_seconds": step})
    return rows


def sam_map(embeddings: list[Tensor]) -> Tensor:
    """Return a map of SAM's shape with the values of real embeddings (C, E, E), laid side by side and cut."""
    dim, grid, _ = embeddings[0].shape
    channels, tiles = -(-MAP_SHAPE[0] // dim), -(-MAP_SHAPE[1] // grid)
    parts = iter([*embeddings] * (channels * tiles * tiles))
    rows = [[torch.cat([next(parts) for _ in range(tiles)], 2) for _ in range(tiles)] for _ in range(channels)]
    whole = torch.cat([torch.cat(row, 1) for row in rows])
    return whole[: MAP_SHAPE[0], : MAP_SHAPE[1], : MAP_SHAPE[2]].contiguous()


def tables(found: dict[str, Any]) -> list[Table]:
    """Return the measurements as tables."""
    from rich.table import Table

    curve = Table(
        "stored as", "bits a value", "relative L2", "mask IoU", "encode/s", "decode/s", title=_curve_title(found)
    )
    for row in found["codecs"]:
        speeds = [f"{row[name]:,.0f}" if name in row else "" for name in ("encodes_per_second", "decodes_per_second")]
        errors = f"{row['relative_l2']:.3%}", f"{row['mask_iou']:.4f}"
        curve.add_row(row["name"], f"{row['bits_per_value']:.2f}", *errors, *speeds)
    paying = [row["name"] for row in found["codecs"] if row.get("pays")]
    curve.caption = (
        f"pays beside int8 (no more error, {LEAST_SPEED} maps/s, {WORTHWHILE} of its bytes): "
        f"{', '.join(paying) or 'none'}"
    )
    padding = Table("stored of the padding", "of the photo's bytes", "mask IoU", "worst photo", title="photos of 3:2")
    for row in found["padding"]:
        padding.add_row(row["name"], f"{row['share']:.1%}", f"{row['mask_iou']:.4f}", f"{row['worst']:.4f}")
    tars = Table("codec", "bytes a map", "maps/s from a tar", title="one core, maps of 256 x 64 x 64")
    for row in found["tar"]:
        tars.add_row(row["codec"], f"{row['bytes']:,}", f"{row['maps_per_second']:,.0f}")
    steps = Table("teacher", "read (s)", "step (s)", "both (s)", title=f"a step of {BATCH_SIZE} photos, one core")
    for row in found["steps"]:
        both = row["read_seconds"] + row["step_seconds"]
        steps.add_row(row["source"], f"{row['read_seconds']:.3f}", f"{row['step_seconds']:.3f}", f"{both:.3f}")
    return [curve, padding, tars, steps]


def _curve_title(found: dict[str, Any]) -> str:
    return f"{found['photos']} embeddings of the teacher '{found['teacher']}'; speeds: maps of 256 x 64 x 64, one core"


def _curve_row(name: str, bytes_per_value: float, exact: list[Tensor], decoded: list[Tensor]) -> dict[str, Any]:
    error = sum(float((a - b).square().sum()) for a, b in zip(exact, decoded, strict=True))
    norm = sum(float(item.square().sum()) for item in exact)
    return {"name": name, "bits_per_value": 8 * bytes_per_value, "relative_l2": (error / norm) ** 0.5}


def _photos(images: str | None, num_photos: int) -> list[np.ndarray]:
    """Return photos, uint8 (H, W, 3), spread over the shards."""
    if images is None:
        return load_photographs((*HELD_OUT_PHOTOGRAPHS, *TRAIN_PHOTOGRAPHS)[:num_photos])
    index = ShardIndex.open(images)
    num_photos = min(num_photos, len(index))
    members = [index.member(place * len(index) // num_photos) for place in range(num_photos)]
    return [decode_image(index.read_image_bytes(member), index.origin(member)) for member in members]


def _middle(photo: np.ndarray) -> np.ndarray:
    """Cut the square from the middle of a photo, so that its embedding has no padding."""
    side = min(photo.shape[:2])
    top, left = (photo.shape[0] - side) // 2, (photo.shape[1] - side) // 2
    return np.ascontiguousarray(photo[top : top + side, left : left + side])


def _time_steps(teacher: Teacher, student: str, images: Path, cache: EmbeddingCache | None) -> tuple[float, float]:
    model = build_from_spec(spec_for(student, image_size=None, like=teacher.model.spec))
    stage = FeatureStage(
        model, None if cache else teacher, loss=FeatureLossConfig(), optim=OptimConfig(encoder_lr_scale=1.0)
    )
    optimizer = torch.optim.AdamW(model.image_encoder.parameters())
    data = DistillDataModule(
        DataConfig(images=str(images), batch_size=BATCH_SIZE, num_workers=0),
        image_size=model.image_size,
        embedding_size=model.embedding_size,
        masks=False,
        teacher_image_size=teacher.image_size,
        cache=cache,
    )
    data.setup("fit")
    batches = iter(data.train_dataloader())
    read, step = [], []
    for _ in range(STEPS + 1):
        started = time.process_time()
        batch = next(batches)
        read.append(time.process_time() - started)
        optimizer.zero_grad()
        stage.compute_terms(batch)["loss"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step.append(time.process_time() - started - read[-1])
    data.teardown()
    return statistics.median(read[1:]), statistics.median(step[1:])


def _speed(work: Callable[[], object]) -> float:
    """Return the calls per CPU second, measured for about SECONDS. Other work on the machine hardly changes it."""
    work()
    started, num_calls = time.process_time(), 0
    while time.process_time() - started < SECONDS:
        work()
        num_calls += 1
    return num_calls / (time.process_time() - started)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
