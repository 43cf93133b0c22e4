"""The loader of an epoch: workers read batches by the plan, and an interrupted epoch goes on where it stopped."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch.utils.data import DataLoader

from distill.batch import ImageBatch
from distill.data.loading.epoch_plan import epoch_plan, num_batches
from distill.data.loading.samples import BadPhoto, LoadedBatch, PhotoBatches, Request
from distill.errors import DataError
from distill.outside import Count, Line, convert
from distill.text import first_few

PREFETCHED_BATCHES = 2  # per worker

logger = logging.getLogger(__name__)


class LoaderState(msgspec.Struct):
    """The state of a loader in a checkpoint; see `EpochLoader.state_dict`."""

    epoch: Count
    position: Count
    num_batches: Count
    global_batch_size: Count
    seed: int
    images: Line


class EpochSampler:
    """The requests of an epoch. `position` counts the batches that the trainer has taken from it.

    Args:
        shard_sizes: samples of each shard.
        batch_size: photos per rank and step.
        shuffle: whether each epoch has its own order; without it, every epoch repeats the first one.
        positions: position in the index of each sample of the plan; None: they are the same.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int],
        *,
        seed: int,
        batch_size: int,
        shuffle: bool,
        world_size: int = 1,
        rank: int = 0,
        positions: Sequence[int] | None = None,
    ) -> None:
        self.shard_sizes = shard_sizes
        self.seed = seed
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.world_size = world_size
        self.rank = rank
        self.positions = positions
        self.epoch = 0
        self.position = 0

    def __len__(self) -> int:
        """Count the batches of a complete epoch."""
        return num_batches(sum(self.shard_sizes), world_size=self.world_size, batch_size=self.batch_size)

    @property
    def num_samples(self) -> int:
        """How many samples this rank reads in a complete epoch."""
        return -(-sum(self.shard_sizes) // self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Start another epoch from its first batch. Lightning calls this; for the current epoch it changes nothing."""
        if self.shuffle and epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def begin(self) -> None:
        """Prepare for reading: after the last batch of an epoch comes the first batch of the next one."""
        if not self.shuffle:
            self.position = 0
        elif self.position >= len(self):
            self.epoch, self.position = self.epoch + 1, 0

    def __iter__(self) -> Iterator[Request]:
        """Yield the requests from `position` to the end of the epoch."""
        epoch = self.epoch
        for batch in epoch_plan(
            self.shard_sizes,
            seed=self.seed,
            epoch=epoch,
            world_size=self.world_size,
            rank=self.rank,
            batch_size=self.batch_size,
            shuffle=self.shuffle,
            first_batch=self.position,
        ):
            yield Request(epoch, batch if self.positions is None else [int(self.positions[i]) for i in batch])


class EpochLoader:
    """The batches of an epoch, one iteration after the other; `load_state_dict` says where the first one begins.

    The class has what Lightning looks for in a loader (`sampler.set_epoch`, `state_dict`) but is no torch DataLoader.
    So Lightning does not add a sampler of its own, and the plan alone divides samples among the ranks. Each photo that
    cannot be decoded is logged once.

    Raises:
        DataError: while iterating; a shard is absent or damaged, or more than `max_bad_share` of the epoch's photos
            cannot be decoded.
    """

    def __init__(
        self,
        photos: PhotoBatches,
        sampler: EpochSampler,
        *,
        num_workers: int,
        max_bad_share: float,
        pin_memory: bool = False,
        multiprocessing_context: str | None = None,
    ) -> None:
        self.photos = photos
        self.sampler = sampler
        self.batch_sampler = None  # Lightning looks here before it looks at `sampler`
        self.max_bad_share = max_bad_share
        self._warned: set[str] = set()
        in_workers: dict[str, Any] = {}
        if num_workers:
            in_workers["persistent_workers"] = True
            in_workers["prefetch_factor"] = PREFETCHED_BATCHES
            in_workers["multiprocessing_context"] = multiprocessing_context
            in_workers["worker_init_fn"] = _leave_signals_to_the_parent
        self._loader: DataLoader[LoadedBatch] | None = DataLoader(
            photos,
            sampler=sampler,
            batch_size=None,  # a request is a batch already
            collate_fn=_as_it_is,  # type: ignore[arg-type]  # without a batch size it gets the answer to one request
            num_workers=num_workers,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # else each epoch, and each resume, would draw from the global one
            **in_workers,
        )

    def __len__(self) -> int:
        """Count the batches of a complete epoch, the same on every rank."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[ImageBatch]:
        """Yield the batches that are left of the epoch, or those of the next one."""
        self.sampler.begin()
        bad: set[str] = set()
        for loaded in self._loader or ():
            self._note(loaded.bad, bad)
            if loaded.error is not None:
                raise loaded.error
            self.sampler.position += 1  # before the batch is handed over: a checkpoint of its step comes after it
            yield ImageBatch(**loaded.fields)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, the batches that the trainer has taken from it, and what both depend on.

        Batches that workers have read ahead do not count.
        """
        sampler = self.sampler
        return {
            "epoch": sampler.epoch,
            "position": sampler.position,
            "num_batches": len(sampler),
            "global_batch_size": sampler.world_size * sampler.batch_size,
            "seed": sampler.seed,
            "images": self.photos.index.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the very next batch.

        The number of workers, and the number of ranks that share the global batch, may have changed.

        Raises:
            DataError: the state is from the middle of an epoch, and other images, another seed or another global batch
                size would change that epoch. Or it is no state of a loader.
        """
        found = check_same_epoch(state, self.state_dict())
        ended = found.position == found.num_batches
        self.sampler.epoch = found.epoch
        self.sampler.position = len(self.sampler) if ended else found.position

    def close(self) -> None:
        """Stop the workers and close the shards. The loader is empty after that."""
        self._loader = None
        self.photos.index.close()

    def _note(self, found: list[BadPhoto], bad: set[str]) -> None:
        for photo in found:
            bad.add(photo.key)
            if photo.key not in self._warned:
                self._warned.add(photo.key)
                logger.warning("skipped: %s", photo.reason)
        if len(bad) > self.max_bad_share * self.sampler.num_samples:
            raise DataError(
                f"{self.photos.index.directory}: {len(bad)} of the {self.sampler.num_samples} photos of this epoch "
                f"cannot be used, more than data.max_bad_share={self.max_bad_share} allows "
                f"({first_few(sorted(bad))}); "
                "build the shards again without them, or raise data.max_bad_share"
            )


def check_same_epoch(state: Mapping[str, Any], own: Mapping[str, Any]) -> LoaderState:
    """Return a loader's state. It may be from the middle of an epoch only if that epoch goes on with the same batches.

    Args:
        state: of EpochLoader.state_dict, from a checkpoint.
        own: `images`, `seed` and `global_batch_size` of the epoch to come.

    Raises:
        DataError: the epoch would go on with other batches, or the state is in no form that a loader writes.
    """
    origin, mend = "the loader's state in the checkpoint", "go on from another checkpoint"
    found = convert(state, LoaderState, origin, mend)
    if found.position > found.num_batches:
        raise DataError(f"{origin}: batch {found.position} of {found.num_batches} cannot be; {mend}")
    before = {name: getattr(found, name) for name in ("images", "seed", "global_batch_size")}
    differing = [name for name, value in before.items() if value != own[name]]
    between_epochs = found.position in (0, found.num_batches)
    if differing and not between_epochs:
        details = ", ".join(f"{name.replace('_', ' ')} {before[name]} then, {own[name]} now" for name in differing)
        raise DataError(
            f"the checkpoint was written in the middle of an epoch (batch {found.position} of "
            f"{found.num_batches}) which has changed since: {details}; resume with the same data, seed and "
            "global batch (ranks x data.batch_size), or begin a new run with student.init_from"
        )
    return found


def _leave_signals_to_the_parent(worker: int) -> None:
    """Let a worker end when its parent says so, and not by a signal that a scheduler or a terminal sends to all.

    The parent answers such a signal: it finishes its step, for which it needs its workers.
    """
    if not hasattr(signal, "sigwaitinfo"):  # as on macOS
        return
    sent_to_all = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_BLOCK, sent_to_all)
    parent = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo(sent_to_all).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, name="signals", daemon=True).start()


def _as_it_is(loaded: LoadedBatch) -> LoadedBatch:
    return loaded
