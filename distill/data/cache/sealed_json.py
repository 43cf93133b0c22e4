"""Files that are whole or absent: atomic writes, JSON that carries its own hash, and clear disk errors."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from distill.errors import CacheError
from distill.files import write_errors, write_whole

SEAL = "seal"  # the JSON key of the hash of all that stands before it


class DamagedFileError(CacheError):
    """A sealed file that is not as it was written."""


def disk_errors(path: Path) -> contextlib.AbstractContextManager[None]:
    """Turn an OSError while writing `path` of a cache into a CacheError that says what to do."""
    return write_errors(path, CacheError, elsewhere="another cache.dir", note="finished shards are kept")


def sealed_bytes(content: dict[str, Any]) -> bytes:
    """`content` as JSON with its SHA-256 as the last key: the same content always gives the same bytes."""
    body = json.dumps(content, indent=1)
    return json.dumps({**content, SEAL: hashlib.sha256(body.encode()).hexdigest()}, indent=1).encode() + b"\n"


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write a sealed JSON atomically. Raises CacheError on a full or read-only disk."""
    write_whole(
        path, sealed_bytes(content), raises=CacheError, elsewhere="another cache.dir", note="finished shards are kept"
    )


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
