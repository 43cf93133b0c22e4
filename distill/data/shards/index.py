"""The index of image shards: plain tars in SA-1B's layout, with KEY.jpg and KEY.json in any order."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from distill.data.catalogue import resolve_shards
from distill.data.shards.columns import (
    NO_ANNOTATION,
    Columns,
    ShardEntry,
    hash_keys,
    index_bytes,
    parse_index,
    read_columns,
)
from distill.data.shards.storage import RemoteStorage, ShardStorage, open_storage
from distill.data.shards.tar import TAR_BLOCK, header_fits
from distill.errors import DataError

logger = logging.getLogger(__name__)

INDEX_NAME = "index.json"
LEAST_INDEX_BYTES = 1 << 20  # that are read; of more, no more than twice the tars, where a sample takes 1 KiB at least


@dataclass(frozen=True)
class Member:
    """One sample: its byte ranges inside an uncompressed tar. `annotation_offset` is None for photos without JSON."""

    shard: str
    key: str
    image_offset: int
    image_size: int
    annotation_offset: int | None
    annotation_size: int


class ShardIndex:
    """The samples of a directory of image shards, on this machine or at an address that fsspec reads.

    Samples are numbered shard by shard in the order of the shards' names. Inside a shard they are in the order of
    their photos. Each process and thread opens a file when it first reads it, so an index may be sent to workers.

    Attributes:
        directory: the path of the directory, or its address.
        is_saved: whether the index is in a file, so that other processes need not build it.
    """

    def __init__(
        self, storage: ShardStorage, shards: list[ShardEntry], columns: dict[str, Columns], *, is_saved: bool = False
    ) -> None:
        self.directory: Path | str = storage.directory
        self.shards = shards
        self.is_saved = is_saved
        self._storage = storage
        self._columns = columns
        self._first = np.cumsum([0, *(shard.num_samples for shard in shards)])  # position of each shard's first sample

    @classmethod
    def open(cls, directory: str | Path) -> ShardIndex:
        """Read `index.json`, or the headers of the tars if the file is absent or no longer matches them.

        `directory` may also name a prepared public set, such as coco2017/train (distill.data.catalogue).

        Reading the headers of remote tars takes a while, so their index is kept in the user's cache directory.

        Raises:
            DataError: no such directory, no tar in it, a damaged tar, or a key that occurs twice.
        """
        storage = open_storage(resolve_shards(directory))
        sizes = _shard_sizes(storage)
        for content in storage.saved(INDEX_NAME, most=2 * sum(sizes.values()) + LEAST_INDEX_BYTES):
            index = _load_index(storage, content, sizes)
            if index is not None:
                return index
        index = _from_headers(storage, sizes)
        if isinstance(storage, RemoteStorage):
            try:
                storage.keep(INDEX_NAME, index._content())
                index.is_saved = True
            except DataError as error:
                logger.info("the index is not kept: %s", error)
        return index

    @classmethod
    def build(cls, directory: str | Path) -> ShardIndex:
        """Read the headers of all tars, whatever `index.json` says. Raises DataError as `open`."""
        storage = open_storage(resolve_shards(directory))
        return _from_headers(storage, _shard_sizes(storage))

    def save(self) -> str:
        """Write `index.json` beside the tars, or on this machine if a remote directory cannot be written.

        Returns:
            the path or address of the file.

        Raises:
            DataError: the file cannot be written at all.
        """
        path = self._storage.save(INDEX_NAME, self._content())
        self.is_saved = True
        return path

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def shard_sizes(self) -> list[int]:
        """The number of samples of each shard."""
        return [shard.num_samples for shard in self.shards]

    @property
    def has_annotations(self) -> bool:
        """Whether any photo has a JSON beside it."""
        return any((columns.ranges[:, 2] != NO_ANNOTATION).any() for columns in self._columns.values())

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 over shard names and keys, which is equal for the same samples in the same order."""
        lines = "".join(f"{shard.name} {shard.keys_hash}\n" for shard in self.shards)
        return hashlib.sha256(lines.encode()).hexdigest()

    def member(self, position: int) -> Member:
        """Return the sample of that number, 0 <= position < len(index)."""
        shard = int(np.searchsorted(self._first, position, side="right")) - 1
        return self._member(self.shards[shard].name, position - int(self._first[shard]))

    def members(self, shard_name: str) -> list[Member]:
        """Return all samples of one shard, in their order."""
        return [self._member(shard_name, row) for row in range(len(self._columns[shard_name].keys))]

    def keys(self) -> Iterator[str]:
        """Yield the keys of all samples, in their order."""
        for shard in self.shards:
            for key in self._columns[shard.name].keys:
                yield key.decode()

    def read_image_bytes(self, member: Member) -> bytes:
        """Return the encoded photo of a sample.

        Raises:
            DataError: the shard is missing, cut off, or has changed since it was indexed.
        """
        return self._read(member, member.image_offset, member.image_size)

    def read_annotation(self, member: Member) -> bytes | None:
        """Return the JSON of a sample as bytes, or None if it has none. Raises DataError as `read_image_bytes`."""
        if member.annotation_offset is None:
            return None
        return self._read(member, member.annotation_offset, member.annotation_size)

    def origin(self, member: Member) -> str:
        """Return how errors name a sample."""
        return f"{self._storage.path(member.shard)}: sample '{member.key}'"

    def close(self) -> None:
        """Close the files that this thread opened."""
        self._storage.close()

    def _member(self, shard_name: str, row: int) -> Member:
        columns = self._columns[shard_name]
        image_offset, image_size, annotation_offset, annotation_size = (int(value) for value in columns.ranges[row])
        json_offset = None if annotation_offset == NO_ANNOTATION else annotation_offset
        return Member(shard_name, columns.keys[row].decode(), image_offset, image_size, json_offset, annotation_size)

    def _read(self, member: Member, offset: int, size: int) -> bytes:
        block = self._storage.read(member.shard, offset - TAR_BLOCK, TAR_BLOCK + size)
        if len(block) < TAR_BLOCK + size or not header_fits(block[:TAR_BLOCK], member.key, size):
            raise DataError(
                f"{self._storage.path(member.shard)}: has changed since it was indexed (sample '{member.key}' is not "
                f"where it was); run 'distill shards index {self.directory}'"
            )
        return block[TAR_BLOCK:]

    def _content(self) -> bytes:
        return index_bytes(self.shards, self._columns)


