"""The files beside the shards of a cache: what it holds (manifest.json), and what each shard holds (NAME.json).

manifest.json   fingerprint, measured fidelity, the image shards that the cache follows, totals
sa_000000.tar   KEY.safetensors (distill.data.cache.codecs), same keys and order as the image shard of that name;
                after each, KEY.VIEW.safetensors of its other views
sa_000000.json  the sidecar, written last: a shard counts only once its sidecar is there

The same job writes the same bytes, however many processes it has and however often it is stopped. This holds on
machines of one type, with the same libraries and the same number of threads. It does not hold for the fidelity in
manifest.json, which is measured, and for the checksum of that file, which covers the fidelity. On another processor the
last bits of an embedding differ, and its bytes with them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from distill.config.names import IDENTITY, view_mistakes
from distill.config.schema import CacheConfig, TrainCacheConfig
from distill.data.cache.checksummed_json import MEND, DamagedFileError, parse_checksummed, write_checksummed
from distill.data.shards.index import ShardIndex
from distill.data.shards.storage import ShardStorage, open_storage
from distill.data.shards.tar import TAR_BLOCK
from distill.errors import CacheError, DataError
from distill.models.teacher import Teacher
from distill.outside import Bytes, Count, Line, Share, convert
from distill.secret import recorded

T = TypeVar("T")
FORMAT_VERSION = 2
MANIFEST = "manifest.json"
ENTRY_SUFFIX = ".safetensors"
PREPROCESSING = "sam-letterbox-1"  # distill.geometry.letterbox; raise the number with any change of its pixels

CRC32 = (1 << 32) - 1
MOST_SIDE = 1 << 16  # of an image or a grid: far more than any teacher's
MOST_CHANNELS = 1 << 16
MOST_ENTRY_BYTES = 1 << 30  # SAM's embeddings have 2 MiB in fp16
RelativeError = Annotated[float, Meta(ge=0.0, le=1e6)]  # 1 is as bad as a block of zeros
ByteMean = Annotated[float, Meta(ge=0.0, le=1e15)]  # of a photo's entries
Side = Annotated[int, Meta(ge=1, le=MOST_SIDE)]
# A tar and its sidecar lie in the directory of the cache, so a name has no folder, and no sidecar is the manifest
SHARD_NAME = r"(?#a name like NAME.tar, other than manifest.tar)\A(?!manifest\.tar\Z)[^/\\\x00-\x1f\x7f-\x9f]+\.tar\Z"
ShardName = Annotated[str, Meta(max_length=255, pattern=SHARD_NAME)]

# Which option of a recipe decides a field of the fingerprint.
FIELD_OPTIONS = {
    "teacher": "teacher.name",
    "weights_sha256": "teacher.checkpoint",
    "codec": "cache.codec",
    "precision": "cache.precision",
    "views": "cache.views",
    "images": "data.images",
}


@dataclass(frozen=True)
class Fingerprint:
    """All that decides the bytes of a cache, apart from the machine."""

    teacher: Line
    weights_sha256: Line
    image_size: Side  # S of the teacher
    embedding_dim: Annotated[int, Meta(ge=1, le=MOST_CHANNELS)]  # C
    embedding_size: Side  # E
    preprocessing: Line
    precision: Literal["fp32", "bf16", "fp16"]
    codec: Literal["fp16", "bf16", "int8"]
    views: tuple[Line, ...]
    images: Line  # hash of the image index: shard names and keys

    @property
    def digest(self) -> str:
        """One hash of all fields except the teacher's name, which ties a shard to its cache."""
        content = {**asdict(self), "teacher": None}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def differences(self, other: Fingerprint) -> list[str]:
        """Return the names of the fields that differ.

        The teacher's name counts only if its weights differ too: the same weights under another path are the same
        teacher.
        """
        names = [item.name for item in fields(self) if getattr(self, item.name) != getattr(other, item.name)]
        return names if "weights_sha256" in names else [name for name in names if name != "teacher"]


def fingerprint_of(teacher: Teacher, index: ShardIndex, config: CacheConfig) -> Fingerprint:
    """Return the fingerprint of the cache that a recipe asks for."""
    return Fingerprint(
        teacher=recorded(teacher.name),
        weights_sha256=teacher.weights_sha256,
        image_size=teacher.image_size,
        embedding_dim=teacher.embedding_dim,
        embedding_size=teacher.embedding_size,
        preprocessing=PREPROCESSING,
        precision=config.precision,
        codec=config.codec,
        views=tuple(config.views),
        images=index.fingerprint,
    )


