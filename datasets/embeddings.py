"""Teacher-embedding shards: the writer of one, and the cache that training reads."""

from __future__ import annotations

import hashlib
import os
import tarfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from torch import Tensor

from distill.datasets.cachefiles import Fingerprint, ImageShard, Manifest, Sidecar, StoredEntry, sidecar_path
from distill.datasets.cachefiles import fingerprint_of as fingerprint_of
from distill.datasets.codecs import decode_embedding, read_entry_header
from distill.datasets.codecs import encode_embedding as encode_embedding
from distill.datasets.sealed import TEMPORARY_SUFFIX, disk_errors, temporary_path
from distill.datasets.tars import TAR_BLOCK, commit_file
from distill.errors import CacheError

ENTRY_SUFFIX = ".safetensors"


class EmbeddingShardWriter:
    """Writes one embedding shard; it appears under its name only by `commit`, its sidecar last.

    Used as a context manager; what was not committed is removed. Raises CacheError on a full or read-only disk.
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

    def add(self, key: str, blob: bytes) -> None:
        """Append an entry."""
        info = tarfile.TarInfo(key + ENTRY_SUFFIX)  # owner and mtime 0: equal work gives equal bytes
        info.size = len(blob)
        self._write(info.tobuf(tarfile.GNU_FORMAT))
        self.members.append(StoredEntry(key, self._bytes, len(blob), zlib.crc32(blob)))
        self._write(blob)
        self._write(bytes(-len(blob) % TAR_BLOCK))

    def skip(self, key: str) -> None:
        """Note a photo that could not be decoded."""
        self.bad.append(key)

    def commit(self) -> Sidecar:
        """Flush, rename, write the sidecar."""
        self._write(bytes(2 * TAR_BLOCK))
        self._write(bytes(-self._bytes % tarfile.RECORDSIZE))
        sidecar = Sidecar(
            cache=self.cache,
            keys_hash=self.shard.keys_hash,
            samples=len(self.members),
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
    """A complete cache, as training reads it. Holds no open file, so it may be forked, or pickled to a worker.

    Sidecars are read when their shard is first asked for.
    """

    directory: Path
    manifest: Manifest
    _members: dict[str, dict[str, StoredEntry]] = field(default_factory=dict, repr=False)  # shard -> key -> entry
    _shard_of: dict[str, str] | None = field(default=None, repr=False)

    @classmethod
    def open(cls, directory: str | Path, expected: Fingerprint | None = None) -> EmbeddingCache:
        """Open a cache for reading.

        Args:
            expected: what the recipe asks for (`fingerprint_of`); it holds the hash of the image index.
        Raises:
            CacheError: there is no cache, it is damaged, it is not the one expected, or shards are missing.
        """
        directory = Path(directory)
        manifest = Manifest.read(directory)
        if expected is not None:
            manifest.check(expected, directory)
        present = set(os.listdir(directory))
        missing = [
            shard.name
            for shard in manifest.shards
            if shard.name not in present or sidecar_path(directory, shard.name).name not in present
        ]
        if missing:
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise CacheError(
                f"{directory}: {len(missing)} of {len(manifest.shards)} embedding shards are missing ({shown}); run "
                f"'distill cache build RECIPE cache.dir={directory}': finished shards are kept"
            )
        return cls(directory, manifest)

    def __len__(self) -> int:
        return sum(len(self._entries(shard.name)) for shard in self.manifest.shards)

    def has(self, key: str, shard: str | None = None) -> bool:
        """Whether a sample has an embedding; a photo that could not be decoded has none."""
        return self._locate(key, shard) is not None

    def read(self, key: str, shard: str | None = None, *, fill_padding: bool = False) -> Tensor:
        """The embedding of a sample: float32 (C, E, E), zero in the padding.

        Args:
            shard: the name of its shard; without it all sidecars are read once to find the key.
            fill_padding: fill the padding with its mean vector, as is right for a mask decoder.
        Raises:
            CacheError: the sample has no embedding, or its bytes are damaged or gone.
        """
        located = self._locate(key, shard)
        if located is None:
            raise CacheError(f"{self.directory}: no embedding of sample '{key}'; its photo could not be decoded")
        path, entry = self.directory / located[0], located[1]
        try:
            with path.open("rb") as file:
                file.seek(entry.offset)
                blob = file.read(entry.size)
        except OSError as error:
            raise CacheError(f"{path}: cannot read ({error.strerror}); {self._verify_hint}") from error
        origin = f"{path}: sample '{key}'"
        if len(blob) != entry.size or zlib.crc32(blob) != entry.crc32:
            raise CacheError(f"{origin}: damaged, its bytes do not match its checksum; {self._verify_hint}")
        if read_entry_header(blob, origin=origin).key != key:
            raise CacheError(f"{origin}: the entry there is of another sample; {self._verify_hint}")
        return decode_embedding(blob, fill_padding=fill_padding, origin=origin)

    @property
    def _verify_hint(self) -> str:
        return f"'distill cache verify {self.directory}' names every damaged shard"

    def _locate(self, key: str, shard: str | None) -> tuple[str, StoredEntry] | None:
        if shard is None:
            if self._shard_of is None:
                self._shard_of = {key: item.name for item in self.manifest.shards for key in self._entries(item.name)}
            shard = self._shard_of.get(key)
            if shard is None:
                return None
        entry = self._entries(shard).get(key)
        return None if entry is None else (shard, entry)

    def _entries(self, shard: str) -> dict[str, StoredEntry]:
        if shard not in self._members:
            path = sidecar_path(self.directory, shard)
            try:
                sidecar = Sidecar.read(path)
            except FileNotFoundError as error:
                raise CacheError(f"{path}: there is no embedding shard '{shard}'; {self._verify_hint}") from error
            if sidecar.cache != self.manifest.fingerprint.digest:
                raise CacheError(f"{path}: the shard belongs to another cache; {self._verify_hint}")
            self._members[shard] = {entry.key: entry for entry in sidecar.members}
        return self._members[shard]
