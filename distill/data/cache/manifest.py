"""The files beside the shards of a cache: what it holds (manifest.json), and what each shard holds (NAME.json).

manifest.json   fingerprint, measured fidelity, the image shards that the cache follows, totals
sa_000000.tar   KEY.safetensors (distill.data.cache.codecs), same keys and order as the image shard of that name;
                of other views KEY.VIEW.safetensors behind it
sa_000000.json  the sidecar, written last: a shard without it does not exist
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

from distill.config.names import IDENTITY
from distill.config.schema import CacheConfig
from distill.data.cache.sealed_json import unseal, write_sealed
from distill.data.shards.index import ShardIndex
from distill.data.shards.storage import Place, place_of
from distill.errors import CacheError, DataError
from distill.models.teacher import Teacher

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
ENTRY_SUFFIX = ".safetensors"
PREPROCESSING = "sam-letterbox-1"  # distill.geometry.letterbox; to be raised with any change of its pixels

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
        views=tuple(config.views),
        images=index.fingerprint,
    )


@dataclass(frozen=True)
class Fidelity:
    """What a codec costs, measured on a few photos of the job before it starts.

    relative_l2: |decoded - float32| / |float32| over the stored block, mean over photos. cosine: mean over positions.
    mask_iou: masks that the teacher decodes from the stored embedding against those from its own, mean over prompts.
    mask_iou_float32: the same with an exact block, so what is lost there is the padding's and the rest the codec's.
    bytes_per_image: of the tar, its headers and all views included.
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
    def read(cls, directory: Path | str | Place) -> Manifest:
        """Raises CacheError when there is none, or when it is damaged or of another format."""
        place = _place(directory)
        content = _read_sealed(place, MANIFEST)
        if content is None:
            mend = f"'distill cache build RECIPE cache.dir={place.directory}' makes it"
            raise CacheError(f"{place.directory}: no embedding cache there; {mend}")
        totals = content["totals"]
        fingerprint = {**content["fingerprint"], "views": tuple(content["fingerprint"]["views"])}
        return cls(
            fingerprint=Fingerprint(**fingerprint),
            fidelity=Fidelity(**content["fidelity"]),
            shards=tuple(ImageShard(**shard) for shard in content["shards"]),
            totals=None if totals is None else Totals(**totals),
        )

    def check(self, expected: Fingerprint, directory: Path | str) -> None:
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
    """Where the entry of a sample's view lies in its tar, in bytes, and the CRC-32 of those bytes."""

    key: str
    view: str
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
    def read(cls, directory: Path | str | Place, shard: str) -> Sidecar | None:
        """Of a shard, by the tar's name; None when there is none. Raises CacheError when it is damaged or of another
        format."""
        content = _read_sealed(_place(directory), sidecar_name(shard))
        if content is None:
            return None
        del content["format"]
        members = tuple(StoredEntry(*row) for row in content.pop("members"))
        return cls(**{**content, "bad": tuple(content["bad"])}, members=members)

    def write(self, path: Path) -> None:
        members = [[*astuple(entry)] for entry in self.members]
        write_sealed(path, {"format": FORMAT_VERSION, **asdict(self), "members": members})


def sidecar_name(shard: str) -> str:
    """NAME.json for NAME.tar."""
    return f"{shard.removesuffix('.tar')}.json"


def sidecar_path(directory: Path, shard: str) -> Path:
    """NAME.json beside NAME.tar."""
    return directory / sidecar_name(shard)


def finished_sidecar(directory: Path | str | Place, shard: ImageShard, cache: str) -> Sidecar | None:
    """The sidecar of an embedding shard that is there, whole by its size, and of this cache (Fingerprint.digest)."""
    place = _place(directory)
    try:
        sidecar = Sidecar.read(place, shard.name)
        size = place.size(shard.name)
    except (FileNotFoundError, CacheError):
        return None
    if sidecar is None or (sidecar.cache, sidecar.keys_hash, sidecar.bytes) != (cache, shard.keys_hash, size):
        return None
    return sidecar


def entry_name(key: str, view: str) -> str:
    """The name in its tar of the entry of a sample's view. Keys hold no dots."""
    return f"{key}{'' if view == IDENTITY else f'.{view}'}{ENTRY_SUFFIX}"


def _place(directory: Path | str | Place) -> Place:
    return place_of(directory) if isinstance(directory, Path | str) else directory


def _read_sealed(place: Place, name: str) -> dict[str, Any] | None:
    """A sealed file of this format; None when there is none."""
    try:
        content = unseal(place.read_whole(name), place.path(name))
    except FileNotFoundError:
        return None
    except DataError as error:  # of a remote place
        raise CacheError(str(error)) from error
    written = content.get("format")
    if written != FORMAT_VERSION:
        older = isinstance(written, int) and written < FORMAT_VERSION
        mend = "an older distill wrote it: build the cache anew, in another cache.dir" if older else "update distill"
        raise CacheError(
            f"{place.path(name)}: format {written}, and this distill reads format {FORMAT_VERSION}: {mend}"
        )
    return content
