"""The batches of a training run, from image shards and the teacher's embeddings."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import torch

from distill.config.schema import DataConfig, ValidationConfig
from distill.data.cache.embeddings import EmbeddingCache
from distill.data.loading.loader import EpochLoader, EpochSampler, check_same_epoch
from distill.data.loading.samples import PhotoBatches
from distill.data.shards.index import ShardIndex
from distill.errors import DataError

SMALL_BATCH = 16  # photos: the largest batch of the packaged recipes, which may be more than a small set has

logger = logging.getLogger(__name__)


class DistillDataModule(lightning.LightningDataModule):
    """Training batches, shuffled per epoch, and held-out batches with masks, as distill.batch.ImageBatch.

    Rank and world size are the trainer's. With a cache, training batches hold the teacher's embeddings. With
    `teacher_image_size`, held-out batches hold the teacher's input. So do training batches if there is no cache and
    either `online_teacher` is set or they hold no masks, as in a feature stage with an online teacher.

    Args:
        data: which shards are read, and how.
        image_size: S, the student's input in pixels.
        embedding_size: E, the teacher's grid.
        masks: whether training batches hold masks.
        teacher_image_size: T, the teacher's input in pixels; None: no batch holds the teacher's input.
        online_teacher: whether the teacher embeds the photos of batches with masks while training.
        cache: embeddings of the training photos.
        validation: how many photos and masks of `data.val_images` are read.
        multiprocessing_context: how workers start (fork, spawn, forkserver); None: the platform's default.
    """

    def __init__(
        self,
        data: DataConfig,
        *,
        image_size: int,
        embedding_size: int,
        masks: bool,
        seed: int = 0,
        teacher_image_size: int | None = None,
        online_teacher: bool = False,
        cache: EmbeddingCache | None = None,
        validation: ValidationConfig | None = None,
        multiprocessing_context: str | None = None,
    ) -> None:
        super().__init__()
        self.prepare_data_per_node = False  # the index lies beside the shards, which all nodes share
        self.data = data
        self.image_size = image_size
        self.embedding_size = embedding_size
        self.masks = masks
        self.seed = seed
        self.teacher_image_size = teacher_image_size
        self.online_teacher = online_teacher
        self.cache = cache
        self.validation = validation or ValidationConfig()
        self.multiprocessing_context = multiprocessing_context
        self._indices: dict[str, ShardIndex] = {}
        self._loaders: list[EpochLoader] = []

    def prepare_data(self) -> None:
        """Index shards that have no index yet, so that the other ranks do not have to read all headers."""
        for directory in filter(None, [self.data.images, self.data.val_images]):
            index = ShardIndex.open(directory)
            if not index.is_saved:
                try:
                    index.save()
                except DataError as error:  # of read-only data every rank reads the headers
                    logger.info("the index is not kept: %s", error)

    def setup(self, stage: str | None = None) -> None:
        """Open the indices. Raises DataError when there are no shards, or no masks although they are needed."""
        for directory in filter(None, [self.data.images, self.data.val_images]):
            if directory not in self._indices:
                self._indices[directory] = ShardIndex.open(directory)
        if self.masks and not self._indices[self.data.images].has_annotations:
            raise DataError(
                f"{self.data.images}: these shards hold photos alone, and the mask stage needs masks; "
                "make shards with masks by 'distill shards build coco'"
            )

    @property
    def fingerprint(self) -> str:
        """The hash of the training photos' index. Read it after `setup`."""
        return self._indices[self.data.images].fingerprint

    def check_resumable(self, state: Mapping[str, Any], *, world_size: int) -> None:
        """Raise DataError if training cannot go on from the state of its loader in a checkpoint. Call after `setup`."""
        own = {
            "images": self.fingerprint,
            "seed": self.seed,
            "global_batch_size": world_size * self.data.batch_size,
        }
        check_same_epoch(state, own)

    def check_batch(self) -> None:
        """Raise DataError if every batch would hold all photos of a set that is not small. Call after `setup`.

        While a batch is put together, it takes three times the pixels of its photos (measured): 37 MB for each photo of
        1024 pixels, 14 GB for 380 of them, and that before the student has seen them.
        """
        most = max(self.num_photos, SMALL_BATCH)
        if self.data.batch_size > most:
            raise DataError(
                f"data.batch_size={self.data.batch_size}: {self.data.images} has {self.num_photos} photos, so that "
                f"every step would take all of them at once; give fewer photos a step, at most {most}"
            )

    @property
    def num_photos(self) -> int:
        """The number of training photos, once the data is set up."""
        return len(self._indices[self.data.images])

    def train_dataloader(self) -> EpochLoader:
        """Return the loader of training batches."""
        index = self._indices[self.data.images]
        is_embedded_online = self.cache is None and (self.online_teacher or not self.masks)
        photos = PhotoBatches(
            index,
            image_size=self.image_size,
            embedding_size=self.embedding_size,
            seed=self.seed,
            max_instances=self.data.max_instances if self.masks else 0,
            instance_odds=self.data.instance_odds,
            instance_draw=self.data.instance_draw,
            teacher_image_size=self.teacher_image_size if is_embedded_online else None,
            cache=self.cache,
            hflip=self.data.hflip,
        )
        return self._loader(photos, shard_sizes=index.shard_sizes, shuffle=True)

    def val_dataloader(self) -> EpochLoader | list[EpochLoader]:
        """Return the loader of held-out batches, or an empty list without held-out shards."""
        if self.data.val_images is None:
            return []
        index = self._indices[self.data.val_images]
        photos = PhotoBatches(
            index,
            image_size=self.image_size,
            embedding_size=self.embedding_size,
            seed=self.seed,
            max_instances=self.validation.max_instances,
            teacher_image_size=self.teacher_image_size,
        )
        num_images = min(self.validation.max_images, len(index)) or len(index)
        spread = [place * len(index) // num_images for place in range(num_images)]  # over the complete set
        return self._loader(photos, shard_sizes=[num_images], shuffle=False, positions=spread)

    def teardown(self, stage: str | None = None) -> None:
        """Stop the workers."""
        for loader in self._loaders:
            loader.close()
        self._loaders = []

    def _loader(
        self, photos: PhotoBatches, *, shard_sizes: list[int], shuffle: bool, positions: Sequence[int] | None = None
    ) -> EpochLoader:
        sampler = EpochSampler(
            shard_sizes,
            seed=self.seed,
            batch_size=self.data.batch_size,
            shuffle=shuffle,
            world_size=self.trainer.world_size if self.trainer else 1,
            rank=self.trainer.global_rank if self.trainer else 0,
            positions=positions,
        )
        loader = EpochLoader(
            photos,
            sampler,
            num_workers=self.data.num_workers,
            max_bad_share=self.data.max_bad_share,
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context=self.multiprocessing_context,
        )
        self._loaders.append(loader)
        return loader
