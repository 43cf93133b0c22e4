"""`distill cache`: plan, build, look at, verify and repair a cache of teacher embeddings."""

from __future__ import annotations

import argparse
import dataclasses
import json

from distill.cli.arguments import add_command, at_least, positive_int
from distill.config.schema import CacheRecipe
from distill.errors import CacheError, DistillError
from distill.leases import STALE_SECONDS
from distill.text import first_few, print_tables, progress_bar, say

EPILOG = """\
examples:
  distill cache plan quickstart/cache data.images=shards/train cache.dir=cache
  distill cache build quickstart/cache data.images=shards/train cache.dir=cache
  distill cache stats cache
  distill cache verify cache
  distill cache repair quickstart/cache data.images=shards/train cache.dir=cache

`distill cache ACTION --help` has more.
"""
PLAN_EPILOG = """\
examples:
  distill cache plan quickstart/cache data.images=shards/train cache.dir=cache
  distill cache plan my_cache.yaml --devices 64 --json > plan.json

Speeds are measured on the first device of this machine, so run it where the job will run. Nothing is kept: a file of
64 MiB is written beside the cache to time the disk, and deleted at once.
"""
BUILD_EPILOG = """\
examples:
  distill cache build quickstart/cache data.images=shards/train cache.dir=cache
  distill cache build my_cache.yaml data.images=sa1b cache.dir=cache cache.codec=int8 --devices 8
  torchrun --nproc-per-node 8 --nnodes 2 ... $(which distill) cache build my_cache.yaml
  srun distill cache build my_cache.yaml
  sbatch --array=0-63 --wrap "distill cache build my_cache.yaml"

Run the same command again after a kill: finished shards are kept, on any number of processes. Several such jobs may
work on one directory at a time: a file beside each shard says who writes it, and the shard of a dead worker is written
by another one. The command ends when every shard is there.
"""
VERIFY_EPILOG = """\
examples:
  distill cache verify cache
  distill cache verify cache --spot 16 --recipe my_cache.yaml data.images=sa1b

A spot check uses the codec, precision, views and directory of the cache, whatever the recipe says.
"""
REPAIR_EPILOG = """\
example:
  distill cache repair my_cache.yaml data.images=sa1b cache.dir=cache

The recipe is the one that the cache was built by. Files that are not of this cache are named and left;
--remove-foreign deletes them.
"""
MIN_STALE_SECONDS = 2.0  # living workers pause for shorter times


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its actions."""
    parser = add_command(subparsers, "cache", "cache the teacher's embeddings, and verify them", EPILOG)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    summary = "measure what a job will take in bytes and hours, and whether it pays"
    planning = add_command(actions, "plan", summary, PLAN_EPILOG)
    _add_recipe(planning)
    help_text = "of the job, each as fast as this machine's (default: 1)"
    planning.add_argument("--devices", type=positive_int, default=1, metavar="N", help=help_text)
    planning.add_argument("--json", action="store_true", help="print JSON")
    planning.set_defaults(run=plan)

    making = add_command(actions, "build", "run the teacher over image shards and keep its embeddings", BUILD_EPILOG)
    _add_recipe(making)
    help_text = "processes on this machine; default: one a GPU, else 1"
    making.add_argument("--devices", type=positive_int, metavar="N", help=help_text)
    help_text = "take a worker on another machine for dead after so long without a sign of life; default: %(default)g"
    making.add_argument(
        "--stale-seconds", type=at_least(MIN_STALE_SECONDS), default=STALE_SECONDS, metavar="S", help=help_text
    )
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
    verifying.add_argument("--spot", type=positive_int, metavar="N", help="run the teacher again on N random samples")
    verifying.add_argument("--recipe", metavar="RECIPE", help="of the cache: which teacher, and where the photos are")
    verifying.set_defaults(run=verify)

    mending = add_command(actions, "repair", "write again only the shards that are damaged or missing", REPAIR_EPILOG)
    _add_recipe(mending)
    mending.add_argument(
        "--remove-foreign", action="store_true", help="delete files and shards that are not this cache's"
    )
    mending.set_defaults(run=repair)


def plan(arguments: argparse.Namespace) -> int:
    """Print what a job will take."""
    recipe = _load_recipe(arguments.recipe, arguments.overrides)

    from distill.data.cache.cost_report import codec_table, measurement_lines, plan_line
    from distill.data.cache.estimate import plan_cache_job

    found = plan_cache_job(recipe, num_devices=arguments.devices)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(found), indent=1))
        return 0
    say(plan_line(found))
    print_tables(codec_table(found))
    for line in measurement_lines(found):
        say(line)
    return 0


def build(arguments: argparse.Namespace) -> int:
    """Write the shards that are missing."""
    recipe = _load_recipe(arguments.recipe, arguments.overrides)

    from distill.data.cache.run import run_cache_job

    run_cache_job(recipe, devices=arguments.devices, stale_seconds=arguments.stale_seconds, report=print)
    return 0


def stats(arguments: argparse.Namespace) -> int:
    """Print what a cache holds."""
    from rich.table import Table

    from distill.data.cache.cost_report import stats_rows
    from distill.data.cache.stats import read_cache_stats

    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in stats_rows(read_cache_stats(arguments.directory)).items():
        table.add_row(name, value)
    print_tables(table)
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Compare every byte, and name what is damaged, missing or foreign. Raises CacheError when there is any."""
    if (arguments.spot is None) != (arguments.recipe is None) or (arguments.overrides and not arguments.recipe):
        raise DistillError("distill cache verify: --spot N and --recipe RECIPE go together, key=value only with them")

    from distill.data.cache.manifest import Manifest
    from distill.data.cache.verify import verify_cache
    from distill.data.shards.storage import is_remote

    directory = arguments.directory
    num_shards = len(Manifest.read(directory).shards)
    recipe = None
    if arguments.recipe is not None:
        recipe = _load_recipe(arguments.recipe, [*arguments.overrides, f"cache.dir={directory}"])
    with progress_bar("shards", num_shards) as advance:
        problems = verify_cache(directory, advance)
    for problem in problems:
        say(f"{problem.file}: {problem.what}")
    if problems:
        mend = f"'distill cache repair RECIPE cache.dir={directory}' writes only those again"
        if is_remote(directory):
            mend = "copy those again from where the cache was built, or 'distill cache repair' it there first"
        raise CacheError(f"{directory}: {len(problems)} of its files are not as they were written; {mend}")
    say(f"{directory}: {num_shards} shards, every byte as it was written")
    if recipe is not None:
        _spot_check(directory, recipe, arguments.spot)
    return 0


