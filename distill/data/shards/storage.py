"""Storage of shards: a directory of this machine, or one that fsspec reads by byte ranges (s3://, hf://, https://)."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec

from distill.data.shards.tar import OpenFiles
from distill.errors import DataError
from distill.files import write_whole
from distill.outside import INT64, open_regular, read_bytes

TAR_SUFFIX = ".tar"
NUM_TRIES = 3  # of a remote read: object stores sometimes drop a request
FIRST_PAUSE = 0.5  # seconds before the second try; each later pause is twice as long
LOCAL_READERS, REMOTE_READERS = 1, 16  # shards whose headers are read at a time
# Fetched around each header of a remote tar. SA-1B's members have 60 kB (JSON) to 1 MB (photo), so reading all headers
# fetches a few per cent of a tar.
HEADER_BYTES = 16 << 10
MOST_SMALL_BYTES = 1 << 30  # of files that are read at once: the sidecar of a shard of a million samples has 100 MB

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class LocalStorage:
    """A directory of this machine. Files stay open; the object may be forked or pickled."""

    num_readers = LOCAL_READERS

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files = OpenFiles()

    def path(self, name: str) -> str:
        """Return how errors name a file of this directory."""
        return str(self.directory / name)

    def tar_sizes(self) -> dict[str, int]:
        """Return the bytes of each tar, by name. Raises DataError when there is no such directory."""
        try:
            if not self.directory.is_dir():
                raise DataError(f"{self.directory}: no such directory; give one that holds image shards (tars)")
            names = sorted(name for name in os.listdir(self.directory) if name.endswith(TAR_SUFFIX))
        except (OSError, ValueError) as error:  # a name of over 255 bytes, a NUL in it, no permission
            raise DataError(
                f"{self.directory}: cannot be listed ({error}); give a directory of image shards"
            ) from error
        return {name: self._tar_size(name) for name in names}

    def names(self) -> set[str]:
        """Return the names of all files. Raises OSError."""
        return set(os.listdir(self.directory))

    def size(self, name: str) -> int:
        """Return the bytes of a file. Raises FileNotFoundError."""
        return (self.directory / name).stat().st_size

    def read_whole(self, name: str) -> bytes:
        """Return a small file. Raises FileNotFoundError when there is none, DataError when it cannot be read."""
        path = self.directory / name
        if not os.path.lexists(path):
            raise FileNotFoundError(str(path))
        return read_bytes(path, "file", "remove it, or give another directory", most=MOST_SMALL_BYTES)

    def open(self, name: str, size: int) -> BinaryIO:
        """Open a tar for reading its headers. Raises OSError."""
        return io.BufferedReader(open_regular(self.directory / name))  # type: ignore[type-var]

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return `size` bytes of a tar, or fewer if it ends before. Raises DataError when the tar cannot be read."""
        try:
            file = self._files.get(self.directory / name)
            left = os.fstat(file.fileno()).st_size - offset  # memory for all of `size` would be taken before reading
            file.seek(offset)
            return file.read(max(0, min(size, left)))
        except OSError as error:
            raise DataError(
                f"{self.path(name)}: cannot be read ({error.strerror}); restore the shard and start again"
            ) from error

    def saved(self, name: str, *, most: int) -> Iterator[bytes]:
        """Yield what was saved under a name. Yield nothing if it cannot be read, or has more than `most` bytes."""
        yield from _kept(self.directory / name, most)

    def save(self, name: str, content: bytes) -> str:
        """Write a small file and return its path. Raises DataError when the directory cannot be written."""
        write_whole(self.directory / name, content)
        return self.path(name)

    def close(self) -> None:
        """Close the files that this thread opened."""
        self._files.close()

    def _tar_size(self, name: str) -> int:
        try:
            name.encode()
            status = (self.directory / name).stat()
        except (OSError, UnicodeEncodeError) as error:
            raise DataError(f"{self.directory}: {ascii(name)} cannot be read ({error}); remove or rename it") from error
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{self.path(name)}: a shard must be a file, and this is none; remove or rename it")
        return status.st_size