def _shard_sizes(storage: ShardStorage) -> dict[str, int]:
    """Return the bytes of each tar, by name. Raises DataError when there is no tar."""
    sizes = storage.tar_sizes()
    if not sizes:
        raise DataError(
            f"{storage.directory}: no image shard (*.tar) in it; 'distill shards build coco' or "
            "'distill shards build folder' makes them from photos"
        )
    return sizes


def _load_index(storage: ShardStorage, content: bytes, sizes: dict[str, int]) -> ShardIndex | None:
    """Return a saved index. Return None if it is damaged, of another version, or of other tars."""
    try:
        found = parse_index(content, sizes, storage.path(INDEX_NAME))
    except DataError as error:  # the headers of the tars are read instead
        logger.warning("%s", error)
        return None
    return None if found is None else ShardIndex(storage, *found, is_saved=True)


def _from_headers(storage: ShardStorage, sizes: dict[str, int]) -> ShardIndex:
    """Build the index from the headers of tars."""
    with ThreadPoolExecutor(storage.num_readers) as pool:
        found = pool.map(lambda name: read_columns(lambda: storage.open(name, sizes[name]), storage.path(name)), sizes)
        columns = dict(zip(sizes, found, strict=True))
    _check_keys(storage, columns)
    shards = [ShardEntry(name, len(found.keys), sizes[name], hash_keys(found.keys)) for name, found in columns.items()]
    return ShardIndex(storage, shards, columns)


def _check_keys(storage: ShardStorage, columns: dict[str, Columns]) -> None:
    """Raise DataError when a key occurs twice."""
    keys = [key for found in columns.values() for key in found.keys]
    if len(set(keys)) == len(keys):
        return
    counts = Counter(keys)
    twice = next(key for key in keys if counts[key] > 1)
    shards = [name for name, found in columns.items() if twice in found.keys]
    raise DataError(
        f"{storage.directory}: key '{twice.decode()}' occurs twice ({', '.join(shards)}); "
        "keys name samples: remove one of them or build the shards again"
    )
