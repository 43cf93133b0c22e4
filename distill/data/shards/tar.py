"""Plain tars: where their members lie, how members are appended, and open files that may be forked."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from distill.errors import DataError

TAR_BLOCK = 512  # tar's unit: a header is one block, and two blocks of zeros end the file
NAME_FIELD = 100  # bytes of a member's name in its header
MAX_OPEN_FILES = 16  # per process and thread


class TarMember(NamedTuple):
    """A file in a tar: its name, and the byte range of its content."""

    name: str
    offset: int
    size: int


def list_members(open_tar: Callable[[], BinaryIO], origin: str) -> list[TarMember]:
    """Return the files of an uncompressed tar in their order. Only its headers are read.

    Args:
        open_tar: opens the tar for reading.
        origin: names the tar in errors.

    Raises:
        DataError: the file is no tar, or is cut off, even between two members, where tar readers see a normal end.
    """
    try:
        with open_tar() as file, tarfile.open(fileobj=file, mode="r:") as tar:
            members = [TarMember(info.name, info.offset_data, info.size) for info in tar if info.isreg()]
            file.seek(tar.offset)
            end = file.read(TAR_BLOCK)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{origin}: no tar, or a damaged one ({error}); fetch or build the shard again") from error
    if end != bytes(TAR_BLOCK):
        raise DataError(
            f"{origin}: cut off after {len(members)} members (the end mark is missing); fetch or build it again"
        )
    return members


def append_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Append a file without owner and time, so that equal content gives equal bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def header_names(header: bytes, key: str) -> bool:
    """Return whether the header block before a member's content names a file of this key.

    Names of over 100 bytes are not in the header block; for them the answer is True.
    """
    field = header[:NAME_FIELD]
    if 0 not in field:
        return True
    stem = field[: field.index(0)].rsplit(b"/", 1)[-1].split(b".", 1)[0]
    return stem in (key.encode(), key.encode("ascii", "replace"))


class OpenFiles:
    """Files that each process and thread opens when it first reads them. The last few stay open.

    The object may be forked or pickled: open files are not passed on.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def get(self, path: Path) -> BinaryIO:
        """Return the open file, at an arbitrary position. Raises OSError."""
        files = self._files()
        if path in files:
            files.move_to_end(path)
        else:
            files[path] = path.open("rb", buffering=0)
            if len(files) > MAX_OPEN_FILES:
                files.popitem(last=False)[1].close()
        return files[path]

    def close(self) -> None:
        """Close the files that this thread opened."""
        files = self._files()
        while files:
            files.popitem()[1].close()

    def _files(self) -> OrderedDict[Path, BinaryIO]:
        if getattr(self._local, "process", None) != os.getpid():
            # After a fork a child's descriptors share their position with the parent's, so they are not used
            self._local.process = os.getpid()
            self._local.files = OrderedDict()
        files: OrderedDict[Path, BinaryIO] = self._local.files
        return files

    def __reduce__(self) -> tuple[type[OpenFiles], tuple[()]]:
        return OpenFiles, ()
