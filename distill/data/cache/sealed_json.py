"""Files that are whole or absent: atomic writes, JSON that carries its own hash, and clear disk errors."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.data.shards.tar import commit_file
from distill.errors import CacheError

SEAL = "seal"  # the JSON key of the hash of all that stands before it
TEMPORARY_SUFFIX = ".tmp"
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}


class DamagedFileError(CacheError):
    """A sealed file that is not as it was written."""


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError while writing `path` into a CacheError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            mend = "the disk (or the quota) is full; free some and run the same command again: finished shards are kept"
        elif error.errno in NOT_WRITABLE:
            mend = "the directory is not writable; choose another cache.dir or change its permissions"
        else:
            mend = "check the file system and run the same command again: finished shards are kept"
        raise CacheError(f"{path}: cannot write ({error.strerror or error}): {mend}") from error


def temporary_path(path: Path) -> Path:
    """A name of its own beside `path`, to be opened with mode "xb" and given to commit_file."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}")


def sealed_bytes(content: dict[str, Any]) -> bytes:
    """`content` as JSON with its SHA-256 as the last key: the same content always gives the same bytes."""
    body = json.dumps(content, indent=1)
    return json.dumps({**content, SEAL: hashlib.sha256(body.encode()).hexdigest()}, indent=1).encode() + b"\n"


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write a sealed JSON atomically. Raises CacheError on a full or read-only disk."""
    with disk_errors(path):
        temporary = temporary_path(path)
        try:
            with temporary.open("xb") as file:
                file.write(sealed_bytes(content))
                commit_file(file, temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def unseal(data: bytes, origin: str) -> dict[str, Any]:
    """The content of a sealed JSON; one that differs from what was written in a single bit raises DamagedFileError."""
    try:
        content = json.loads(data)
        del content[SEAL]
        damaged = sealed_bytes(content) != data
    except (ValueError, KeyError, TypeError):
        damaged = True
    if damaged:
        raise DamagedFileError(
            f"{origin}: damaged, it is not as it was written; delete it and run the same 'distill cache build' again: "
            "shards that are whole are kept"
        )
    assert isinstance(content, dict)
    return content
