"""Teacher-embedding shards: the writer of one shard, and the cache that training reads."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from torch import Tensor

from distill.config.names import IDENTITY
from distill.data.cache.checksummed_json import disk_errors
from distill.data.cache.codecs import decode_embedding, read_entry_header
from distill.data.cache.manifest import (
    Fingerprint,
    ImageShard,
    Manifest,
    Sidecar,
    StoredEntry,
    entry_name,
    sidecar_name,
    sidecar_path,
)
from distill.data.shards.storage import ShardStorage, open_storage
from distill.data.shards.tar import TAR_BLOCK
from distill.errors import CacheError, DataError
from distill.files import TEMPORARY_SUFFIX, commit_file, temporary_path
from distill.text import first_few


class EmbeddingShardWriter:
    """A writer of one embedding shard, used as a context manager.

    The shard gets its name only by `commit`, which writes its sidecar last. What was not committed is removed. Every
    method raises CacheError on a full or read-only disk.
    """

    def __init__(self, directory: Path, shard: ImageShard, cache: str) -> None:
        self.path = directory / shard.name
        self.shard = shard
        self.cache = cache
        self.bad: list[str] = []
        self.members: list[StoredEntry] = []
        with disk_errors(self.path):
            for path in (self.path, sidecar_path(directory, shard.name)):
                for leftover in directory.glob(f"{path.name}.*{TEMPORARY_SUFFIX}"):  # of a killed job
                    leftover.unlink(missing_ok=True)
            self._temporary = temporary_path(self.path)
            self._file = self._temporary.open("xb")
        self._sha256 = hashlib.sha256()
        self._bytes = 0

    def __enter__(self) -> EmbeddingShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with disk_errors(self.path):
            try:
                self._file.close()
            finally:
                self._temporary.unlink(missing_ok=True)

    def add(self, key: str, blob: bytes, view: str = IDENTITY) -> None:
        """Append the entry of one view of a sample."""
        info = tarfile.TarInfo(entry_name(key, view))  # owner and mtime are 0, so that equal work gives equal bytes
        info.size = len(blob)
        self._write(info.tobuf(tarfile.GNU_FORMAT))
        self.members.append(StoredEntry(key, view, self._bytes, len(blob), zlib.crc32(blob)))
        self._write(blob)
        self._write(bytes(-len(blob) % TAR_BLOCK))

    def skip(self, key: str) -> None:
        """Record a photo that could not be decoded."""
        self.bad.append(key)

    def commit(self) -> Sidecar:
        """Flush the shard to the disk, rename it and write its sidecar. Return the sidecar."""
        self._write(bytes(2 * TAR_BLOCK))
        self._write(bytes(-self._bytes % tarfile.RECORDSIZE))
        sidecar = Sidecar(
            cache=self.cache,
            keys_hash=self.shard.keys_hash,
            samples=len({entry.key for entry in self.members}),
            bytes=self._bytes,
            sha256=self._sha256.hexdigest(),
            bad=tuple(self.bad),
            members=tuple(self.members),
        )
        path = sidecar_path(self.path.parent, self.shard.name)
        with disk_errors(self.path):
            path.unlink(missing_ok=True)  # of a damaged or foreign shard of this name
            commit_file(self._file, self._temporary, self.path)
        sidecar.write(path)
        return sidecar

    def _write(self, data: bytes) -> None:
        with disk_errors(self.path):
            self._file.write(data)
        self._sha256.update(data)
        self._bytes += len(data)


@dataclass
class EmbeddingCache:
    """A complete cache, as training reads it, on this machine or at an address that fsspec reads.

    The object may be forked, or pickled to a worker. The sidecar of a shard is read when the shard is first needed.
    """

    storage: ShardStorage
    manifest: Manifest
    _members: dict[str, dict[tuple[str, str], StoredEntry]] = field(default_factory=dict, repr=False)  # of each shard
    _shard_of: dict[str, str] | None = field(default=None, repr=False)

    @classmethod
    def open(cls, directory: str | Path, expected: Fingerprint | None = None) -> EmbeddingCache:
        """Open a cache for reading.

        Args:
            directory: its path, or its address (s3://, hf://, https://).
            expected: what the recipe asks for (`fingerprint_of`), with the hash of the image index. The cache may
                hold more views.

        Raises:
            CacheError: there is no cache, it is damaged, it is not the expected one, or shards are missing.
        """
        storage = open_storage(directory)
        manifest = Manifest.read(storage)
        if expected is not None:
            held = manifest.fingerprint.views
            if set(expected.views) <= set(held):
                expected = replace(expected, views=held)
            manifest.check(expected, storage.directory)
        try:
            present = storage.names()
        except DataError as error:
            raise CacheError(str(error)) from error
        missing = [shard.name for shard in manifest.shards if not {shard.name, sidecar_name(shard.name)} <= present]
        if missing:
            raise CacheError(
                f"{directory}: {len(missing)} of {len(manifest.shards)} embedding shards are missing "
                f"({first_few(missing)}); run 'distill cache build RECIPE cache.dir={directory}': finished shards "
                "are kept"
            )
        return cls(storage, manifest)

    def __len__(self) -> int:
        return sum(len({key for key, _ in self._entries(shard.name)}) for shard in self.manifest.shards)

    def has(self, key: str, shard: str | None = None) -> bool:
        """Return whether a sample has embeddings. A photo that could not be decoded has none."""
        return self._locate(key, shard, IDENTITY) is not None

    def read(self, key: str, shard: str | None = None, *, view: str = IDENTITY) -> Tensor:
        """Return the embedding of one view of a sample: float32 (C, E, E).

        Args:
            shard: the name of its shard. Without it, all sidecars are read once to find the key.
            view: one of the cache's views.

        Raises:
            CacheError: the cache has no such view, the sample has no embedding, or its bytes are damaged or missing, or
                its values are not finite.
        """
        held = self.manifest.fingerprint.views
        if view not in held:
            raise CacheError(
                f"{self.directory}: holds the views {', '.join(held)} of each photo, not '{view}'; build a cache "
                f"with cache.views=[{','.join([*held, view])}] in another directory"
            )
        located = self._locate(key, shard, view)
        if located is None:
            raise CacheError(f"{self.directory}: no embedding of sample '{key}'; its photo could not be decoded")
        tar, entry = located
        try:
            blob = self.storage.read(tar, entry.offset, entry.size)
        except DataError as error:
            raise CacheError(f"{error}; {self._verify_hint}") from error
        origin = f"{self.storage.path(tar)}: sample '{key}'"
        if len(blob) != entry.size or zlib.crc32(blob) != entry.crc32:
            raise CacheError(f"{origin}: damaged, its bytes do not match its checksum; {self._verify_hint}")
        header = read_entry_header(blob, origin=origin)
        if (header.key, header.view) != (key, view):
            raise CacheError(f"{origin}: the entry there is of another sample; {self._verify_hint}")
        cached = self.manifest.fingerprint
        if (header.codec, header.grid) != (cached.codec, cached.embedding_size):
            raise CacheError(f"{origin}: the entry there is of another cache; {self._verify_hint}")
        embedding = decode_embedding(blob, origin=origin)
        if len(embedding) != cached.embedding_dim:
            raise CacheError(
                f"{origin}: {len(embedding)} channels, and this cache's embeddings have {cached.embedding_dim}; "
                f"{self._verify_hint}"
            )
        return embedding

    @property
    def directory(self) -> Path | str:
        """The path of the cache, or its address."""
        return self.storage.directory

    @property
    def _verify_hint(self) -> str:
        return f"'distill cache verify {self.directory}' names every damaged shard"

    def _locate(self, key: str, shard: str | None, view: str) -> tuple[str, StoredEntry] | None:
        if shard is None:
            if self._shard_of is None:
                shards = [item.name for item in self.manifest.shards]
                self._shard_of = {key: name for name in shards for key, _ in self._entries(name)}
            shard = self._shard_of.get(key)
            if shard is None:
                return None
        entry = self._entries(shard).get((key, view))
        return None if entry is None else (shard, entry)

    def _entries(self, shard: str) -> dict[tuple[str, str], StoredEntry]:
        if shard not in self._members:
            path = self.storage.path(sidecar_name(shard))
            sidecar = Sidecar.read(self.storage, shard)
            if sidecar is None:
                raise CacheError(f"{path}: there is no embedding shard '{shard}'; {self._verify_hint}")
            if sidecar.cache != self.manifest.fingerprint.digest:
                raise CacheError(f"{path}: the shard belongs to another cache; {self._verify_hint}")
            self._members[shard] = {(entry.key, entry.view): entry for entry in sidecar.members}
        return self._members[shard]
