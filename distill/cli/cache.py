"""`distill cache`: plan, make, look at, verify and repair a cache of teacher embeddings."""

from __future__ import annotations

import argparse
import contextlib
import logging
from typing import TYPE_CHECKING

from distill.cli.arguments import add_command
from distill.cli.launch import end_with_parent, is_helper, job_progress, job_rank, launch_fabric
from distill.config.schema import CacheRecipe
from distill.data.cache import cost_report as cache_plan
from distill.errors import CacheError, DistillError
from distill.models.devices import one_device
from distill.text import first_few, progress_bar

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from distill.data.cache.job import CacheJob
    from distill.data.cache.manifest import Fidelity, Fingerprint, Manifest
    from distill.data.cache.spot_check import SpotCheck

EPILOG = """\
examples:
  distill cache plan quickstart/cache data.images=shards/train cache.dir=cache
  distill cache build quickstart/cache data.images=shards/train cache.dir=cache
  distill cache stats cache
  distill cache verify cache
  distill cache repair quickstart/cache data.images=shards/train cache.dir=cache

`distill cache ACTION --help` has more.
"""
BUILD_EPILOG = """\
examples:
  distill cache build quickstart/cache data.images=shards/train cache.dir=cache
  distill cache build my_cache.yaml data.images=sa1b cache.dir=cache cache.codec=int8 --devices 8
  torchrun --nproc-per-node 8 --nnodes 2 ... $(which distill) cache build my_cache.yaml
  srun distill cache build my_cache.yaml
  sbatch --array=0-63 --wrap "distill cache build my_cache.yaml"

Run the same command again after a kill: finished shards are kept, on any number of processes. Several such jobs may
work on one directory at a time: each shard is claimed by a file beside it, and a dead worker's shard is done anew.
The command ends when every shard is there.
"""
VERIFY_EPILOG = """\
examples:
  distill cache verify cache
  distill cache verify cache --spot 16 --recipe my_cache.yaml data.images=sa1b

Codec, precision, views and directory of a spot check are the cache's own, whatever the recipe says.
"""
REPAIR_EPILOG = """\
example:
  distill cache repair my_cache.yaml data.images=sa1b cache.dir=cache

The recipe is the one that the cache was built by. Files that are not ours are named and left, or they go by
--remove-foreign.
"""
MIB = 1 << 20
MIN_STALE_SECONDS = 2.0  # shorter pauses happen to the living
log = logging.getLogger(__name__)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(subparsers, "cache", "cache the teacher's embeddings, and verify them", EPILOG)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    summary = "what a job will take in bytes and hours, measured here, and whether it pays"
    planning = add_command(actions, "plan", summary, cache_plan.EPILOG)
    _add_recipe(planning)
    planning.add_argument("--devices", type=_count, default=1, metavar="N", help="of the job, each like this machine's")
    planning.add_argument("--json", action="store_true", help="print JSON")
    planning.set_defaults(run=cache_plan.plan)

    making = add_command(actions, "build", "run the teacher over image shards and keep its embeddings", BUILD_EPILOG)
    _add_recipe(making)
    help_text = "processes on this machine; default: one a GPU, else 1"
    making.add_argument("--devices", type=_count, metavar="N", help=help_text)
    help_text = "take a worker on another machine for dead after so long without a sign of life; default: 120"
    making.add_argument("--stale-seconds", type=_seconds, metavar="S", help=help_text)
    making.set_defaults(run=build)

    looking = add_command(
        actions, "stats", "what a cache holds and what its codec costs", "example:\n  distill cache stats cache"
    )
    looking.add_argument(
        "directory", metavar="DIR", help="a cache: its directory, or its address (s3://, hf://, https://)"
    )
    looking.set_defaults(run=stats)

    verifying = add_command(actions, "verify", "compare every byte with what was written", VERIFY_EPILOG)
    verifying.add_argument("directory", metavar="DIR", help="a cache: its directory, or its address")
    verifying.add_argument("overrides", metavar="key=value", nargs="*", help="options that win over --recipe's")
    verifying.add_argument("--spot", type=_count, metavar="N", help="run the teacher again on N random samples")
    verifying.add_argument("--recipe", metavar="RECIPE", help="of the cache: which teacher, and where the photos are")
    verifying.set_defaults(run=verify)

    mending = add_command(actions, "repair", "write anew just the shards that are damaged or missing", REPAIR_EPILOG)
    _add_recipe(mending)
    mending.add_argument(
        "--remove-foreign", action="store_true", help="delete files and shards that are not this cache's"
    )
    mending.set_defaults(run=repair)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file or a packaged name, such as quickstart/cache")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="options that win over the recipe")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no count: 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds >= MIN_STALE_SECONDS:
        raise argparse.ArgumentTypeError(f"'{text}' is no time in seconds: {MIN_STALE_SECONDS:g} or more")
    return seconds


