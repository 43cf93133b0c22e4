"""The plan of a caching job: what it will take, measured on this machine before it starts, and whether it pays."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from distill.config.schema import CacheRecipe
from distill.data.cache.checksummed_json import disk_errors
from distill.data.cache.codecs import CODECS, decode_embedding, full_map_bytes
from distill.data.cache.fidelity import measure_fidelity
from distill.data.cache.job import directory_of
from distill.data.cache.manifest import Fidelity
from distill.data.cache.teacher_pool import TeacherPool
from distill.data.shards.index import Member, ShardIndex
from distill.errors import DataError
from distill.files import temporary_path
from distill.models.devices import one_device
from distill.models.teacher import load_teacher

SPEED_PHOTOS = 32  # so many photos run through the teacher to time it ...
SPEED_SECONDS = 10.0  # ... or as many as fit into this time
PROBE_NAME = "write_speed"
PROBE_BLOCK, PROBE_BLOCKS = 1 << 20, 64  # bytes and number of blocks that are written to time the disk
READ_SECONDS = 0.5

# A codec is recommended if it loses no more than this: in relative L2, and in mean mask IoU against exact values.
MAX_RELATIVE_L2 = 0.015
MAX_IOU_LOSS = 0.01

SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class CodecCost:
    """The cost of one codec over the complete job.

    `share_of_full_map` compares its bytes with those of a complete map in fp16.
    """

    codec: str
    bytes_per_image: float
    share_of_full_map: float
    total_bytes: int
    fidelity: Fidelity


@dataclass(frozen=True)
class Speeds:
    """Speeds that were measured on one device of this machine.

    Attributes:
        build: photos a second through the job: read, decode, teacher, encode.
        teacher: photos a second through the teacher alone, which is what an online teacher adds to training.
        read: stored embeddings that one core decodes a second.
        write: bytes a second that one stream writes to the cache's file system and flushes to the disk.
    """

    build: float
    teacher: float
    read: float
    write: float


@dataclass(frozen=True)
class CachePlan:
    """The plan of a job, which `distill cache plan` prints.

    Attributes:
        codec: the recipe's codec.
        codecs: the cost of each codec that was measured.
        free_bytes: free space on the file system of the cache.
        hours: the time of the job on `num_devices` devices like the one that was measured.
        limit: what determines `hours`, "teacher" or "disk".
        online_hours_per_epoch: what the teacher adds to each epoch if it runs online on those devices.
        break_even_epochs: the smallest number of epochs for which building and reading the cache costs less than
            running the teacher online. None if there is no such number.
    """

    num_images: int
    num_shards: int
    teacher: str
    device: str
    num_devices: int
    codec: str
    codecs: tuple[CodecCost, ...]
    speeds: Speeds
    free_bytes: int
    hours: float
    limit: str
    online_hours_per_epoch: float
    break_even_epochs: int | None
    recommendation: str

    @property
    def chosen(self) -> CodecCost:
        """The cost of the recipe's codec."""
        return next(cost for cost in self.codecs if cost.codec == self.codec)


def plan_cache_job(recipe: CacheRecipe, *, num_devices: int = 1) -> CachePlan:
    """Measure on one device of this machine what the caching job of a recipe will take, by every codec.

    Args:
        num_devices: the devices on which the job will run, each as fast as this one.

    Raises:
        DataError: the image shards are missing or damaged, or no photo can be decoded.
        CacheError: cache.dir is missing, no directory of this machine, full or read-only.
    """
    directory = directory_of(recipe.cache)
    index = ShardIndex.open(recipe.data.images)
    teacher = load_teacher(recipe.teacher).to(one_device())
    with TeacherPool(teacher, index, recipe.cache) as pool:
        return make_plan(pool, directory, fidelities=measure_fidelity(pool, CODECS), num_devices=num_devices)


def make_plan(
    pool: TeacherPool, directory: Path, *, fidelities: Mapping[str, Fidelity], num_devices: int = 1
) -> CachePlan:
    """Measure the speeds and calculate what the job will take.

    Args:
        directory: the directory of the cache, which need not exist yet.
        fidelities: the fidelity of each codec to consider, including the recipe's (`measure_fidelity`).
        num_devices: the devices on which the job will run, each as fast as this one.

    Raises:
        DataError: no photo can be decoded.
        CacheError: the disk of the cache is full or read-only.
    """
    teacher, num_images = pool.teacher, len(pool.index)
    full_map = full_map_bytes(teacher.embedding_dim, teacher.embedding_size)
    codecs = tuple(
        CodecCost(
            codec=codec,
            bytes_per_image=fidelity.bytes_per_image,
            share_of_full_map=fidelity.bytes_per_image / full_map,
            total_bytes=round(num_images * fidelity.bytes_per_image),
            fidelity=fidelity,
        )
        for codec, fidelity in fidelities.items()
    )
    codec = pool.config.codec
    total_bytes = next(cost.total_bytes for cost in codecs if cost.codec == codec)
    folder = nearest_directory(directory)
    free_bytes = shutil.disk_usage(folder).free
    speeds = measure_speeds(pool, folder)
    teacher_hours = num_images / (speeds.build * num_devices) / SECONDS_PER_HOUR
    disk_hours = total_bytes / speeds.write / SECONDS_PER_HOUR
    pays_after = break_even(build=1 / speeds.build, online=1 / speeds.teacher, read=1 / speeds.read)
    return CachePlan(
        num_images=num_images,
        num_shards=len(pool.index.shards),
        teacher=teacher.name,
        device=str(pool.device),
        num_devices=num_devices,
        codec=codec,
        codecs=codecs,
        speeds=speeds,
        free_bytes=free_bytes,
        hours=max(teacher_hours, disk_hours),
        limit="disk" if disk_hours > teacher_hours else "teacher",
        online_hours_per_epoch=num_images / (speeds.teacher * num_devices) / SECONDS_PER_HOUR,
        break_even_epochs=pays_after,
        recommendation=recommend(codecs, free_bytes=free_bytes, pays_after=pays_after),
    )


