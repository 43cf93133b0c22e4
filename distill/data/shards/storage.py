"""Where shards lie: a directory of this machine, or one that fsspec reads by byte ranges (s3://, hf://, https://)."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec

from distill.data.shards.tar import OpenFiles
from distill.errors import DataError
from distill.files import write_whole

TAR_SUFFIX = ".tar"
NUM_TRIES = 3  # of a remote read: object stores drop a request now and then
FIRST_PAUSE = 0.5  # seconds before the second try; doubled before each other
LOCAL_READERS, REMOTE_READERS = 1, 16  # shards whose headers are read at a time
# Fetched around each header of a remote tar. SA-1B's members have 60 kB (JSON) to 1 MB (photo), so that reading the
# headers takes a few per cent of a tar.
HEADER_BYTES = 16 << 10

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class LocalPlace:
    """A directory of this machine. Files stay open; the place may be forked or pickled."""

    num_readers = LOCAL_READERS

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files = OpenFiles()

    def path(self, name: str) -> str:
        """How errors name a file of this place."""
        return str(self.directory / name)

    def tar_sizes(self) -> dict[str, int]:
        """Bytes of each tar, by name. Raises DataError when there is no such directory."""
        if not self.directory.is_dir():
            raise DataError(f"{self.directory}: no such directory; give one that holds image shards (tars)")
        return {path.name: path.stat().st_size for path in sorted(self.directory.glob(f"*{TAR_SUFFIX}"))}

    def names(self) -> set[str]:
        """All that is there. Raises OSError."""
        return set(os.listdir(self.directory))

    def size(self, name: str) -> int:
        """Bytes of a file. Raises FileNotFoundError."""
        return (self.directory / name).stat().st_size

    def read_whole(self, name: str) -> bytes:
        """A small file. Raises FileNotFoundError when it is not there, DataError when it cannot be read."""
        try:
            return (self.directory / name).read_bytes()
        except NotADirectoryError as error:
            raise FileNotFoundError(self.path(name)) from error

    def open(self, name: str, size: int) -> BinaryIO:
        """A tar, for reading its headers. Raises OSError."""
        return (self.directory / name).open("rb")

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of a tar; fewer when it ends before. Raises DataError when it is gone."""
        try:
            file = self._files.get(self.directory / name)
            file.seek(offset)
            return file.read(size)
        except OSError as error:
            raise DataError(
                f"{self.path(name)}: cannot be read ({error.strerror}); restore the shard and start again"
            ) from error

    def saved(self, name: str) -> Iterator[bytes]:
        """What was saved under a name; nothing when it cannot be read."""
        with contextlib.suppress(OSError):
            yield (self.directory / name).read_bytes()

    def save(self, name: str, content: bytes) -> str:
        """Write a small file; gives its path. Raises DataError when the directory cannot be written."""
        write_whole(self.directory / name, content)
        return self.path(name)

    def close(self) -> None:
        """Close the files that this thread opened."""
        self._files.close()


