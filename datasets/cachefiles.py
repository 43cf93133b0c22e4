"""The files beside the shards of a cache: what it holds (manifest.json), and what each shard holds (NAME.json).

manifest.json   fingerprint, measured fidelity, the image shards that the cache follows, totals
sa_000000.tar   KEY.safetensors (distill.datasets.codecs), same keys and order as the image shard of that name
sa_000000.json  the sidecar, written last: a shard without it does not exist
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from distill.config import CacheConfig
from distill.datasets.sealed import read_sealed, write_sealed
from distill.datasets.shards import ShardIndex
from distill.errors import CacheError
from distill.teacher import Teacher

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PREPROCESSING = "sam-letterbox-1"  # distill.geometry.letterbox; to be raised with any change of its pixels
VIEWS = ("identity",)

# Which option of a recipe decides a field of the fingerprint.
FIELD_OPTIONS = {
    "teacher": "teacher.name",
    "weights_sha256": "teacher.checkpoint",
    "codec": "cache.codec",
    "precision": "cache.precision",
    "images": "data.images",
}


@dataclass(frozen=True)
class Fingerprint:
    """All that decides the bytes of a cache, but for the machine."""

    teacher: str
    weights_sha256: str
    image_size: int  # S of the teacher
    embedding_dim: int  # C
    embedding_size: int  # E
    preprocessing: str
    precision: str
    codec: str
    views: tuple[str, ...]
    images: str  # hash of the image index: shard names and keys

    @property
    def digest(self) -> str:
        """One hash of all fields but the teacher's name: it ties a shard to its cache."""
        content = {**asdict(self), "teacher": None}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def differences(self, other: Fingerprint) -> list[str]:
        """The names of the fields that differ. The teacher's name counts only where its weights differ too: the same
        weights under another path are the same teacher."""
        names = [item.name for item in fields(self) if getattr(self, item.name) != getattr(other, item.name)]
        return names if "weights_sha256" in names else [name for name in names if name != "teacher"]


def fingerprint_of(teacher: Teacher, index: ShardIndex, config: CacheConfig) -> Fingerprint:
    """The fingerprint of the cache that a recipe asks for."""
    return Fingerprint(
        teacher=teacher.name,
        weights_sha256=teacher.weights_sha256,
        image_size=teacher.image_size,
        embedding_dim=teacher.embedding_dim,
        embedding_size=teacher.embedding_size,
        preprocessing=PREPROCESSING,
        precision=config.precision,
        codec=config.codec,
        views=VIEWS,
        images=index.fingerprint,
    )


@dataclass(frozen=True)
class Fidelity:
    """What a codec costs, measured on a few photos of the job before it starts.

    relative_l2: |decoded - float32| / |float32| over the stored block, mean over photos. cosine: mean over positions.
    mask_iou: masks that the teacher decodes from the stored embedding against those from its own, mean over prompts.
    mask_iou_float32: the same with an exact block, so what is lost there is the padding's and the rest the codec's.
    bytes_per_image: of the tar, its headers included.
    """

    num_images: int
    num_prompts: int
    prompts: str
    relative_l2: float
    cosine: float
    mask_iou: float
    mask_iou_float32: float
    bytes_per_image: float


@dataclass(frozen=True)
class ImageShard:
    """What the manifest keeps of an image shard: enough to tell that the embedding shard follows it."""

    name: str
    num_samples: int
    keys_hash: str


@dataclass(frozen=True)
class Totals:
    """Sums over all shards, written when the last one is there."""

    samples: int
    bad: int
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """manifest.json. `totals` is None until every shard is there."""

    fingerprint: Fingerprint
    fidelity: Fidelity
    shards: tuple[ImageShard, ...]
    totals: Totals | None = None

    def write(self, directory: Path) -> None:
        """Write it atomically. Raises CacheError on a full or read-only disk."""
        write_sealed(directory / MANIFEST, {"format": FORMAT_VERSION, **asdict(self)})

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Raises CacheError when there is none, or when it is damaged or of a newer format."""
        path = directory / MANIFEST
        try:
            content = read_sealed(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CacheError(
                f"{directory}: no embedding cache there; 'distill cache build RECIPE cache.dir={directory}' makes it"
            ) from error
        _check_format(path, content)
        totals = content["totals"]
        fingerprint = {**content["fingerprint"], "views": tuple(content["fingerprint"]["views"])}
        return cls(
            fingerprint=Fingerprint(**fingerprint),
            fidelity=Fidelity(**content["fidelity"]),
            shards=tuple(ImageShard(**shard) for shard in content["shards"]),
            totals=None if totals is None else Totals(**totals),
        )

    def check(self, expected: Fingerprint, directory: Path) -> None:
        """Raise CacheError, naming each field that differs, unless the cache is the one that a recipe asks for."""
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


@dataclass(frozen=True)
class StoredEntry:
    """Where an entry lies in its tar, in bytes, and the CRC-32 of those bytes."""

    key: str
    offset: int
    size: int
    crc32: int


@dataclass(frozen=True)
class Sidecar:
    """NAME.json, written last: the shard is there. `bad` holds the keys of photos that could not be decoded."""

    cache: str  # Fingerprint.digest
    keys_hash: str  # of the image shard
    samples: int
    bytes: int
    sha256: str
    bad: tuple[str, ...]
    members: tuple[StoredEntry, ...]

    @classmethod
    def read(cls, path: Path) -> Sidecar:
        """Raises FileNotFoundError when there is none, CacheError when it is damaged or of a newer format."""
        content = read_sealed(path)
        _check_format(path, content)
        del content["format"]
        members = tuple(StoredEntry(*row) for row in content.pop("members"))
        return cls(**{**content, "bad": tuple(content["bad"])}, members=members)

    def write(self, path: Path) -> None:
        members = [[entry.key, entry.offset, entry.size, entry.crc32] for entry in self.members]
        write_sealed(path, {"format": FORMAT_VERSION, **asdict(self), "members": members})


def sidecar_path(directory: Path, shard: str) -> Path:
    """NAME.json beside NAME.tar."""
    return directory / f"{shard.removesuffix('.tar')}.json"


def finished_sidecar(directory: Path, shard: ImageShard, cache: str) -> Sidecar | None:
    """The sidecar of an embedding shard that is there, whole by its size, and of this cache (Fingerprint.digest)."""
    try:
        sidecar = Sidecar.read(sidecar_path(directory, shard.name))
        size = (directory / shard.name).stat().st_size
    except (FileNotFoundError, CacheError):
        return None
    if (sidecar.cache, sidecar.keys_hash, sidecar.bytes) != (cache, shard.keys_hash, size):
        return None
    return sidecar


def _check_format(path: Path, content: Mapping[str, Any]) -> None:
    if content.get("format") != FORMAT_VERSION:
        raise CacheError(
            f"{path}: format {content.get('format')}, and this distill reads format {FORMAT_VERSION}: update distill"
        )
