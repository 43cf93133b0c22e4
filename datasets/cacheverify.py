"""Verification of an embedding cache: every byte against what was written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distill.datasets.cachefiles import MANIFEST, ImageShard, Manifest, Sidecar, sidecar_path
from distill.datasets.claims import claimed_name
from distill.datasets.sealed import TEMPORARY_SUFFIX
from distill.errors import CacheError

READ_BYTES = 1 << 22


@dataclass(frozen=True)
class Problem:
    """What is wrong with one file of a cache.

    kind: shard: a shard is damaged or not there. foreign_shard: another cache's stands in its place. foreign: no file
    of ours. leftover: temporary. totals: all shards are whole, and the job did not come to its end.
    shard: the name of the shard that must be written anew.
    """

    file: str
    what: str
    kind: Literal["shard", "foreign_shard", "foreign", "leftover", "totals"] = "shard"
    shard: str | None = None


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
    problems += _other_files(directory, manifest)
    if not problems and manifest.totals is None:
        problems.append(Problem(MANIFEST, "has no totals: the job was stopped before its end", "totals"))
    return problems


def _shard_problem(directory: Path, shard: ImageShard, cache: str) -> Problem | None:
    tar, path = directory / shard.name, sidecar_path(directory, shard.name)

    def problem(file: Path, what: str) -> Problem:
        return Problem(file.name, what, shard=shard.name)

    if not tar.exists():
        return problem(tar, "missing")
    try:
        sidecar = Sidecar.read(path)
    except FileNotFoundError:
        return problem(tar, f"unfinished: it has no {path.name}")
    except CacheError:
        return problem(path, "damaged: its content does not match its seal")
    if sidecar.cache != cache or sidecar.keys_hash != shard.keys_hash:
        return Problem(tar.name, "foreign: of another cache, or of another image shard", "foreign_shard", shard.name)
    if sidecar.samples + len(sidecar.bad) != shard.num_samples:
        return problem(tar, f"holds {sidecar.samples} of {shard.num_samples} samples")
    size = tar.stat().st_size
    if size != sidecar.bytes:
        return problem(tar, f"damaged: {size:,} bytes, and {sidecar.bytes:,} were written")
    if _sha256(tar) != sidecar.sha256:
        return problem(tar, "damaged: its sha256 is not that of what was written")
    return None


def _other_files(directory: Path, manifest: Manifest) -> list[Problem]:
    names = {shard.name for shard in manifest.shards}
    known = {MANIFEST, *names, *(sidecar_path(directory, name).name for name in names)}
    problems = []
    for path in sorted(directory.iterdir()):
        if path.name in known:
            continue
        if path.suffix == TEMPORARY_SUFFIX or claimed_name(path.name) in known:
            problems.append(Problem(path.name, "left over from a killed job, or of one that runs", "leftover"))
        else:
            problems.append(Problem(path.name, "foreign: not ours", "foreign"))
    return problems


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(READ_BYTES):
            digest.update(data)
    return digest.hexdigest()
