"""JSON files that hold their own checksum, and the disk errors of a cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from pathlib import Path
from typing import Any, TypeVar

from distill.errors import CacheError
from distill.files import write_errors, write_whole
from distill.outside import parse_json

T = TypeVar("T")

CHECKSUM_KEY = "seal"  # the last key of the JSON; its value is the SHA-256 of all that comes before it
CHECKSUM_LINES = re.compile(rb',\n "%s": "([0-9a-f]{64})"\n}\n' % CHECKSUM_KEY.encode())
CHECKSUM_BYTES = len(f',\n "{CHECKSUM_KEY}": ""\n}}\n') + 64  # of those lines
END = b"\n}"  # of the JSON without its checksum
MEND = "delete it and run the same 'distill cache build' again: shards that are complete are kept"


class DamagedFileError(CacheError):
    """The error of a checksummed file that differs from what was written, or that says what cannot be."""


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


def parse_checksummed(data: bytes, form: type[T], origin: str) -> T:
    """Return the content of a checksummed JSON as `form`, without the checksum.

    Args:
        form: a type that msgspec decodes. A checksum says that nobody changed the file, not who wrote it.
        origin: names the file in errors.

    Raises:
        DamagedFileError: the bytes differ from what was written, in one bit or more, or are not of this form.
    """
    body, lines = data[:-CHECKSUM_BYTES], CHECKSUM_LINES.fullmatch(data[-CHECKSUM_BYTES:])
    if lines is None or hashlib.sha256(body + END).hexdigest() != lines[1].decode():
        raise DamagedFileError(f"{origin}: damaged, it is not as it was written; {MEND}")
    return parse_json(body + END, form, origin, MEND, raises=DamagedFileError)
