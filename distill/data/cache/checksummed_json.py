"""JSON files that hold their own checksum, and the disk errors of a cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from distill.errors import CacheError
from distill.files import write_errors, write_whole

CHECKSUM_KEY = "seal"  # the last key of the JSON; its value is the SHA-256 of all that comes before it


class DamagedFileError(CacheError):
    """The error of a checksummed file that differs from what was written."""


def disk_errors(path: Path) -> contextlib.AbstractContextManager[None]:
    """Turn an OSError while writing `path` of a cache into a CacheError that says what to do."""
    return write_errors(path, CacheError, elsewhere="another cache.dir", note="finished shards are kept")


def checksummed_bytes(content: dict[str, Any]) -> bytes:
    """Return `content` as JSON with its SHA-256 as the last key. The same content always gives the same bytes."""
    body = json.dumps(content, indent=1)
    return json.dumps({**content, CHECKSUM_KEY: hashlib.sha256(body.encode()).hexdigest()}, indent=1).encode() + b"\n"


def write_checksummed(path: Path, content: dict[str, Any]) -> None:
    """Write `content` with its checksum, or leave what was there. Raises CacheError on a full or read-only disk."""
    write_whole(
        path,
        checksummed_bytes(content),
        raises=CacheError,
        elsewhere="another cache.dir",
        note="finished shards are kept",
    )


def parse_checksummed(data: bytes, origin: str) -> dict[str, Any]:
    """Return the content of a checksummed JSON, without the checksum.

    Args:
        origin: names the file in errors.

    Raises:
        DamagedFileError: the bytes differ from what was written, in one bit or more.
    """
    try:
        content = json.loads(data)
        del content[CHECKSUM_KEY]
        damaged = checksummed_bytes(content) != data
    except (ValueError, KeyError, TypeError):
        damaged = True
    if damaged:
        raise DamagedFileError(
            f"{origin}: damaged, it is not as it was written; delete it and run the same 'distill cache build' again: "
            "shards that are complete are kept"
        )
    assert isinstance(content, dict)
    return content
