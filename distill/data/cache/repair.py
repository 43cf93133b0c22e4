"""Repair of an embedding cache: shards that are damaged or missing are written again, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

from distill.data.cache.checksummed_json import DamagedFileError, disk_errors
from distill.data.cache.job import CacheJob
from distill.data.cache.manifest import MANIFEST, Manifest, sidecar_path
from distill.data.cache.verify import CacheProblem, verify_cache


def find_damage(job: CacheJob, advance: Callable[[int], None] = lambda count: None) -> list[CacheProblem]:
    """Verify the cache of a job. A manifest that is damaged is measured and written again.

    Args:
        advance: is called with 1 after each shard.

    Raises:
        CacheError: there is no cache, or it is another recipe's or of another format.
    """
    problems = []
    try:
        manifest = Manifest.read(job.directory)
    except DamagedFileError:
        with disk_errors(job.directory):
            (job.directory / MANIFEST).unlink()
        manifest = job.prepare()
        problems.append(
            CacheProblem(MANIFEST, "damaged: its content does not match its checksum, or cannot be true", "totals")
        )
    manifest.check(job.fingerprint, job.directory)
    return problems + verify_cache(job.directory, advance)


def repair_cache(job: CacheJob, problems: list[CacheProblem], *, remove_foreign: bool = False) -> list[CacheProblem]:
    """Mend what `find_damage` found.

    Args:
        remove_foreign: delete files that are not of this cache, and replace shards of another cache. Directories stay.

    Returns:
        the problems that are left: files that are foreign, or that a running job uses.

    Raises:
        DataError: as CacheJob.run.
        CacheError: as CacheJob.run.
    """
    damaged = {problem.shard for problem in problems if problem.shard and problem.kind == "shard"}
    foreign = [problem for problem in problems if problem.kind in ("foreign", "foreign_shard")]
    left = foreign
    with disk_errors(job.directory):
        for name in damaged:  # without its sidecar a shard does not count, and the new tar will replace it
            sidecar_path(job.directory, name).unlink(missing_ok=True)
        if remove_foreign:
            damaged |= {problem.shard for problem in foreign if problem.shard}
            left = [problem for problem in foreign if (job.directory / problem.file).is_dir()]
            for problem in foreign:
                if problem not in left and problem.kind == "foreign":
                    (job.directory / problem.file).unlink(missing_ok=True)
    job.run(only=damaged)
    job.finish()
    return left + [item for item in problems if item.kind == "leftover" and (job.directory / item.file).exists()]
