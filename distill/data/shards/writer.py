"""The writer of image shards in SA-1B's layout, with their index."""

from __future__ import annotations

import contextlib
import json
import tarfile
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from distill.data.shards.columns import check_key
from distill.data.shards.defaults import SAMPLES_PER_SHARD
from distill.data.shards.index import ShardIndex
from distill.data.shards.tar import append_member
from distill.errors import DataError
from distill.files import commit_file, temporary_path, write_errors
from distill.lock import contents


class ShardWriter:
    """A writer of `sa_000000.tar`, `sa_000001.tar`, ... and at last `index.json`, used as a context manager.

    The same samples in the same order give the same bytes. A shard is written under a temporary name, flushed to
    the disk and renamed when it is complete. On an error the writer removes everything that it wrote.

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
        self._temporary = temporary_path(self._shard_path)
        with write_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            if contents(self.directory):
                raise DataError(f"{self.directory}: not empty; empty it, or give another directory for the shards")

    def add(self, key: str, image: bytes, annotation: dict[str, Any] | None, *, suffix: str = "jpg") -> None:
        """Append one sample.

        Args:
            key: without dots and slashes, since tar readers end a key at its first dot.
            image: the encoded photo, stored unchanged as KEY.`suffix`.
            annotation: SA-1B's layout, stored as KEY.json. None stores only the photo.

        Raises:
            DataError: the key is empty, too long, has a forbidden character or occurs twice, or the disk cannot be
                written.
        """
        if not key or any(character in key for character in "./\n\0"):
            raise DataError(f"key {key!r}: a key is not empty and has no dot, slash or line break; rename the photo")
        check_key(f"{key}.{suffix}", str(self.directory), "rename the photo")
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
        """Finish the last shard and write the index. Raises DataError when there was no sample."""
        if not self._keys:
            raise DataError(f"{self.directory}: there was no sample to write; give at least one photo")
        if self._tar is not None:
            with write_errors(self._shard_path):
                self._commit_shard()
        ShardIndex.build(self.directory).save()

    def abort(self) -> None:
        """Remove everything that was written, including the unfinished shard."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # closing tries again to write what a full disk refused
                self._file.close()
        self._tar = self._file = None
        for path in (self._temporary, *self._written):
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

    def _open_shard(self) -> tarfile.TarFile:
        self._temporary = temporary_path(self._shard_path)
        self._file = self._temporary.open("xb")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.GNU_FORMAT)  # noqa: SIM115 - open until the shard is complete
        return self._tar

    def _commit_shard(self) -> None:
        assert self._tar is not None and self._file is not None
        self._tar.close()
        commit_file(self._file, self._temporary, self._shard_path)
        self._written.append(self._shard_path)
        self._tar = self._file = None
