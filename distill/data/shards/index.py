"""Image shards: plain tars in SA-1B's layout, KEY.jpg and KEY.json in any order, and the index of what lies where."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import logging
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from distill.data.catalogue import resolve_shards
from distill.data.images import PHOTO_SUFFIXES
from distill.data.shards.defaults import SAMPLES_PER_SHARD
from distill.data.shards.storage import Place, RemotePlace, place_of
from distill.data.shards.tar import TAR_BLOCK, append_member, header_names, list_members
from distill.errors import DataError
from distill.files import commit_file, write_errors

logger = logging.getLogger(__name__)

INDEX_NAME = "index.json"
INDEX_VERSION = 1
NO_ANNOTATION = -1  # in place of an offset


@dataclass(frozen=True)
class Member:
    """One sample: byte ranges inside its uncompressed tar. Photos without JSON have annotation_offset None."""

    shard: str
    key: str
    image_offset: int
    image_size: int
    annotation_offset: int | None
    annotation_size: int


@dataclass(frozen=True)
class ShardEntry:
    """One tar: its name, samples, bytes, and the sha256 of its keys in their order."""

    name: str
    num_samples: int
    num_bytes: int
    keys_hash: str


@dataclass(frozen=True)
class _Columns:
    """The members of one shard, in the order of their photos: keys bytes (n,), ranges int64 (n, 4)."""

    keys: np.ndarray
    ranges: np.ndarray


class ShardIndex:
    """A directory of image shards, here or at an address that fsspec reads: which samples there are, and their bytes.

    Samples are numbered shard by shard (by name), inside a shard in the order of their photos. Files are opened
    when they are first read, by each process and thread for itself, so an index may be sent to workers.

    directory: its path, or its address. is_saved: whether the index was read from a file, so that others find it too.
    """

    def __init__(
        self, place: Place, shards: list[ShardEntry], columns: dict[str, _Columns], *, is_saved: bool = False
    ) -> None:
        self.directory: Path | str = place.directory
        self.shards = shards
        self.is_saved = is_saved
        self._place = place
        self._columns = columns
        self._first = np.cumsum([0, *(shard.num_samples for shard in shards)])  # position of each shard's first sample

    @classmethod
    def open(cls, directory: str | Path) -> ShardIndex:
        """Read `index.json`, or the headers of the tars when it is absent or no longer fits them.

        `directory` may also name a public set that is prepared, as coco2017/train (distill.data.catalogue).

        The headers of remote tars take a while: their index is kept in the user's cache directory.

        Raises:
            DataError: no such directory, no tar in it, a damaged tar, or a key that occurs twice.
        """
        place = place_of(resolve_shards(directory))
        sizes = _shard_sizes(place)
        for content in place.saved(INDEX_NAME):
            index = _load_index(place, content, sizes)
            if index is not None:
                return index
        index = _from_headers(place, sizes)
        if isinstance(place, RemotePlace):
            try:
                place.keep(INDEX_NAME, index._content())
                index.is_saved = True
            except DataError as error:
                logger.info("the index is not kept: %s", error)
        return index

    @classmethod
    def build(cls, directory: str | Path) -> ShardIndex:
        """Read the headers of all tars, whatever `index.json` says."""
        place = place_of(resolve_shards(directory))
        return _from_headers(place, _shard_sizes(place))

    def save(self) -> str:
        """Write `index.json`, and give its path: beside the tars, or here when a remote place cannot be written.

        Raises DataError when it cannot be written at all.
        """
        path = self._place.save(INDEX_NAME, self._content())
        self.is_saved = True
        return path

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def shard_sizes(self) -> list[int]:
        """Samples of each shard."""
        return [shard.num_samples for shard in self.shards]

    @property
    def has_annotations(self) -> bool:
        """Whether any photo has a JSON beside it."""
        return any((columns.ranges[:, 2] != NO_ANNOTATION).any() for columns in self._columns.values())

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over shard names and keys: equal for the same samples in the same order."""
        lines = "".join(f"{shard.name} {shard.keys_hash}\n" for shard in self.shards)
        return hashlib.sha256(lines.encode()).hexdigest()

    def member(self, position: int) -> Member:
        """The sample of that number, 0 <= position < len(index)."""
        shard = int(np.searchsorted(self._first, position, side="right")) - 1
        return self._member(self.shards[shard].name, position - int(self._first[shard]))

    def members(self, shard_name: str) -> list[Member]:
        """All samples of one shard, in their order."""
        return [self._member(shard_name, row) for row in range(len(self._columns[shard_name].keys))]

    def keys(self) -> Iterator[str]:
        """The keys of all samples, in their order."""
        for shard in self.shards:
            for key in self._columns[shard.name].keys:
                yield key.decode()

    def read_image_bytes(self, member: Member) -> bytes:
        """The coded photo of a sample. Raises DataError when the shard is gone, cut, or not the one indexed."""
        return self._read(member, member.image_offset, member.image_size)

    def read_annotation(self, member: Member) -> bytes | None:
        """The JSON of a sample, as bytes; None when it has none. Raises DataError as `read_image_bytes`."""
        if member.annotation_offset is None:
            return None
        return self._read(member, member.annotation_offset, member.annotation_size)

    def origin(self, member: Member) -> str:
        """How errors name a sample."""
        return f"{self._place.path(member.shard)}: sample '{member.key}'"

    def close(self) -> None:
        """Close the files that this thread opened."""
        self._place.close()

    def _member(self, shard_name: str, row: int) -> Member:
        columns = self._columns[shard_name]
        image_offset, image_size, annotation_offset, annotation_size = (int(value) for value in columns.ranges[row])
        json_offset = None if annotation_offset == NO_ANNOTATION else annotation_offset
        return Member(shard_name, columns.keys[row].decode(), image_offset, image_size, json_offset, annotation_size)

    def _read(self, member: Member, offset: int, size: int) -> bytes:
        block = self._place.read(member.shard, offset - TAR_BLOCK, TAR_BLOCK + size)
        if len(block) < TAR_BLOCK + size or not header_names(block, member.key):
            raise DataError(
                f"{self._place.path(member.shard)}: has changed since it was indexed (sample '{member.key}' is not "
                f"where it was); run 'distill shards index {self.directory}'"
            )
        return block[TAR_BLOCK:]

    def _content(self) -> bytes:
        shards = [
            {
                **asdict(shard),
                "keys": "\n".join(key.decode() for key in self._columns[shard.name].keys),
                "ranges": base64.b64encode(self._columns[shard.name].ranges.astype("<i8").tobytes()).decode(),
            }
            for shard in self.shards
        ]
        return (json.dumps({"version": INDEX_VERSION, "shards": shards}, indent=1) + "\n").encode()