def settle(config: TrainCacheConfig, held: Fingerprint) -> CacheConfig:
    """Return the options of the cache that a training asks for. What they leave open is as the cache has it."""
    stored = {"codec": config.codec or held.codec, "precision": config.precision or held.precision}
    return CacheConfig(**{item.name: getattr(config, item.name) for item in fields(config)} | stored)


@dataclass(frozen=True)
class Fidelity:
    """The error and the bytes of a codec, measured on a few photos of the job before it starts.

    Attributes:
        num_images: photos that were measured.
        num_prompts: prompts on all of them.
        prompts: the kind of prompts, "box", "point" or both.
        relative_l2: |decoded - float32| / |float32| over the stored block, mean over photos.
        cosine: cosine similarity over the stored block, mean over positions and photos.
        mask_iou: IoU of the masks from the stored embedding with those from the teacher's own, mean over prompts.
        mask_iou_float32: the same with an exact block, so that only the padding is approximate.
        bytes_per_image: bytes of the tar, with its headers and all views.
    """

    num_images: Count
    num_prompts: Count
    prompts: Line
    relative_l2: RelativeError
    cosine: Annotated[float, Meta(ge=-1.001, le=1.001)]  # a mean of rounded values
    mask_iou: Share
    mask_iou_float32: Share
    bytes_per_image: ByteMean


@dataclass(frozen=True)
class ImageShard:
    """An image shard as the manifest describes it, which is enough to tell whether an embedding shard follows it."""

    name: ShardName
    num_samples: Count
    keys_hash: Line


def image_shards(index: ShardIndex) -> tuple[ImageShard, ...]:
    """Describe image shards. Raises CacheError when an embedding shard cannot have the name of one of them."""
    for shard in index.shards:
        convert(shard.name, ShardName, f"{index.directory}: {shard.name!r}", "rename the tar", raises=CacheError)
    return tuple(ImageShard(shard.name, shard.num_samples, shard.keys_hash) for shard in index.shards)