def build(arguments: argparse.Namespace) -> int:
    """Check, say what it will cost, write the shards that are not there."""
    job = _job(_recipe(arguments.recipe, arguments.overrides), arguments.stale_seconds)
    fabric = launch_fabric(arguments.devices)
    job.teacher.to(fabric.device)
    if is_helper(fabric):
        end_with_parent()
    try:
        _build(job, fabric)
    except DistillError as error:
        if not is_helper(fabric):
            raise
        # Its exit code would kill the first process, which meets the same error, or does this one's work
        log.warning("process %d stopped: %s", fabric.global_rank, error)
    return 0


def _build(job: CacheJob, fabric: Fabric) -> None:
    rank, world_size = job_rank(fabric.global_rank, fabric.world_size)
    manifest = job.prepare()
    if fabric.is_global_zero:
        _announce(job, manifest, world_size)
    with job_progress(job) if fabric.is_global_zero else contextlib.nullcontext():
        job.run(rank=rank, world_size=world_size)
    manifest = job.finish()
    if fabric.is_global_zero:
        _conclude(manifest, str(job.directory))


def _recipe(name: str, overrides: list[str]) -> CacheRecipe:
    from distill.config.loading import load_recipe

    recipe = load_recipe(name, overrides, kinds=("cache",))
    assert isinstance(recipe, CacheRecipe)
    return recipe


def _job(recipe: CacheRecipe, stale_seconds: float | None = None) -> CacheJob:
    from distill.data.cache.job import CacheJob
    from distill.data.cache.leases import STALE_SECONDS
    from distill.data.shards.index import ShardIndex
    from distill.models.teacher import load_teacher

    index = ShardIndex.open(recipe.data.images)
    return CacheJob(
        load_teacher(recipe.teacher),
        index,
        recipe.cache,
        max_bad_share=recipe.data.max_bad_share,
        stale_seconds=STALE_SECONDS if stale_seconds is None else stale_seconds,
    )


