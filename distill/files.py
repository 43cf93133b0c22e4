"""Files that are complete or absent, and clear errors of the disk.

Every writer of the package goes through this file. It writes under a temporary name beside the target, flushes to the
disk, and renames.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from distill.errors import DataError, DistillError

FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NOT_WRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
TEMPORARY_SUFFIX = ".tmp"
HASH_BLOCK = 1 << 20  # bytes read at a time


@contextlib.contextmanager
def write_errors(
    path: Path, raises: type[DistillError] = DataError, *, elsewhere: str = "another place", note: str = ""
) -> Iterator[None]:
    """Turn an OSError while writing `path` into one line that says what to do.

    Args:
        raises: the class of the error.
        elsewhere: what the user may choose instead, such as "another cache.dir".
        note: the end of the message about a full disk, such as "finished shards are kept".
    Raises:
        DistillError: of the class `raises`, in place of the OSError.
    """
    try:
        yield
    except OSError as error:
        tail = f": {note}" if note else ""
        if error.errno in FULL_DISK:
            mend = (
                f"the disk is full (or a quota is reached); free some space or choose {elsewhere}, "
                f"and run the command again{tail}"
            )
        elif error.errno in NOT_WRITABLE:
            mend = f"{error.strerror}: not writable; choose {elsewhere} or change its permissions"
        else:
            cause = error.strerror or error
            mend = f"{cause}; check the file system or choose {elsewhere}, and run the command again{tail}"
        raise raises(f"{path}: cannot be written: {mend}") from error


def temporary_path(path: Path) -> Path:
    """Return a name beside `path` that no other writer uses. Open it with mode "xb", and give it to `commit_file`."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}")


def commit_file(file: BinaryIO, temporary: Path, path: Path) -> None:
    """Flush a finished file to the disk, close it and give it its name."""
    file.flush()
    os.fsync(file.fileno())
    file.close()
    os.replace(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_whole(
    path: Path,
    content: bytes | memoryview,
    *,
    raises: type[DistillError] = DataError,
    elsewhere: str = "another place",
    note: str = "",
) -> None:
    """Write a complete file, or leave the old one as it was. The other arguments are those of `write_errors`."""
    temporary = temporary_path(path)
    with write_errors(path, raises, elsewhere=elsewhere, note=note):
        try:
            with temporary.open("xb") as file:
                file.write(content)
                commit_file(file, temporary, path)
        finally:
            with contextlib.suppress(OSError):  # the folder is missing; the first error says so
                temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, raises: type[DistillError] = DataError) -> None:
    """Write a text file in UTF-8, or leave the old one as it was."""
    write_whole(path, text.encode(), raises=raises)


def write_json(path: Path, content: Any, *, indent: int = 2, raises: type[DistillError] = DataError) -> None:
    """Write a JSON file that ends with a line break, or leave the old one as it was."""
    write_text(path, json.dumps(content, indent=indent) + "\n", raises=raises)


def hash_file(path: Path, algorithm: str = "sha256", *, advance: Callable[[int], None] = lambda count: None) -> str:
    """Return the hash of a file in hexadecimal. `advance` is called with the number of bytes of each block."""
    digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()