class RemotePlace:
    """A directory that fsspec reads. What is saved and cannot be written there is kept in the user's cache directory.

    Raises:
        DataError: an address that fsspec does not know, or whose library is not installed.
    """

    num_readers = REMOTE_READERS

    def __init__(self, url: str) -> None:
        self.directory = url.rstrip("/")
        self._process = 0
        self._connect()

    def path(self, name: str) -> str:
        return f"{self.directory}/{name}"

    def tar_sizes(self) -> dict[str, int]:
        """Bytes of each tar, by name. Raises DataError when the directory cannot be listed."""
        sizes = self._listed()
        tars = sorted(name for name in sizes if name.endswith(TAR_SUFFIX))
        unknown = [name for name in tars if sizes[name] is None]  # a listing over HTTP has names alone
        with self._listing():
            sizes.update(zip(unknown, self._connect().sizes([self.path(name) for name in unknown]), strict=True))
        return {name: int(sizes[name]) for name in tars}

    def names(self) -> set[str]:
        """All that is there. Raises DataError when it cannot be listed."""
        return set(self._listed())

    def size(self, name: str) -> int:
        """Bytes of a file. Raises FileNotFoundError when it is not there, DataError when it cannot be asked for."""
        path = self.path(name)
        return int(_present(lambda: self._connect().size(path), path))

    def read_whole(self, name: str) -> bytes:
        """A small file. Raises FileNotFoundError when it is not there, DataError when it cannot be read."""
        path = self.path(name)
        data: bytes = _present(lambda: self._connect().cat_file(path), path)
        return data

    def open(self, name: str, size: int) -> BinaryIO:
        """A tar of `size` bytes, for reading its headers: little is fetched around each."""
        ranges = _RangeFile(lambda offset, count: self.read(name, offset, count), size)
        return io.BufferedReader(ranges, HEADER_BYTES)

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of a tar; fewer when it ends before. Raises DataError when it cannot be read, after some tries."""
        path = self.path(name)
        data: bytes = _tried(lambda: self._connect().cat_file(path, start=offset, end=offset + size), path)
        if len(data) > size:
            raise DataError(f"{path}: its server does not answer ranges of bytes; copy the shards to this machine")
        return data

    def saved(self, name: str) -> Iterator[bytes]:
        """What was saved under a name: here first, since that is at hand, then there."""
        with contextlib.suppress(OSError):
            yield self._kept_path(name).read_bytes()
        with contextlib.suppress(Exception):  # absent, or whatever a store says to that
            yield self._connect().cat_file(self.path(name))

    def save(self, name: str, content: bytes) -> str:
        """Write a small file there, or keep it here; gives its path. Raises DataError when neither can be."""
        try:
            self._connect().pipe_file(self.path(name), content)
        except Exception as error:  # noqa: BLE001 - read-only stores say so in many ways
            logger.info("%s: cannot be written (%s)", self.path(name), _words(error))
            return self.keep(name, content)
        return self.path(name)

    def keep(self, name: str, content: bytes) -> str:
        """Keep a small file here; gives its path. Raises DataError when it cannot be written."""
        path = self._kept_path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror}); set XDG_CACHE_HOME") from error
        write_whole(path, content)
        return str(path)

    def close(self) -> None:
        """Nothing stays open here."""

    def _listed(self) -> dict[str, Any]:
        """Names, and bytes where the listing tells them."""
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
        """The file system of this process: connections do not outlive a fork."""
        if self._process != os.getpid():
            try:
                self._filesystem, _ = fsspec.core.url_to_fs(self.directory)
            except (ValueError, ImportError) as error:
                raise DataError(f"{self.directory}: cannot be opened: {_words(error)}") from error
            self._process = os.getpid()
        return self._filesystem

    def __reduce__(self) -> tuple[type[RemotePlace], tuple[str]]:
        return RemotePlace, (self.directory,)


Place = LocalPlace | RemotePlace


def is_remote(directory: str | Path) -> bool:
    """Whether a directory is an address that fsspec reads."""
    return isinstance(directory, str) and "://" in directory


def place_of(directory: str | Path) -> Place:
    """The place of a directory: a path, or an address such as s3://bucket/folder."""
    return RemotePlace(str(directory)) if is_remote(directory) else LocalPlace(Path(directory))


class _RangeFile(io.RawIOBase):
    """A file of `size` bytes that is read by ranges: `read(offset, count)`."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read = read
        self._size = size
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._place))
        data = self._read(self._place, count) if count else b""
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


def _tried(read: Callable[[], Result], path: str) -> Result:
    """A remote read, tried again after a pause. Raises DataError when all tries fail, or a file is not there."""
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
    """As `_tried`, but a file that is not there raises FileNotFoundError."""
    try:
        return _tried(read, path)
    except DataError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise error.__cause__ from None
        raise


def _words(error: Exception) -> str:
    """An error of a library in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
