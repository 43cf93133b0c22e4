"""The caching job of a recipe on all devices: what `distill cache build` runs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from distill.config.schema import CacheRecipe
from distill.data.cache.cost_report import job_lines, plan_line, totals_line
from distill.data.cache.estimate import make_plan
from distill.data.cache.job import CacheJob
from distill.data.cache.manifest import Fidelity, Manifest, Totals
from distill.data.cache.progress import job_progress
from distill.data.cache.teacher_pool import TeacherPool
from distill.errors import DistillError
from distill.leases import STALE_SECONDS
from distill.models.launch import end_with_parent, is_helper, job_rank, launch_fabric

if TYPE_CHECKING:
    from lightning.fabric import Fabric

log = logging.getLogger(__name__)

Report = Callable[[str], None]  # called with each line


def run_cache_job(
    recipe: CacheRecipe,
    *,
    devices: int | None = None,
    accelerator: str = "auto",
    stale_seconds: float = STALE_SECONDS,
    report: Report = log.info,
) -> Totals | None:
    """Build the embedding cache of a recipe: measure, write the shards that are missing, and show the progress.

    Under torchrun, srun or a SLURM job array this process does its share. Otherwise `devices` processes work: the
    further ones run the same program with the same arguments from its first line, as Lightning starts them.

    Args:
        devices: the number of processes on this machine. The default is one for each GPU, or one without a GPU.
        accelerator: `cpu`, `cuda`, or `auto` for a GPU if there is one.
        stale_seconds: a worker without a sign of life for so long is taken for dead, and its shard is written again.
        report: is called in the first process with lines that say what the job takes and what it has written.

    Returns:
        The totals of the cache. None in a further process that stopped at an error.

    Raises:
        CacheError: the directory holds the cache of another recipe, or cannot be written.
        DataError: too many photos cannot be decoded, or an image shard is missing or damaged.
    """
    job = CacheJob.from_recipe(recipe, stale_seconds=stale_seconds)
    fabric = launch_fabric(devices, accelerator)
    job.teacher.to(fabric.device)
    if is_helper(fabric):
        end_with_parent()
    try:
        return _run(job, fabric, report)
    except DistillError as error:
        if not is_helper(fabric):
            raise
        # An exit code would kill the first process, which meets the same error or does the work of this process
        log.warning("process %d stopped: %s", fabric.global_rank, error)
        return None


def _run(job: CacheJob, fabric: Fabric, report: Report) -> Totals | None:
    rank, world_size = job_rank(fabric.global_rank, fabric.world_size)
    manifest = job.prepare()
    if fabric.is_global_zero:
        _announce(job, manifest, world_size, report)
    with job_progress(job) if fabric.is_global_zero else contextlib.nullcontext():
        job.run(rank=rank, world_size=world_size)
    manifest = job.finish()
    if fabric.is_global_zero:
        report(totals_line(manifest.totals, job.directory))
    return manifest.totals


def _announce(job: CacheJob, manifest: Manifest, world_size: int, report: Report) -> None:
    num_finished = len(job.finished())
    if num_finished < len(job.shards):
        fidelities: dict[str, Fidelity] = {manifest.fingerprint.codec: manifest.fidelity}
        with TeacherPool(job.teacher, job.index, job.config) as pool:
            report(plan_line(make_plan(pool, job.directory, fidelities=fidelities, num_devices=world_size)))
    for line in job_lines(manifest, num_photos=len(job.index), num_finished=num_finished, num_devices=world_size):
        report(line)