def break_even(*, build: float, online: float, read: float) -> int | None:
    """Return the smallest number of epochs for which build + epochs * read < epochs * online, or None.

    Args:
        build: seconds an image to build the cache.
        online: seconds an image of the teacher in a training step.
        read: seconds an image to read an entry of the cache.
    """
    if online <= read:
        return None
    return math.floor(build / (online - read)) + 1


def recommend(codecs: tuple[CodecCost, ...], *, free_bytes: int, pays_after: int | None) -> str:
    """Return a recommendation: the smallest codec that loses little and fits the disk, and when a cache pays."""
    if pays_after is None:
        return "no cache: reading it costs more than this teacher; train with teacher.source=online"
    faithful = [cost for cost in codecs if _is_faithful(cost.fidelity)]
    if not faithful:
        return (
            f"no cache: every codec measured loses more than {MAX_RELATIVE_L2:.1%} or {MAX_IOU_LOSS} of mask IoU; "
            "train with teacher.source=online"
        )
    best = min(faithful, key=lambda cost: cost.total_bytes)
    if best.total_bytes > free_bytes:
        return (
            f"not here: {best.codec}, the smallest that loses little, needs {best.total_bytes:,} bytes and "
            f"{free_bytes:,} are free; choose another cache.dir, or train with teacher.source=online"
        )
    online = "" if pays_after == 1 else "; for fewer, teacher.source=online is cheaper"
    return f"cache.codec={best.codec}, for {pays_after} epoch{'' if pays_after == 1 else 's'} or more{online}"


def measure_speeds(pool: TeacherPool, folder: Path) -> Speeds:
    """Time every part of the job for a few seconds. Raises as `make_plan`."""
    members = _spread(pool, SPEED_PHOTOS)
    list(pool.encode(members[:1]))  # the first one includes what is set up once
    build, blobs = _build_speed(pool, members)
    return Speeds(
        build=build, teacher=_teacher_speed(pool, members), read=_read_speed(blobs), write=write_speed(folder)
    )


def write_speed(folder: Path) -> float:
    """Return how many bytes a second one stream writes and flushes. Raises CacheError when the disk is full."""
    block = os.urandom(PROBE_BLOCK)  # file systems may compress
    path = temporary_path(folder / PROBE_NAME)
    with disk_errors(path):
        try:
            started = time.perf_counter()
            with path.open("xb") as file:
                for _ in range(PROBE_BLOCKS):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            return PROBE_BLOCK * PROBE_BLOCKS / (time.perf_counter() - started)
        finally:
            path.unlink(missing_ok=True)


def nearest_directory(path: Path) -> Path:
    """Return the path itself, or the nearest directory above it that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def _is_faithful(fidelity: Fidelity) -> bool:
    lost = fidelity.mask_iou_float32 - fidelity.mask_iou
    return fidelity.relative_l2 <= MAX_RELATIVE_L2 and lost <= MAX_IOU_LOSS


def _spread(pool: TeacherPool, num_photos: int) -> list[Member]:
    """Return members at equal distances over the job."""
    num_samples = len(pool.index)
    num_photos = min(num_photos, num_samples)
    return [pool.index.member(num_samples * i // num_photos) for i in range(num_photos)]


def _build_speed(pool: TeacherPool, members: list[Member]) -> tuple[float, list[bytes]]:
    """Return the photos a second through the complete job, and the entries that it gave."""
    samples = []
    started = time.perf_counter()
    for sample in pool.encode(members):
        samples.append(sample)
        if time.perf_counter() - started > SPEED_SECONDS:
            break
    seconds = time.perf_counter() - started
    blobs = [blob for sample in samples for blob in sample.blobs]
    if not blobs:
        raise DataError(f"{pool.index.directory}: none of {len(samples)} photos tried can be decoded; restore them")
    return len(samples) / seconds, blobs


def _teacher_speed(pool: TeacherPool, members: list[Member]) -> float:
    """Return the photos a second through the teacher alone, in the batches that the job uses."""
    photos = (photo.pixels[0] for photo in map(pool.load, members) if photo.pixels)
    pixels = list(islice(photos, pool.chunk_size * pool.num_workers))
    chunks = [pixels[at : at + pool.chunk_size] for at in range(0, len(pixels), pool.chunk_size)]
    num_done = 0
    started = time.perf_counter()
    while num_done < len(members) and time.perf_counter() - started < SPEED_SECONDS:
        for embeddings in pool.map(lambda chunk: pool.embed(chunk).cpu(), chunks):
            num_done += len(embeddings)
    return num_done / (time.perf_counter() - started)


def _read_speed(blobs: list[bytes]) -> float:
    num_done = 0
    started = time.perf_counter()
    while time.perf_counter() - started < READ_SECONDS:
        for blob in blobs:
            decode_embedding(blob)
        num_done += len(blobs)
    return num_done / (time.perf_counter() - started)
