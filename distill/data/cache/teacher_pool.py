"""Threads that decode photos and run the teacher, so that an embedding's bits depend only on its photo.

On a CPU each thread takes one photo at a time and runs the teacher in that thread alone. Sums over several OpenMP
threads depend on the number of threads, and torchrun gives a process one thread where a lone process gets all cores.
On a GPU photos go in batches that shard and batch size determine. Threads decode the next photos while the teacher
runs.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor

from distill.config.schema import CacheConfig
from distill.data.cache.codecs import encode_embedding
from distill.data.cache.views import view_of
from distill.data.images import decode_image
from distill.data.shards.index import Member, ShardIndex
from distill.errors import DataError
from distill.geometry import HW, letterbox
from distill.models.teacher import Teacher

NUM_DECODING_THREADS = 4  # beside a GPU
CHUNKS_AHEAD = 2  # per thread
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Photo:
    """A sample as the teacher reads it: pixels (3, S, S) of each view, and original_hw.

    A photo that cannot be decoded has no pixels, original_hw None, and a reason.
    """

    key: str
    pixels: tuple[Tensor, ...]
    original_hw: HW | None
    reason: str = ""


@dataclass(frozen=True)
class EncodedSample:
    """A sample as it is stored, with an entry for each view. A photo that cannot be decoded has a reason instead."""

    key: str
    blobs: tuple[bytes, ...]
    reason: str = ""


class TeacherPool:
    """Threads that run the teacher over samples, used as a context manager.

    Args:
        teacher: on the device on which it runs.
        index: the image shards.
        config: precision, batch_size, codec and views are used.
    """

    def __init__(self, teacher: Teacher, index: ShardIndex, config: CacheConfig) -> None:
        self.teacher = teacher
        self.index = index
        self.config = config
        self.device = next(teacher.model.parameters()).device
        on_cpu = self.device.type == "cpu"
        self._threads_before = torch.get_num_threads()
        self.num_workers = min(self._threads_before, config.batch_size) if on_cpu else NUM_DECODING_THREADS
        self.chunk_size = 1 if on_cpu else config.batch_size
        self._forward_lock = contextlib.nullcontext() if on_cpu else threading.Lock()
        teacher.model.image_encoder.to(memory_format=torch.channels_last)  # convolutions are faster on CPUs too

    def __enter__(self) -> TeacherPool:
        torch.set_num_threads(1)
        self._executor = ThreadPoolExecutor(
            self.num_workers, thread_name_prefix="teacher", initializer=torch.set_num_threads, initargs=(1,)
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._executor.shutdown(cancel_futures=True)
        torch.set_num_threads(self._threads_before)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield the results of `function`, run in the threads, in the order of the items. A few are computed ahead."""
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(self._executor.submit(function, item))
                if len(pending) > CHUNKS_AHEAD * self.num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def encode(self, members: list[Member]) -> Iterator[EncodedSample]:
        """Yield the samples of one shard as stored entries, in order. Raises DataError when the shard is damaged."""
        chunks = (members[at : at + self.chunk_size] for at in range(0, len(members), self.chunk_size))
        for samples in self.map(self._encode_chunk, chunks):
            yield from samples

    def load(self, member: Member) -> Photo:
        """Read and letterbox a photo. A photo that cannot be decoded is returned with its reason."""
        data = self.index.read_image_bytes(member)
        try:
            image = decode_image(data, self.index.origin(member))
        except DataError as error:
            return Photo(member.key, (), None, str(error))
        pixels = tuple(letterbox(view_of(image, view), self.teacher.image_size) for view in self.config.views)
        return Photo(member.key, pixels, (image.shape[0], image.shape[1]))

    def embed(self, pixels: list[Tensor]) -> Tensor:
        """Return the teacher's embeddings of B inputs (3, S, S): float32 (B, C, E, E), on the teacher's device."""
        dtype = AUTOCAST.get(self.config.precision)
        batch = torch.stack(pixels)  # (B, 3, S, S)
        with self._forward_lock, torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            return self.teacher.embed(batch.to(self.device))

    def _encode_chunk(self, members: list[Member]) -> list[EncodedSample]:
        photos = [self.load(member) for member in members]
        sound = [photo.pixels for photo in photos if photo.pixels]
        of_views = (self.embed(list(pixels)).cpu() for pixels in zip(*sound, strict=True))  # (B, C, E, E) each
        embeddings = zip(*of_views, strict=True)  # of each photo, (C, E, E) of each view
        return [self._encode_photo(photo, embeddings) for photo in photos]

    def _encode_photo(self, photo: Photo, embeddings: Iterator[tuple[Tensor, ...]]) -> EncodedSample:
        hw = photo.original_hw
        if hw is None:
            return EncodedSample(photo.key, (), photo.reason)
        views = zip(self.config.views, next(embeddings), strict=True)
        codec = self.config.codec
        blobs = tuple(encode_embedding(item, hw, codec, key=photo.key, view=view) for view, item in views)
        return EncodedSample(photo.key, blobs)
