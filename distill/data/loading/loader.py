"""The loader of an epoch: batches by the plan, in workers, and the place to go on after an interruption."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from distill.batch import ImageBatch
from distill.data.loading.epoch_plan import epoch_plan, num_batches
from distill.data.loading.samples import BadPhoto, LoadedBatch, PhotoBatches, Request
from distill.errors import DataError
from distill.text import first_few

PREFETCHED_BATCHES = 2  # per worker

logger = logging.getLogger(__name__)


class EpochSampler:
    """What is to be read: an epoch, and how many of its batches the trainer has taken.

    Args:
        shard_sizes: samples of each shard.
        batch_size: photos per rank and step.
        shuffle: each epoch has its own order; without it every epoch is the first one again.
        positions: where the plan's samples lie in the index; None: in its own order.
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
        """Batches of a whole epoch."""
        return num_batches(sum(self.shard_sizes), world_size=self.world_size, batch_size=self.batch_size)

    @property
    def num_samples(self) -> int:
        """Samples of this rank in a whole epoch."""
        return -(-sum(self.shard_sizes) // self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Lightning says which epoch begins; of the epoch under way it changes nothing."""
        if self.shuffle and epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def begin(self) -> None:
        """Called when reading begins: after the last batch of an epoch comes the first of the next."""
        if not self.shuffle:
            self.position = 0
        elif self.position >= len(self):
            self.epoch, self.position = self.epoch + 1, 0

    def __iter__(self) -> Iterator[Request]:
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
    """Iterates over the batches of an epoch, from the place that `load_state_dict` gave; then over the next epoch's.

    Lightning finds here what it looks for in a loader (`sampler.set_epoch`, `state_dict`), but no torch DataLoader, so
    that it leaves the ranks to the plan. Each photo that cannot be decoded is logged once.

    Raises, while iterating:
        DataError: a shard is gone or damaged, or more than `max_bad_share` of the epoch's photos cannot be decoded.
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
        self.batch_sampler = None  # where Lightning looks before it looks at `sampler`
        self.max_bad_share = max_bad_share
        self._warned: set[str] = set()
        in_workers: dict[str, Any] = {}
        if num_workers:
            in_workers["persistent_workers"] = True
            in_workers["prefetch_factor"] = PREFETCHED_BATCHES
            in_workers["multiprocessing_context"] = multiprocessing_context
        self._loader: DataLoader[LoadedBatch] | None = DataLoader(
            photos,
            sampler=sampler,
            batch_size=None,  # requests are batches already
            collate_fn=_as_it_is,  # type: ignore[arg-type]  # without a batch size it gets one request's answer
            num_workers=num_workers,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # else every epoch takes a number from the global one, and resuming one more
            **in_workers,
        )

    def __len__(self) -> int:
        """Batches of a whole epoch, the same on every rank."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[ImageBatch]:
        self.sampler.begin()
        bad: set[str] = set()
        for loaded in self._loader or ():
            self._note(loaded.bad, bad)
            if loaded.error is not None:
                raise loaded.error
            self.sampler.position += 1  # before the batch is handed over: a checkpoint of its step comes after it
            yield ImageBatch(**loaded.fields)

    def state_dict(self) -> dict[str, Any]:
        """Epoch and batches taken by the trainer (not those that workers have read ahead), and what they depend on."""
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
        """Go on with the very next batch. Number of workers and split of the global batch over ranks may have changed.

        Raises:
            DataError: in the middle of an epoch, when other images, seed or global batch size make another epoch of it.
        """
        own = self.state_dict()
        differing = [name for name in ("images", "seed", "global_batch_size") if state[name] != own[name]]
        between_epochs = state["position"] in (0, state["num_batches"])
        if differing and not between_epochs:
            details = ", ".join(f"{name.replace('_', ' ')} {state[name]} then, {own[name]} now" for name in differing)
            raise DataError(
                f"the checkpoint was written in the middle of an epoch (batch {state['position']} of "
                f"{state['num_batches']}) that is another one now: {details}; resume with the same data, seed and "
                "global batch (ranks x data.batch_size), or begin a new run with student.init_from"
            )
        ended = state["position"] == state["num_batches"]
        self.sampler.epoch = state["epoch"]
        self.sampler.position = len(self.sampler) if ended else state["position"]

    def close(self) -> None:
        """Stop the workers and close the shards; the loader is empty from then on."""
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


def _as_it_is(loaded: LoadedBatch) -> LoadedBatch:
    return loaded
