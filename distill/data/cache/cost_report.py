"""`distill cache plan`: what a caching job will cost, and whether it pays."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from distill.config.schema import CacheRecipe
from distill.models.devices import one_device
from distill.text import duration

if TYPE_CHECKING:
    from distill.data.cache.estimate import CachePlan

EPILOG = """\
examples:
  distill cache plan quickstart/cache data.images=shards/train cache.dir=cache
  distill cache plan my_cache.yaml --devices 64 --json > plan.json

Speeds are those of this machine, its first device: run it where the job will run. Nothing is written but a file of
64 MiB beside the cache, which goes at once.
"""
BYTE_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
UNIT = 1024


def plan(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    from distill.config.loading import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides, kinds=("cache",))
    assert isinstance(recipe, CacheRecipe)

    from distill.data.cache.codecs import CODECS
    from distill.data.cache.estimate import make_plan
    from distill.data.cache.fidelity import measure_fidelity
    from distill.data.cache.job import directory_of
    from distill.data.cache.teacher_pool import TeacherPool
    from distill.data.shards.index import ShardIndex
    from distill.models.teacher import load_teacher

    directory = directory_of(recipe.cache)
    index = ShardIndex.open(recipe.data.images)
    teacher = load_teacher(recipe.teacher).to(one_device())
    with TeacherPool(teacher, index, recipe.cache) as pool:
        fidelities = measure_fidelity(pool, CODECS)
        found = make_plan(pool, directory, fidelities=fidelities, num_devices=arguments.devices)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(found), indent=1))
    else:
        _print(found)
    return 0


def plan_line(found: CachePlan) -> str:
    """The plan in one line, which `distill cache build` prints too."""
    cost, speeds = found.chosen, found.speeds
    return (
        f"plan: {found.num_images:,} photos as {cost.codec}: {size(cost.bytes_per_image)} each, "
        f"{size(cost.total_bytes)} of {size(found.free_bytes)} free; {speeds.build:,.1f} photos/s a device, "
        f"writes {size(speeds.write)}/s: {duration(found.hours * 3600)} on {devices(found.num_devices)} "
        f"({'the disk' if found.limit == 'disk' else 'the teacher'} sets it); {_pays(found)}"
    )


def size(num_bytes: float) -> str:
    """Bytes in the unit that reads well."""
    for unit in BYTE_UNITS[:-1]:
        if num_bytes < UNIT:
            return f"{num_bytes:,.{0 if unit == 'bytes' else 1}f} {unit}"
        num_bytes /= UNIT
    return f"{num_bytes:,.1f} {BYTE_UNITS[-1]}"


def _print(found: CachePlan) -> None:
    from rich.console import Console
    from rich.table import Table

    speeds = found.speeds
    print(plan_line(found))
    table = Table(box=None, pad_edge=False)
    for heading in ("codec", "an image", "of a full fp16 map", "in all", "relative L2", "cosine", "mask IoU"):
        table.add_column(heading, justify="left" if heading == "codec" else "right")
    for cost in found.codecs:
        fidelity = cost.fidelity
        table.add_row(
            cost.codec,
            size(cost.bytes_per_image),
            f"{cost.share_of_full_map:.2f}",
            size(cost.total_bytes),
            f"{fidelity.relative_l2:.3%}",
            f"{fidelity.cosine:.6f}",
            f"{fidelity.mask_iou:.4f}",
        )
    console = Console(soft_wrap=True)
    console.print(table)
    fidelity = found.chosen.fidelity
    print(
        f"measured on {fidelity.num_images} photos, {fidelity.num_prompts} {fidelity.prompts} prompts; "
        f"exact values, the padding as stored: mask IoU {fidelity.mask_iou_float32:.4f}"
    )
    print(
        f"{found.device}: {speeds.build:,.2f} photos/s through the job, {speeds.teacher:,.2f} through the teacher "
        f"alone, {speeds.read:,.0f} stored maps decoded a second on one core"
    )
    print(
        f"an epoch with the teacher online: {duration(found.online_hours_per_epoch * 3600)} more on "
        f"{devices(found.num_devices)}; {_pays(found)}"
    )
    print(f"recommendation: {found.recommendation}")


def devices(count: int) -> str:
    """1 device, 2 devices."""
    return f"{count} device" + ("s" if count > 1 else "")


def _pays(found: CachePlan) -> str:
    if found.break_even_epochs is None:
        return "never pays against the online teacher"
    epochs = f"{found.break_even_epochs} epoch{'' if found.break_even_epochs == 1 else 's'}"
    return f"pays against the online teacher for {epochs} or more"
