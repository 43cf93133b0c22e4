"""`distill cache`: make, look at and verify a cache of teacher embeddings."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from distill.config import CacheRecipe
from distill.errors import CacheError, DistillError

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from distill.datasets.cachefiles import Fidelity, Fingerprint, Manifest
    from distill.datasets.cachejob import CacheJob

EPILOG = """\
examples:
  distill cache build quickstart/cache data.images=shards/train cache.dir=cache
  distill cache stats cache
  distill cache verify cache

`distill cache build --help` has more.
"""
BUILD_EPILOG = """\
examples:
  distill cache build quickstart/cache data.images=shards/train cache.dir=cache
  distill cache build my_cache.yaml data.images=sa1b cache.dir=cache cache.codec=int8 --devices 8
  torchrun --nproc-per-node 8 --nnodes 2 ... $(which distill) cache build my_cache.yaml
  srun distill cache build my_cache.yaml

Run the same command again after a kill: finished shards are kept, on any number of processes.
"""
WAIT_DAYS = 30  # at the end, ranks wait for the slowest one
MIB = 1 << 20


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "cache",
        help="cache the teacher's embeddings, and verify them",
        description="Make, look at and verify a cache of teacher embeddings.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    make = actions.add_parser(
        "build",
        help="run the teacher over image shards and keep its embeddings",
        description="Run the teacher over image shards and keep its embeddings.",
        epilog=BUILD_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    make.add_argument("recipe", metavar="RECIPE", help="a YAML file or a packaged name, such as quickstart/cache")
    make.add_argument("overrides", metavar="key=value", nargs="*", help="options that win over the recipe")
    make.add_argument("--devices", type=int, metavar="N", help="processes on this machine; default: one a GPU, else 1")
    make.set_defaults(run=build)
    for name, summary, function in (
        ("stats", "what a cache holds and what its codec costs", stats),
        ("verify", "compare every byte with what was written", verify),
    ):
        action = actions.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        action.add_argument("directory", metavar="DIR", help="the directory of a cache")
        action.set_defaults(run=function)


def build(arguments: argparse.Namespace) -> int:
    """Check, measure the codec, write the shards that are not there."""
    from distill.recipe import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides, kinds=("cache",))
    assert isinstance(recipe, CacheRecipe)

    from distill.datasets.cachejob import CacheJob
    from distill.datasets.shards import ShardIndex
    from distill.teacher import load_teacher

    index = ShardIndex.open(recipe.data.images)
    teacher = load_teacher(recipe.teacher)
    fabric = launch_fabric(arguments.devices)
    teacher = teacher.to(fabric.device)
    job = CacheJob(teacher, index, recipe.cache, max_bad_share=recipe.data.max_bad_share)
    on_rank_zero(fabric, lambda: _announce(job, job.prepare()))
    shards = job.own_shards(fabric.global_rank, fabric.world_size)
    with progress_bar("photos", sum(shard.num_samples for shard in shards), shown=fabric.is_global_zero) as advance:
        job.run(rank=fabric.global_rank, world_size=fabric.world_size, advance=advance)
    fabric.barrier()
    if fabric.is_global_zero:
        _conclude(job.finish(), str(job.directory))
    return 0


def stats(arguments: argparse.Namespace) -> int:
    """Print what a cache holds."""
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from distill.datasets.cachefiles import Manifest, finished_sidecar

    directory = Path(arguments.directory)
    manifest = Manifest.read(directory)
    digest = manifest.fingerprint.digest
    found = [sidecar for shard in manifest.shards if (sidecar := finished_sidecar(directory, shard, digest))]
    samples, num_bytes = sum(sidecar.samples for sidecar in found), sum(sidecar.bytes for sidecar in found)
    bad = [key for sidecar in found for key in sidecar.bad]
    rows = {name: _shown(value) for name, value in vars(manifest.fingerprint).items()}
    rows["shards"] = f"{len(found)} of {len(manifest.shards)} finished"
    rows["samples"] = f"{samples:,} of {sum(shard.num_samples for shard in manifest.shards):,}"
    rows["bad photos"] = f"{len(bad):,}" + (f" ({', '.join(bad[:5])}{', ...' if len(bad) > 5 else ''})" if bad else "")
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
    from pathlib import Path

    from distill.datasets.cachefiles import Manifest
    from distill.datasets.cacheverify import verify_cache

    directory = Path(arguments.directory)
    num_shards = len(Manifest.read(directory).shards)
    with progress_bar("shards", num_shards) as advance:
        problems = verify_cache(directory, advance)
    for problem in problems:
        print(f"{problem.file}: {problem.what}")
    if problems:
        raise CacheError(
            f"{directory}: {len(problems)} of its files are not as they were written; delete those named, then run the "
            "same 'distill cache build' again: it writes what is missing"
        )
    print(f"{directory}: {num_shards} shards, every byte as it was written")
    return 0


def launch_fabric(devices: int | None = None) -> Fabric:
    """Lightning Fabric in the processes that torchrun or SLURM started, else in `devices` processes that it starts."""
    import os
    from datetime import timedelta

    import torch
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
    from lightning.fabric.strategies import DDPStrategy

    num_nodes = 1
    if TorchElasticEnvironment.detect():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["WORLD_SIZE"]) // devices
    elif SLURMEnvironment.detect():
        num_nodes = int(os.environ["SLURM_NNODES"])
        devices = int(os.environ["SLURM_NTASKS"]) // num_nodes
    elif devices is None:
        devices = max(1, torch.cuda.device_count())
    alone = devices * num_nodes == 1
    # Ranks only meet at the start and at the end: gloo does, and does not give up on a slow one.
    strategy = "auto" if alone else DDPStrategy(process_group_backend="gloo", timeout=timedelta(days=WAIT_DAYS))
    fabric = Fabric(accelerator="auto", devices=devices, num_nodes=num_nodes, strategy=strategy)
    fabric.launch()
    return fabric


def on_rank_zero(fabric: Fabric, function: Callable[[], object]) -> None:
    """Run a function on rank 0 alone; its error is raised on every rank, so that none waits for ever."""
    failure = None
    if fabric.is_global_zero:
        try:
            function()
        except DistillError as error:
            failure = error
    failure = fabric.broadcast(failure)
    if failure is not None:
        raise failure


@contextlib.contextmanager
def progress_bar(what: str, total: int, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar on stderr with the time that is left; gives a function that is called with the number done."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())  # description, bar, share, time that is left
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


def full_map_bytes(fingerprint: Fingerprint) -> int:
    """Bytes of a whole embedding in fp16, padding included."""
    return 2 * fingerprint.embedding_dim * fingerprint.embedding_size**2


def describe_fidelity(fidelity: Fidelity) -> str:
    """One line about what the codec costs."""
    return (
        f"relative L2 {fidelity.relative_l2:.3%}, cosine {fidelity.cosine:.6f}, mask IoU {fidelity.mask_iou:.4f} "
        f"(exact values, padding left out: {fidelity.mask_iou_float32:.4f}; "
        f"{fidelity.num_prompts} {fidelity.prompts} prompts on {fidelity.num_images} photos)"
    )


def _announce(job: CacheJob, manifest: Manifest) -> None:
    fingerprint, fidelity = manifest.fingerprint, manifest.fidelity
    num_samples, full = len(job.index), full_map_bytes(fingerprint)
    dim, grid = fingerprint.embedding_dim, fingerprint.embedding_size
    print(
        f"{num_samples:,} photos in {len(job.shards):,} shards; teacher {fingerprint.teacher}: "
        f"{fingerprint.image_size} pixels to {dim} x {grid} x {grid}"
    )
    print(
        f"{fingerprint.codec}: {fidelity.bytes_per_image:,.0f} bytes an image ({fidelity.bytes_per_image / full:.2f} "
        f"of a full fp16 map), {num_samples * fidelity.bytes_per_image / MIB:,.1f} MiB in all"
    )
    print(f"{fingerprint.codec}: {describe_fidelity(fidelity)}")
    finished = len(job.finished())
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
