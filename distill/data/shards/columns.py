"""The samples of image shards as columns: from the headers of a tar, and in index.json."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import BinaryIO

import msgspec
import numpy as np

from distill.data.images import PHOTO_SUFFIXES
from distill.data.shards.tar import TAR_BLOCK, TarMember, list_members
from distill.errors import DataError
from distill.outside import Bytes, Name, parse_json

INDEX_VERSION = 1
NO_ANNOTATION = -1  # in place of an offset
ANNOTATION_SUFFIX = "json"
MOST_KEY_BYTES = 1024  # four times what file systems allow a name: keys are paths joined by underscores
MOST_MEMBER_BYTES = 1 << 30  # of a photo or its annotations, which are read at once; SA-1B's photos have 1 MB
# Of ASCII and of ISO 6429: they end lines, and terminals obey them
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
NOT_IN_KEYS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f./]")  # of index.json, where a line break ends a key
KEY_MEND = "rename it and pack the shard again"


@dataclass(frozen=True)
class ShardEntry:
    """One tar: its name, its numbers of samples and bytes, and the sha256 of its keys in their order."""

    name: str
    num_samples: int
    num_bytes: int
    keys_hash: str


@dataclass(frozen=True)
class Columns:
    """The members of one shard, in the order of their photos: keys bytes (n,), ranges int64 (n, 4).

    A row of `ranges` holds image offset, image size, annotation offset and annotation size.
    """

    keys: np.ndarray
    ranges: np.ndarray


class _ShardRow(msgspec.Struct):
    """A shard in index.json: a ShardEntry, its keys in lines, and its ranges as little-endian int64 in base 64."""

    name: Name
    num_samples: int
    num_bytes: Bytes
    keys_hash: str
    keys: str
    ranges: bytes


class _IndexFile(msgspec.Struct):
    version: int
    shards: list[_ShardRow]


def read_columns(open_tar: Callable[[], BinaryIO], origin: str) -> Columns:
    """Return the samples of a tar from its headers. The order of its members does not matter, nor do their folders.

    Members that are no photos and no annotations are skipped.

    Args:
        open_tar: opens the tar for reading.
        origin: names the tar in errors.

    Raises:
        DataError: the tar is damaged, holds no photo, or one of its photos or annotations cannot be used.
    """
    photos: dict[str, tuple[int, int]] = {}
    annotations: dict[str, tuple[int, int]] = {}
    for member in list_members(open_tar, origin):
        name = member.name.rpartition("/")[2]
        key, _, suffix = name.partition(".")
        is_photo = f".{suffix.lower()}" in PHOTO_SUFFIXES
        if not key or not (is_photo or suffix == ANNOTATION_SUFFIX):
            continue
        _check_member(member, name, origin)
        of_kind = photos if is_photo else annotations
        if key in of_kind:
            raise DataError(f"{origin}: '{name}' occurs twice; fetch or build the shard again")
        of_kind[key] = (member.offset, member.size)
    alone = annotations.keys() - photos.keys()
    if alone:
        raise DataError(f"{origin}: sample '{min(alone)}' has annotations but no photo; fetch or build the shard again")
    if not photos:
        raise DataError(f"{origin}: no photo in it; remove it, or give the directory of the image shards")
    keys = sorted(photos, key=lambda key: photos[key][0])
    ranges = [(*photos[key], *annotations.get(key, (NO_ANNOTATION, 0))) for key in keys]
    return Columns(np.array([key.encode() for key in keys]), np.array(ranges, np.int64).reshape(-1, 4))


def check_key(key: str, origin: str, mend: str) -> None:
    """Raise DataError unless a key is UTF-8 without control characters, and of at most MOST_KEY_BYTES bytes."""
    try:
        num_bytes = len(key.encode())
    except UnicodeEncodeError as error:
        raise DataError(f"{origin}: the name {ascii(key)} is no UTF-8; {mend}") from error
    if CONTROL_CHARACTERS.search(key):
        raise DataError(f"{origin}: the name {ascii(key)} has control characters; {mend}")
    if num_bytes > MOST_KEY_BYTES:
        raise DataError(f"{origin}: a name of {num_bytes:,} bytes is too long (at most {MOST_KEY_BYTES:,}); {mend}")


def hash_keys(keys: np.ndarray) -> str:
    """Return the sha256 of keys, bytes (n,), in their order."""
    return hashlib.sha256(b"\n".join(keys.tolist())).hexdigest()


def index_bytes(shards: list[ShardEntry], columns: Mapping[str, Columns]) -> bytes:
    """Return the content of index.json."""
    rows = [
        {
            **asdict(shard),
            "keys": "\n".join(key.decode() for key in columns[shard.name].keys),
            "ranges": base64.b64encode(columns[shard.name].ranges.astype("<i8").tobytes()).decode(),
        }
        for shard in shards
    ]
    return (json.dumps({"version": INDEX_VERSION, "shards": rows}, indent=1) + "\n").encode()


def parse_index(
    content: bytes, sizes: Mapping[str, int], origin: str
) -> tuple[list[ShardEntry], dict[str, Columns]] | None:
    """Read index.json. Return None if it is of another version, or of other tars than are there.

    Args:
        sizes: the bytes of each tar in the directory, by name, in the order of the names.
        origin: names the file in errors.

    Raises:
        DataError: the file is not in its form, or its ranges do not lie in the tars.
    """
    mend = "it is not used; 'distill shards index' writes it again"
    found = parse_json(content, _IndexFile, origin, mend)
    rows = found.shards
    if found.version != INDEX_VERSION or [(row.name, row.num_bytes) for row in rows] != list(sizes.items()):
        return None
    columns = {}
    for row in rows:
        unpacked = _unpack(row)
        if unpacked is None:
            raise DataError(f"{origin}: what it says of '{row.name}' cannot be true; {mend}")
        columns[row.name] = unpacked
    return [ShardEntry(row.name, row.num_samples, row.num_bytes, row.keys_hash) for row in rows], columns


def _check_member(member: TarMember, name: str, origin: str) -> None:
    """Raise DataError unless a photo or its annotations can be used."""
    check_key(name, origin, KEY_MEND)
    if member.is_link:
        raise DataError(
            f"{origin}: '{name}' is a link, whose content is elsewhere; pack the shard again by "
            "'tar --dereference --hard-dereference'"
        )
    if member.size > MOST_MEMBER_BYTES:
        raise DataError(f"{origin}: '{name}' has {member.size:,} bytes (at most {MOST_MEMBER_BYTES:,}); remove it")


def _unpack(row: _ShardRow) -> Columns | None:
    """Return the samples of a shard. Return None if they do not fit the shard."""
    keys = row.keys.encode().split(b"\n")
    num_bytes = np.dtype(np.int64).itemsize * 4 * len(keys)
    if not len(keys) == len(set(keys)) == row.num_samples or len(row.ranges) != num_bytes:
        return None
    if NOT_IN_KEYS.search(row.keys) or b"" in keys or max(map(len, keys)) > MOST_KEY_BYTES:
        return None
    packed = np.array(keys)
    ranges = np.frombuffer(row.ranges, "<i8").astype(np.int64).reshape(-1, 4)
    offsets, sizes = ranges[:, 0::2], ranges[:, 1::2]  # (n, 2) each: of the photos, and of their annotations
    lies_inside = (offsets >= TAR_BLOCK) & (sizes >= 0) & (sizes <= MOST_MEMBER_BYTES)
    lies_inside &= offsets <= row.num_bytes - sizes
    lies_inside[:, 1] |= offsets[:, 1] == NO_ANNOTATION
    return Columns(packed, ranges) if lies_inside.all() and hash_keys(packed) == row.keys_hash else None