class RemoteStorage:
    """A directory that fsspec reads. A file that cannot be saved there is kept in the user's cache directory.

    Raises:
        DataError: an address that fsspec does not know, or whose library is not installed.
    """

    num_readers = REMOTE_READERS

    def __init__(self, url: str) -> None:
        self.directory = url.rstrip("/")
        self._process = 0
        self._connect()

    def path(self, name: str) -> str:
        """Return the address of a file."""
        return f"{self.directory}/{name}"

    def tar_sizes(self) -> dict[str, int]:
        """Return the bytes of each tar, by name. Raises DataError when the directory cannot be listed."""
        sizes = self._listed()
        tars = sorted(name for name in sizes if name.endswith(TAR_SUFFIX))
        unknown = [name for name in tars if sizes[name] is None]  # a listing over HTTP has only names
        with self._listing():
            sizes.update(zip(unknown, self._connect().sizes([self.path(name) for name in unknown]), strict=True))
        for name in tars:
            if not isinstance(sizes[name], int) or not 0 <= sizes[name] <= INT64:
                raise DataError(f"{self.path(name)}: its server does not say its size; copy the shards to this machine")
        return {name: sizes[name] for name in tars}

    def names(self) -> set[str]:
        """Return the names of all files. Raises DataError when the directory cannot be listed."""
        return set(self._listed())

    def size(self, name: str) -> int:
        """Return the bytes of a file. Raises FileNotFoundError when there is none, DataError when a request fails."""
        path = self.path(name)
        return int(_present(lambda: self._connect().size(path), path))

    def read_whole(self, name: str) -> bytes:
        """Return a small file. Raises FileNotFoundError when there is none, DataError when it cannot be read."""
        path = self.path(name)
        data: bytes = _present(lambda: self._connect().cat_file(path, start=0, end=MOST_SMALL_BYTES), path)
        return data

    def open(self, name: str, size: int) -> BinaryIO:
        """Open a tar of `size` bytes for reading its headers. Only a few bytes around each are fetched."""
        ranges = _RangeFile(lambda offset, count: self.read(name, offset, count), size)
        return io.BufferedReader(ranges, HEADER_BYTES)

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return `size` bytes of a tar, or fewer if it ends before.

        Raises:
            DataError: the tar cannot be read after several tries, or its server sends more than was asked for.
        """
        path = self.path(name)
        data: bytes = _tried(lambda: self._connect().cat_file(path, start=offset, end=offset + size), path)
        if len(data) > size:
            raise DataError(f"{path}: its server does not answer ranges of bytes; copy the shards to this machine")
        return data

    def saved(self, name: str, *, most: int) -> Iterator[bytes]:
        """Yield what was saved under a name: first the copy on this machine, then the remote file.

        What has more than `most` bytes is left out.
        """
        yield from _kept(self._kept_path(name), most)
        with contextlib.suppress(Exception):  # stores report an absent file in many ways
            data: bytes = self._connect().cat_file(self.path(name), start=0, end=most + 1)
            if len(data) <= most:
                yield data

    def save(self, name: str, content: bytes) -> str:
        """Write a small file there, or keep it on this machine. Return its path. Raises DataError when both fail."""
        try:
            self._connect().pipe_file(self.path(name), content)
        except Exception as error:  # noqa: BLE001 - read-only stores report it in many ways
            logger.info("%s: cannot be written (%s)", self.path(name), _words(error))
            return self.keep(name, content)
        return self.path(name)

    def keep(self, name: str, content: bytes) -> str:
        """Write a small file on this machine and return its path. Raises DataError when it cannot be written."""
        path = self._kept_path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror}); set XDG_CACHE_HOME") from error
        write_whole(path, content)
        return str(path)

    def close(self) -> None:
        """Return at once, since no file stays open."""

    def _listed(self) -> dict[str, Any]:
        """Return the name of each file, and its bytes or None, as the listing says."""
        with self._listing():
            filesystem = self._connect()
            filesystem.invalidate_cache()
            rows = filesystem.ls(self.directory + "/", detail=True)
            return {row["name"].rstrip("/").rsplit("/", 1)[-1]: row["size"] for row in rows}

    @contextlib.contextmanager
    def _listing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # fsspec passes on what the library of each store raises
            raise DataError(
                f"{self.directory}: cannot be listed ({_words(error)}); check the address, the network and your "
                "credentials"
            ) from error

    def _kept_path(self, name: str) -> Path:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return home / "distill" / hashlib.sha256(self.directory.encode()).hexdigest()[:16] / name

    def _connect(self) -> Any:
        """Return the file system of this process. It connects again after a fork, which breaks connections."""
        if self._process != os.getpid():
            try:
                self._filesystem, _ = fsspec.core.url_to_fs(self.directory)
            except (ValueError, ImportError) as error:
                raise DataError(f"{self.directory}: cannot be opened: {_words(error)}") from error
            self._process = os.getpid()
        return self._filesystem

    def __reduce__(self) -> tuple[type[RemoteStorage], tuple[str]]:
        return RemoteStorage, (self.directory,)


ShardStorage = LocalStorage | RemoteStorage


def is_remote(directory: str | Path) -> bool:
    """Return whether a directory is an address that fsspec reads."""
    return isinstance(directory, str) and "://" in directory


def open_storage(directory: str | Path | ShardStorage) -> ShardStorage:
    """Open a directory by its path, or by its address such as s3://bucket/folder. An open one is returned as it is."""
    if not isinstance(directory, str | Path):
        return directory
    return RemoteStorage(str(directory)) if is_remote(directory) else LocalStorage(Path(directory))


class _RangeFile(io.RawIOBase):
    """A file of `size` bytes that is read by ranges: `read(offset, count)`."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read = read
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._position))
        data = self._read(self._position, count) if count else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _kept(path: Path, most: int) -> Iterator[bytes]:
    """Yield the content of a file of this machine. Yield nothing if there is none that can be read."""
    if path.is_file():
        with contextlib.suppress(DataError):
            yield read_bytes(path, "file", "remove it", most=most)


def _tried(read: Callable[[], Result], path: str) -> Result:
    """Run a remote read, and try it again after a pause. Raises DataError when all tries fail, or there is no file."""
    for number in range(NUM_TRIES):
        try:
            return read()
        except Exception as error:  # fsspec passes on what the library of each store raises
            if number == NUM_TRIES - 1 or isinstance(error, FileNotFoundError | PermissionError):
                raise DataError(
                    f"{path}: cannot be read ({_words(error)}); check that it is there, and the network, and start "
                    "again"
                ) from error
            logger.info("%s: tried again (%s)", path, _words(error))
            time.sleep(FIRST_PAUSE * 2**number)
    raise AssertionError("not reached")


def _present(read: Callable[[], Result], path: str) -> Result:
    """Run a remote read as `_tried` does, but raise FileNotFoundError when there is no file."""
    try:
        return _tried(read, path)
    except DataError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise error.__cause__ from None
        raise


def _words(error: Exception) -> str:
    """Return an error of a library as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
