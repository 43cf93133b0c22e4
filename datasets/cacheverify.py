"""Verification of an embedding cache: every byte against what was written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from distill.datasets.cachefiles import MANIFEST, ImageShard, Manifest, Sidecar, sidecar_path
from distill.datasets.sealed import TEMPORARY_SUFFIX
from distill.errors import CacheError

READ_BYTES = 1 << 22


@dataclass(frozen=True)
class Problem:
    """What is wrong with one file of a cache."""

    file: str
    what: str


def verify_cache(directory: str | Path, advance: Callable[[int], None] = lambda count: None) -> list[Problem]:
    """Hash every shard and compare; list what is damaged, missing or foreign.

    Args:
        advance: called with 1 after each shard.
    Raises:
        CacheError: there is no manifest, or it is damaged: then nothing can be compared.
    """
    directory = Path(directory)
    manifest = Manifest.read(directory)
    problems = []
    for shard in manifest.shards:
        problem = _shard_problem(directory, shard, manifest.fingerprint.digest)
        problems += [problem] if problem else []
        advance(1)
    problems += _foreign_files(directory, manifest)
    if not problems and manifest.totals is None:
        problems.append(Problem(MANIFEST, "has no totals: the job was stopped before its end"))
    return problems


def _shard_problem(directory: Path, shard: ImageShard, cache: str) -> Problem | None:
    tar, path = directory / shard.name, sidecar_path(directory, shard.name)
    if not tar.exists():
        return Problem(tar.name, "missing")
    try:
        sidecar = Sidecar.read(path)
    except FileNotFoundError:
        return Problem(tar.name, f"unfinished: it has no {path.name}")
    except CacheError:
        return Problem(path.name, "damaged: its content does not match its seal")
    if sidecar.cache != cache or sidecar.keys_hash != shard.keys_hash:
        return Problem(tar.name, "foreign: of another cache, or of another image shard")
    if sidecar.samples + len(sidecar.bad) != shard.num_samples:
        return Problem(tar.name, f"holds {sidecar.samples} of {shard.num_samples} samples")
    size = tar.stat().st_size
    if size != sidecar.bytes:
        return Problem(tar.name, f"damaged: {size:,} bytes, and {sidecar.bytes:,} were written")
    if _sha256(tar) != sidecar.sha256:
        return Problem(tar.name, "damaged: its sha256 is not that of what was written")
    return None


def _foreign_files(directory: Path, manifest: Manifest) -> list[Problem]:
    names = {shard.name for shard in manifest.shards}
    known = {MANIFEST, *names, *(sidecar_path(directory, name).name for name in names)}
    return [
        Problem(path.name, "left over from a killed job" if path.suffix == TEMPORARY_SUFFIX else "foreign: not ours")
        for path in sorted(directory.iterdir())
        if path.name not in known
    ]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(READ_BYTES):
            digest.update(data)
    return digest.hexdigest()