@dataclass(frozen=True)
class Totals:
    """Sums over all shards, written when the last shard is finished."""

    samples: Count
    bad: Count
    bytes: Bytes


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json. `totals` is None until every shard is finished."""

    fingerprint: Fingerprint
    fidelity: Fidelity
    shards: tuple[ImageShard, ...]
    totals: Totals | None = None

    def write(self, directory: Path) -> None:
        """Write manifest.json, or leave what was there. Raises CacheError on a full or read-only disk."""
        write_checksummed(directory / MANIFEST, {"format": FORMAT_VERSION, **asdict(self)})

    @classmethod
    def read(cls, directory: Path | str | ShardStorage) -> Manifest:
        """Read manifest.json.

        Args:
            directory: the path of the cache, its address, or its open storage.

        Raises:
            CacheError: there is no manifest, or it is damaged or of another format.
        """
        storage = open_storage(directory)
        manifest = _read_checksummed(storage, MANIFEST, cls)
        if manifest is None:
            mend = f"'distill cache build RECIPE cache.dir={storage.directory}' makes it"
            raise CacheError(f"{storage.directory}: no embedding cache there; {mend}")
        mistakes = list(view_mistakes(manifest.fingerprint.views))
        names = [shard.name for shard in manifest.shards]
        if len(set(names)) < len(names):
            mistakes.append("two of its shards have one name")
        if mistakes:
            raise DamagedFileError(f"{storage.path(MANIFEST)}: cannot be true: {mistakes[0]}; {MEND}")
        return manifest

    def check(self, expected: Fingerprint, directory: Path | str) -> None:
        """Raise CacheError, with each field that differs, unless the cache is the one that a recipe asks for."""
        names = self.fingerprint.differences(expected)
        if not names:
            return
        lines = []
        for name in names:
            option = f" ({FIELD_OPTIONS[name]})" if name in FIELD_OPTIONS else ""
            held, asked = getattr(self.fingerprint, name), getattr(expected, name)
            lines.append(f"  {name}{option}: {held} in the cache, {asked} in the recipe")
        raise CacheError(
            f"{directory}: this cache is not the one that the recipe asks for\n"
            + "\n".join(lines)
            + "\n  Give another cache.dir, or make the recipe match the cache"
        )


class StoredEntry(NamedTuple):
    """The byte range of an entry in its tar, and the CRC-32 of those bytes. An entry holds one view of a sample."""

    key: Line
    view: Line
    offset: Bytes
    size: Annotated[int, Meta(ge=1, le=MOST_ENTRY_BYTES)]
    crc32: Annotated[int, Meta(ge=0, le=CRC32)]


@dataclass(frozen=True)
class Sidecar:
    """The content of NAME.json, which is written last and makes a shard count.

    `bad` holds the keys of photos that could not be decoded.
    """

    cache: Line  # Fingerprint.digest
    keys_hash: Line  # of the image shard
    samples: Count
    bytes: Bytes
    sha256: Line
    bad: tuple[Line, ...]
    members: tuple[StoredEntry, ...]

    @classmethod
    def read(cls, directory: Path | str | ShardStorage, shard: str) -> Sidecar | None:
        """Read the sidecar of a shard. Return None if there is none.

        Args:
            directory: the path of the cache, its address, or its open storage.
            shard: the name of the tar.

        Raises:
            CacheError: the sidecar is damaged or of another format.
        """
        storage = open_storage(directory)
        sidecar = _read_checksummed(storage, sidecar_name(shard), cls)
        mistake = None if sidecar is None else sidecar._mistake()
        if mistake is not None:
            raise DamagedFileError(f"{storage.path(sidecar_name(shard))}: cannot be true: {mistake}; {MEND}")
        return sidecar

    def write(self, path: Path) -> None:
        """Write NAME.json, or leave what was there. Raises CacheError on a full or read-only disk."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        write_checksummed(path, {"format": FORMAT_VERSION, **content})

    def _mistake(self) -> str | None:
        """Return why this cannot be the sidecar of any shard. Return None if it can."""
        for key, view, offset, size, _ in self.members:
            if offset < TAR_BLOCK or offset > self.bytes - size:
                return f"the embedding of {key!r} ({view}) does not lie in the tar"
        if len({entry[:2] for entry in self.members}) < len(self.members):
            return "it lists an embedding twice"
        num_samples = len({entry.key for entry in self.members})
        return None if num_samples == self.samples else f"it lists {num_samples} samples, and says {self.samples}"


def sidecar_name(shard: str) -> str:
    """Return NAME.json for NAME.tar."""
    return f"{shard.removesuffix('.tar')}.json"


def sidecar_path(directory: Path, shard: str) -> Path:
    """Return the path of NAME.json beside NAME.tar."""
    return directory / sidecar_name(shard)


def finished_sidecar(directory: Path | str | ShardStorage, shard: ImageShard, cache: str) -> Sidecar | None:
    """Return the sidecar of an embedding shard if the shard is finished. Return None if it is not.

    A shard is finished if its sidecar belongs to this cache and image shard, and the tar has the size that was written.

    Args:
        directory: the path of the cache, its address, or its open storage.
        cache: the digest of the cache's fingerprint.
    """
    storage = open_storage(directory)
    try:
        sidecar = Sidecar.read(storage, shard.name)
        size = storage.size(shard.name)
    except (FileNotFoundError, CacheError):
        return None
    if sidecar is None or (sidecar.cache, sidecar.keys_hash, sidecar.bytes) != (cache, shard.keys_hash, size):
        return None
    return sidecar


def entry_name(key: str, view: str) -> str:
    """Return the name of an entry in its tar. Keys have no dots."""
    return f"{key}{'' if view == IDENTITY else f'.{view}'}{ENTRY_SUFFIX}"


class _Format(msgspec.Struct):
    format: int


def _read_checksummed(storage: ShardStorage, name: str, form: type[T]) -> T | None:
    """Return the content of a checksummed file of this format. Return None if there is no such file."""
    path = storage.path(name)
    try:
        data = storage.read_whole(name)
    except FileNotFoundError:
        return None
    except DataError as error:
        raise CacheError(str(error)) from error
    written = parse_checksummed(data, _Format, path).format
    if written != FORMAT_VERSION:
        older = written < FORMAT_VERSION
        mend = "an older distill wrote it: build the cache again, in another cache.dir" if older else "update distill"
        raise CacheError(f"{path}: format {written}, and this distill reads format {FORMAT_VERSION}: {mend}")
    return parse_checksummed(data, form, path)
