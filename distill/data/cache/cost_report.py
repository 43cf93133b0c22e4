"""What a cache and its codec cost, in lines and tables for a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from distill.data.cache.codecs import full_map_bytes
from distill.data.cache.manifest import Fidelity, Manifest, Totals
from distill.text import duration, first_few, size

if TYPE_CHECKING:
    from rich.table import Table

    from distill.data.cache.estimate import CachePlan
    from distill.data.cache.stats import CacheStats


def plan_line(plan: CachePlan) -> str:
    """Return the plan of a job in one line."""
    cost, speeds = plan.chosen, plan.speeds
    return (
        f"plan: {plan.num_images:,} photos as {cost.codec}: {size(cost.bytes_per_image)} each, "
        f"{size(cost.total_bytes)} of {size(plan.free_bytes)} free; {speeds.build:,.1f} photos/s a device, "
        f"writes {size(speeds.write)}/s: {duration(plan.hours * 3600)} on {device_count(plan.num_devices)} "
        f"({'the disk' if plan.limit == 'disk' else 'the teacher'} sets it); {_break_even(plan)}"
    )


def codec_table(plan: CachePlan) -> Table:
    """Return what each codec takes and loses, a row for each."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("codec", "an image", "of a full fp16 map", "in all", "relative L2", "cosine", "mask IoU"):
        table.add_column(heading, justify="left" if heading == "codec" else "right")
    for cost in plan.codecs:
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
    return table


def measurement_lines(plan: CachePlan) -> list[str]:
    """Return how a plan was measured, what the teacher would cost online, and what to do."""
    fidelity, speeds = plan.chosen.fidelity, plan.speeds
    return [
        f"measured on {fidelity.num_images} photos, {fidelity.num_prompts} {fidelity.prompts} prompts; "
        f"exact values, the padding as stored: mask IoU {fidelity.mask_iou_float32:.4f}",
        f"{plan.device}: {speeds.build:,.2f} photos/s through the job, {speeds.teacher:,.2f} through the teacher "
        f"alone, {speeds.read:,.0f} stored maps decoded a second on one core",
        f"an epoch with the teacher online: {duration(plan.online_hours_per_epoch * 3600)} more on "
        f"{device_count(plan.num_devices)}; {_break_even(plan)}",
        f"recommendation: {plan.recommendation}",
    ]


def job_lines(manifest: Manifest, *, num_photos: int, num_finished: int, num_devices: int) -> list[str]:
    """Return what a job will do: its photos, its teacher, its codec, and the shards that earlier runs finished."""
    fingerprint, fidelity = manifest.fingerprint, manifest.fidelity
    dim, grid = fingerprint.embedding_dim, fingerprint.embedding_size
    num_bytes = fidelity.bytes_per_image
    lines = [
        f"{num_photos:,} photos in {len(manifest.shards):,} shards on {device_count(num_devices)}; "
        f"teacher {fingerprint.teacher}: {fingerprint.image_size} pixels to {dim} x {grid} x {grid}",
        f"{fingerprint.codec}: {num_bytes:,.0f} bytes an image ({num_bytes / full_map_bytes(dim, grid):.2f} "
        f"of a full fp16 map); {describe_fidelity(fidelity)}",
    ]
    if num_finished:
        lines.append(f"{num_finished} of {len(manifest.shards)} shards are finished and kept")
    return lines


def totals_line(totals: Totals | None, directory: str | Path) -> str:
    """Return what a job has written."""
    if totals is None:
        return f"{directory}: not all shards are there yet; other processes of this job still write, or run it again"
    skipped = f"; without {totals.bad:,} that cannot be decoded (distill cache stats {directory})" if totals.bad else ""
    return f"{directory}: {totals.samples:,} embeddings, {size(totals.bytes)}{skipped}"


def stats_rows(stats: CacheStats) -> dict[str, str]:
    """Return what a cache holds, by name."""
    fingerprint = stats.manifest.fingerprint
    rows = {name.replace("_", " "): _shown(value) for name, value in vars(fingerprint).items()}
    rows["shards"] = f"{stats.num_finished} of {len(stats.manifest.shards)} finished"
    rows["samples"] = f"{stats.num_samples:,} of {stats.num_expected:,}"
    rows["bad photos"] = f"{len(stats.bad):,}" + (f" ({first_few(stats.bad)})" if stats.bad else "")
    rows["bytes"] = f"{stats.num_bytes:,} ({size(stats.num_bytes)})"
    if stats.num_samples:
        each = stats.num_bytes / stats.num_samples
        full_map = full_map_bytes(fingerprint.embedding_dim, fingerprint.embedding_size)
        rows["bytes an image"] = f"{each:,.0f} ({each / full_map:.2f} of a full fp16 map)"
    rows["fidelity"] = describe_fidelity(stats.manifest.fidelity)
    return rows


def describe_fidelity(fidelity: Fidelity) -> str:
    """Return what the codec costs, in one line."""
    return (
        f"relative L2 {fidelity.relative_l2:.3%}, cosine {fidelity.cosine:.6f}, mask IoU {fidelity.mask_iou:.4f} "
        f"(exact values, the padding as stored: {fidelity.mask_iou_float32:.4f}; "
        f"{fidelity.num_prompts} {fidelity.prompts} prompts on {fidelity.num_images} photos)"
    )


def device_count(count: int) -> str:
    """Return "1 device", "2 devices" and so on."""
    return f"{count} device" + ("s" if count > 1 else "")


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _break_even(plan: CachePlan) -> str:
    if plan.break_even_epochs is None:
        return "never pays against the online teacher"
    epochs = f"{plan.break_even_epochs} epoch{'' if plan.break_even_epochs == 1 else 's'}"
    return f"pays against the online teacher for {epochs} or more"