def stats(arguments: argparse.Namespace) -> int:
    """Print what a cache holds."""
    from rich.console import Console
    from rich.table import Table

    from distill.data.cache.manifest import Manifest, finished_sidecar
    from distill.data.shards.storage import place_of

    place = place_of(arguments.directory)
    manifest = Manifest.read(place)
    digest = manifest.fingerprint.digest
    found = [sidecar for shard in manifest.shards if (sidecar := finished_sidecar(place, shard, digest))]
    samples, num_bytes = sum(sidecar.samples for sidecar in found), sum(sidecar.bytes for sidecar in found)
    bad = [key for sidecar in found for key in sidecar.bad]
    rows = {name: _shown(value) for name, value in vars(manifest.fingerprint).items()}
    rows["shards"] = f"{len(found)} of {len(manifest.shards)} finished"
    rows["samples"] = f"{samples:,} of {sum(shard.num_samples for shard in manifest.shards):,}"
    rows["bad photos"] = f"{len(bad):,}" + (f" ({first_few(bad)})" if bad else "")
    rows["bytes"] = f"{num_bytes:,} ({num_bytes / MIB:,.1f} MiB)"
    if samples:
        full = full_map_bytes(manifest.fingerprint)
        rows["bytes an image"] = f"{num_bytes / samples:,.0f} ({num_bytes / samples / full:.2f} of a full fp16 map)"
    rows["fidelity"] = describe_fidelity(manifest.fidelity)
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in rows.items():
        table.add_row(name.replace("_", " "), value)
    Console().print(table)
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Compare every byte; name what is damaged, missing or foreign. Raises CacheError when there is any."""
    from distill.data.cache.manifest import Manifest
    from distill.data.cache.verify import verify_cache
    from distill.data.shards.storage import is_remote

    if (arguments.spot is None) != (arguments.recipe is None) or (arguments.overrides and not arguments.recipe):
        raise DistillError("distill cache verify: --spot N and --recipe RECIPE go together, key=value only with them")
    directory = arguments.directory
    manifest = Manifest.read(directory)
    recipe = _recipe_of(manifest, arguments) if arguments.spot else None
    num_shards = len(manifest.shards)
    with progress_bar("shards", num_shards) as advance:
        problems = verify_cache(directory, advance)
    for problem in problems:
        print(f"{problem.file}: {problem.what}")
    if problems:
        mend = f"'distill cache repair RECIPE cache.dir={directory}' writes just those anew"
        if is_remote(directory):
            mend = "copy those again from where the cache was built, or 'distill cache repair' it there first"
        raise CacheError(f"{directory}: {len(problems)} of its files are not as they were written; {mend}")
    print(f"{directory}: {num_shards} shards, every byte as it was written")
    if recipe is not None:
        _spot_check(directory, recipe, arguments.spot)
    return 0


def repair(arguments: argparse.Namespace) -> int:
    """Write anew what is damaged or missing; name what is foreign. Raises CacheError when foreign files stay."""
    recipe = _recipe(arguments.recipe, arguments.overrides)

    from distill.data.cache.repair import find_damage, repair_cache

    job = _job(recipe)
    job.teacher.to(one_device())
    with progress_bar("shards", len(job.shards)) as advance:
        problems = find_damage(job, advance)
    for problem in problems:
        print(f"{problem.file}: {problem.what}")
    left = repair_cache(job, problems, remove_foreign=arguments.remove_foreign)
    num_mended = len(problems) - len(left)
    print(f"{job.directory}: " + (f"{num_mended} problems mended" if problems else "nothing to repair"))
    if left:
        named = first_few([problem.file for problem in left])
        raise CacheError(
            f"{job.directory}: {len(left)} files are not this cache's, or are in use, and were left ({named}); move "
            "them away, or delete them by --remove-foreign (directories: by hand)"
        )
    return 0


def _recipe_of(manifest: Manifest, arguments: argparse.Namespace) -> CacheRecipe:
    """The recipe of a spot check, its cache that of the manifest."""
    fingerprint = manifest.fingerprint
    own = {"codec": fingerprint.codec, "precision": fingerprint.precision, "views": f"[{','.join(fingerprint.views)}]"}
    options = [f"cache.{name}={value}" for name, value in own.items()]
    return _recipe(arguments.recipe, [*arguments.overrides, f"cache.dir={arguments.directory}", *options])


def _spot_check(directory: str, recipe: CacheRecipe, num_samples: int) -> None:
    import random

    from distill.data.cache.embeddings import EmbeddingCache, fingerprint_of
    from distill.data.cache.spot_check import spot_check
    from distill.data.cache.teacher_pool import TeacherPool
    from distill.data.shards.index import ShardIndex
    from distill.models.teacher import load_teacher

    index = ShardIndex.open(recipe.data.images)
    teacher = load_teacher(recipe.teacher).to(one_device())
    cache = EmbeddingCache.open(directory, fingerprint_of(teacher, index, recipe.cache))
    with TeacherPool(teacher, index, recipe.cache) as pool, progress_bar("samples", num_samples) as advance:
        found = spot_check(pool, cache, num_samples, rng=random.Random(), advance=advance)
    _report_spots(found, directory)


def _report_spots(found: SpotCheck, directory: str) -> None:
    """Print what a spot check found. Raises CacheError when there are outliers."""
    compared = [sample for sample in found.samples if not sample.reason]
    if compared:
        cosines = [sample.cosine for sample in compared]
        print(
            f"the teacher again on {len(compared)} random samples: cosine {sum(cosines) / len(cosines):.6f} on "
            f"average, {min(cosines):.6f} at the least; relative L2 {max(s.relative_l2 for s in compared):.3%} at most"
        )
    for sample in found.outliers:
        what = sample.reason or f"cosine {sample.cosine:.4f}, relative L2 {sample.relative_l2:.1%}"
        print(f"{sample.shard}: sample '{sample.key}': {what}")
    if found.outliers:
        raise CacheError(
            f"{directory}: {len(found.outliers)} of {len(found.samples)} samples are not what the teacher says today "
            f"(cosine below {found.threshold:.4f}); if photos were replaced or the teacher's code changed, build the "
            "cache anew in another directory"
        )


def full_map_bytes(fingerprint: Fingerprint) -> int:
    """Bytes of a whole embedding in fp16, padding included."""
    return 2 * fingerprint.embedding_dim * fingerprint.embedding_size**2


def describe_fidelity(fidelity: Fidelity) -> str:
    """One line about what the codec costs."""
    return (
        f"relative L2 {fidelity.relative_l2:.3%}, cosine {fidelity.cosine:.6f}, mask IoU {fidelity.mask_iou:.4f} "
        f"(exact values, the padding as stored: {fidelity.mask_iou_float32:.4f}; "
        f"{fidelity.num_prompts} {fidelity.prompts} prompts on {fidelity.num_images} photos)"
    )


def _announce(job: CacheJob, manifest: Manifest, world_size: int) -> None:
    from distill.data.cache.estimate import make_plan
    from distill.data.cache.teacher_pool import TeacherPool

    fingerprint = manifest.fingerprint
    dim, grid = fingerprint.embedding_dim, fingerprint.embedding_size
    finished = len(job.finished())
    if finished < len(job.shards):
        fidelities = {fingerprint.codec: manifest.fidelity}
        with TeacherPool(job.teacher, job.index, job.config) as pool:
            found = make_plan(pool, job.directory, fidelities=fidelities, num_devices=world_size)
        print(cache_plan.plan_line(found))
    print(
        f"{len(job.index):,} photos in {len(job.shards):,} shards on {cache_plan.devices(world_size)}; "
        f"teacher {fingerprint.teacher}: "
        f"{fingerprint.image_size} pixels to {dim} x {grid} x {grid}"
    )
    num_bytes = manifest.fidelity.bytes_per_image
    print(
        f"{fingerprint.codec}: {num_bytes:,.0f} bytes an image ({num_bytes / full_map_bytes(fingerprint):.2f} "
        f"of a full fp16 map); {describe_fidelity(manifest.fidelity)}"
    )
    if finished:
        print(f"{finished} of {len(job.shards)} shards are finished and kept")


def _conclude(manifest: Manifest, directory: str) -> None:
    totals = manifest.totals
    if totals is None:
        print(f"{directory}: not all shards are there yet; other processes of this job still write, or run it again")
        return
    skipped = f"; without {totals.bad:,} that cannot be decoded (distill cache stats {directory})" if totals.bad else ""
    print(f"{directory}: {totals.samples:,} embeddings, {totals.bytes / MIB:,.1f} MiB{skipped}")


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