def repair(arguments: argparse.Namespace) -> int:
    """Write again what is damaged or missing, and name what is foreign. Raises CacheError when foreign files stay."""
    recipe = _load_recipe(arguments.recipe, arguments.overrides)

    from distill.data.cache.job import CacheJob
    from distill.data.cache.repair import find_damage, repair_cache
    from distill.models.devices import one_device

    job = CacheJob.from_recipe(recipe)
    job.teacher.to(one_device())
    with progress_bar("shards", len(job.shards)) as advance:
        problems = find_damage(job, advance)
    for problem in problems:
        say(f"{problem.file}: {problem.what}")
    left = repair_cache(job, problems, remove_foreign=arguments.remove_foreign)
    num_mended = len(problems) - len(left)
    say(f"{job.directory}: " + (f"{num_mended} problems mended" if problems else "nothing to repair"))
    if left:
        named = first_few([problem.file for problem in left])
        raise CacheError(
            f"{job.directory}: {len(left)} files are not this cache's, or are in use, and were left ({named}); move "
            "them away, or delete them by --remove-foreign (directories: by hand)"
        )
    return 0


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file or a packaged name, such as quickstart/cache")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="options that win over the recipe")


def _load_recipe(name: str, overrides: list[str]) -> CacheRecipe:
    from distill.config.loading import load_recipe

    recipe = load_recipe(name, overrides, kinds=("cache",))
    assert isinstance(recipe, CacheRecipe)
    return recipe


def _spot_check(directory: str, recipe: CacheRecipe, num_samples: int) -> None:
    """Run the teacher on some samples and print what it found. Raises CacheError when there are outliers."""
    from distill.data.cache.spot_check import spot_check_cache

    with progress_bar("samples", num_samples) as advance:
        found = spot_check_cache(directory, recipe, num_samples, advance=advance)
    compared = [sample for sample in found.samples if not sample.reason]
    if compared:
        cosines = [sample.cosine for sample in compared]
        say(
            f"the teacher again on {len(compared)} random samples: cosine {sum(cosines) / len(cosines):.6f} on "
            f"average, {min(cosines):.6f} at the least; relative L2 {max(s.relative_l2 for s in compared):.3%} at most"
        )
    for sample in found.outliers:
        what = sample.reason or f"cosine {sample.cosine:.4f}, relative L2 {sample.relative_l2:.1%}"
        say(f"{sample.shard}: sample '{sample.key}': {what}")
    if found.outliers:
        raise CacheError(
            f"{directory}: the embeddings of {len(found.outliers)} of {len(found.samples)} samples are not those that "
            f"the teacher gives today (cosine below {found.threshold:.4f}); if photos were replaced or the teacher's "
            "code has changed, build another cache in another directory"
        )