class ShardWriter:
    """Writes `sa_000000.tar`, `sa_000001.tar`, ... and at last `index.json`.

    The same samples in the same order give the same bytes. A shard is written under a temporary name, flushed to
    the disk and renamed when whole. On an error everything that this writer wrote is removed again.

        with ShardWriter(directory, samples_per_shard=1000) as writer:
            writer.add("000000000139", jpeg_bytes, annotation)

    Raises:
        DataError: the directory is not empty or cannot be written, the disk is full, a key has a dot or a slash
            or occurs twice, or there was no sample at all.
    """

    def __init__(self, directory: str | Path, samples_per_shard: int = SAMPLES_PER_SHARD) -> None:
        if samples_per_shard < 1:
            raise DataError(f"samples per shard: {samples_per_shard}; give at least 1")
        self.directory = Path(directory)
        self.samples_per_shard = samples_per_shard
        self._keys: set[str] = set()
        self._written: list[Path] = []
        self._tar: tarfile.TarFile | None = None
        self._file: BinaryIO | None = None
        with write_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            if any(self.directory.iterdir()):
                raise DataError(f"{self.directory}: not empty; empty it, or give another directory for the shards")

    def add(self, key: str, image: bytes, annotation: dict[str, Any] | None, *, suffix: str = "jpg") -> None:
        """Append one sample.

        Args:
            key: without dots and slashes, since tar readers end a key at its first dot.
            image: the coded photo, stored as it is, as KEY.`suffix`.
            annotation: SA-1B's layout, stored as KEY.json; None stores the photo alone.
        """
        if not key or any(character in key for character in "./\n\0"):
            raise DataError(f"key {key!r}: a key is not empty and has no dot, slash or line break; rename the photo")
        if key in self._keys:
            raise DataError(f"key '{key}' occurs twice; every photo needs a name of its own")
        self._keys.add(key)
        with write_errors(self._shard_path):
            tar = self._tar or self._open_shard()
            append_member(tar, f"{key}.{suffix}", image)
            if annotation is not None:
                content = json.dumps(annotation, sort_keys=True, separators=(",", ":"))
                append_member(tar, f"{key}.json", content.encode())
            if len(self._keys) % self.samples_per_shard == 0:
                self._commit_shard()

    def close(self) -> None:
        """Finish the last shard and write the index."""
        if not self._keys:
            raise DataError(f"{self.directory}: there was no sample to write; give at least one photo")
        if self._tar is not None:
            with write_errors(self._shard_path):
                self._commit_shard()
        ShardIndex.build(self.directory).save()

    def abort(self) -> None:
        """Remove everything that was written, the shard under way included."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # closing flushes what a full disk did not take
                self._file.close()
        self._tar = self._file = None
        for path in (self._temporary_path, *self._written):
            path.unlink(missing_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()
            return
        try:
            self.close()
        except BaseException:
            self.abort()
            raise

    @property
    def _shard_path(self) -> Path:
        return self.directory / f"sa_{len(self._written):06d}.tar"

    @property
    def _temporary_path(self) -> Path:
        return self.directory / f".{self._shard_path.name}.tmp"

    def _open_shard(self) -> tarfile.TarFile:
        self._file = self._temporary_path.open("wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.GNU_FORMAT)  # noqa: SIM115 - one shard long
        return self._tar

    def _commit_shard(self) -> None:
        assert self._tar is not None and self._file is not None
        self._tar.close()
        commit_file(self._file, self._temporary_path, self._shard_path)
        self._written.append(self._shard_path)
        self._tar = self._file = None


def _shard_sizes(place: Place) -> dict[str, int]:
    """Bytes of each tar of a place, by name."""
    sizes = place.tar_sizes()
    if not sizes:
        raise DataError(
            f"{place.directory}: no image shard (*.tar) in it; 'distill shards build coco' or "
            "'distill shards build folder' makes them from photos"
        )
    return sizes


def _load_index(place: Place, content: bytes, sizes: dict[str, int]) -> ShardIndex | None:
    """An index as saved; None when it is damaged, or of another version or of other tars."""
    try:
        rows = json.loads(content)
        if rows["version"] != INDEX_VERSION:
            return None
        shards, columns = [], {}
        for row in rows["shards"]:
            keys = np.array([key.encode() for key in row.pop("keys").split("\n")])
            ranges = np.frombuffer(base64.b64decode(row.pop("ranges")), "<i8").astype(np.int64).reshape(-1, 4)
            shards.append(ShardEntry(**row))
            columns[shards[-1].name] = _Columns(keys, ranges)
            if len(keys) != len(ranges) or _hash_keys(keys) != shards[-1].keys_hash:
                return None
    except (ValueError, KeyError, TypeError, binascii.Error):
        return None  # the tars themselves tell
    if {shard.name: shard.num_bytes for shard in shards} != sizes:
        return None
    return ShardIndex(place, shards, columns, is_saved=True)


def _from_headers(place: Place, sizes: dict[str, int]) -> ShardIndex:
    """The index that the headers of tars give."""
    with ThreadPoolExecutor(place.num_readers) as pool:
        found = pool.map(lambda name: _read_headers(place, name, sizes[name]), sizes)
        columns = dict(zip(sizes, found, strict=True))
    _check_keys(place, columns)
    shards = [ShardEntry(name, len(found.keys), sizes[name], _hash_keys(found.keys)) for name, found in columns.items()]
    return ShardIndex(place, shards, columns)


def _check_keys(place: Place, columns: dict[str, _Columns]) -> None:
    keys = [key for found in columns.values() for key in found.keys]
    if len(set(keys)) == len(keys):
        return
    seen: set[bytes] = set()
    twice = next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    shards = [name for name, found in columns.items() if twice in found.keys]
    raise DataError(
        f"{place.directory}: key '{twice.decode()}' occurs twice ({', '.join(shards)}); "
        "keys name samples: remove one of them or build the shards again"
    )


def _read_headers(place: Place, name: str, num_bytes: int) -> _Columns:
    """The samples of a tar, from its headers; the order of its members does not matter."""
    path = place.path(name)
    photos: dict[str, tuple[int, int]] = {}
    annotations: dict[str, tuple[int, int]] = {}
    for member in list_members(lambda: place.open(name, num_bytes), path):
        key, dot, suffix = member.name.rsplit("/", 1)[-1].partition(".")
        of_kind = photos if f".{suffix.lower()}" in PHOTO_SUFFIXES else annotations if suffix == "json" else None
        if of_kind is None or not key:
            continue
        if key in of_kind:
            raise DataError(f"{path}: '{key}{dot}{suffix}' occurs twice; fetch or build the shard again")
        of_kind[key] = (member.offset, member.size)
    alone = annotations.keys() - photos.keys()
    if alone:
        raise DataError(f"{path}: sample '{min(alone)}' has annotations but no photo; fetch or build the shard again")
    if not photos:
        raise DataError(f"{path}: no photo in it; remove it, or give the directory of the image shards")
    keys = sorted(photos, key=lambda key: photos[key][0])
    ranges = [(*photos[key], *annotations.get(key, (NO_ANNOTATION, 0))) for key in keys]
    return _Columns(np.array([key.encode() for key in keys]), np.array(ranges, np.int64).reshape(-1, 4))


def _hash_keys(keys: np.ndarray) -> str:
    return hashlib.sha256(b"\n".join(keys.tolist())).hexdigest()
