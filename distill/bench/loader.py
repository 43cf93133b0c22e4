"""A training sample beside the published formulation, and the loader beside a plain read: `distill bench loader`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.bench.fresh_process import run_formulation

if TYPE_CHECKING:
    from rich.table import Table

    from distill.data.shards.index import ShardIndex

REPEATS = {"ours": 9, "published": 3}
READ_BYTES = 1 << 20  # the plain read takes this many at a time
MEGA = 1e6


def bench_loader(
    images: str | None = None,
    *,
    num_photos: int,
    num_workers: int,
    batch_size: int,
    photo_hw: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Measure one training sample and the loader.

    Args:
        images: image shards; None: the photos that are drawn for the sample.
        num_photos: the most photos that the loader reads.
        photo_hw: height and width of drawn photos; None: SA-1B's size.
    Returns:
        what `--json` prints: "sample" (measure_sample) and "loader" (measure_loader).
    """
    with _shards(num_photos, photo_hw) as drawn:
        return {
            "sample": measure_sample(drawn),
            "loader": measure_loader(
                images or str(drawn), num_photos=num_photos, num_workers=num_workers, batch_size=batch_size
            ),
        }


def measure_sample(shards: Path) -> dict[str, Any]:
    """Measure one sample by each formulation in a fresh process.

    Returns:
        for each formulation: seconds (median, of a core's time), idle_bytes, peak_bytes and bytes_above_idle; and
        times_faster and share_of_memory: ours beside the published one.
    """
    found: dict[str, Any] = {}
    for formulation, repeats in REPEATS.items():
        row = run_formulation("distill.bench.loader_sample", formulation, str(shards), str(repeats))
        found[formulation] = {**row, "bytes_above_idle": row["peak_bytes"] - row["idle_bytes"]}
    ours, published = found["ours"], found["published"]
    found["times_faster"] = published["seconds"] / ours["seconds"]
    found["share_of_memory"] = ours["bytes_above_idle"] / published["bytes_above_idle"]
    return found


def measure_loader(images: str, *, num_photos: int, num_workers: int, batch_size: int) -> list[dict[str, Any]]:
    """Measure photos and bytes a second: a plain read, the loader's parts, and the loader with and without workers.

    Returns:
        rows: what, workers, photos, seconds, photos_per_second, megabytes_per_second.
    """
    from distill.bench.loader_sample import NUM_DRAWN
    from distill.data.shards.index import ShardIndex

    index = ShardIndex.open(images)
    num_photos = min(num_photos, len(index))
    seconds, num_bytes = _plain_read(index)
    bytes_each = num_bytes / len(index)
    rows = [_row("plain sequential read", len(index), bytes_each, seconds)]
    rows.append(_row("reads in the order of an epoch", len(index), bytes_each, _read_shuffled(index)))
    rows.append(_row("photos in memory, decoded and resized", num_photos, bytes_each, _decode(index, num_photos)))
    for workers in sorted({0, num_workers}):
        for num_drawn in (0, NUM_DRAWN) if index.has_annotations else (0,):
            what = f"loader: photos with {num_drawn} masks" if num_drawn else "loader: photos"
            seconds, num_read = _load(
                index, num_photos=num_photos, num_workers=workers, batch_size=batch_size, num_drawn=num_drawn
            )
            rows.append(_row(what, num_read, bytes_each, seconds, workers=workers))
    return rows


def tables(found: dict[str, Any]) -> list[Table]:
    """Return the measurements as tables for a terminal."""
    from rich.table import Table

    sample = Table("one training sample", "seconds", "MB above idle", title="one core, 64 of 100 masks, 2000 x 1500")
    for name in REPEATS:
        row = found["sample"][name]
        sample.add_row(name, f"{row['seconds']:.3f}", f"{row['bytes_above_idle'] / MEGA:,.0f}")
    faster, share = found["sample"]["times_faster"], found["sample"]["share_of_memory"]
    sample.caption = f"{faster:.1f} times faster, {share:.1%} of the memory"
    loader = Table("what", "workers", "photos/s", "MB/s")
    for row in found["loader"]:
        photos, megabytes = f"{row['photos_per_second']:,.1f}", f"{row['megabytes_per_second']:,.1f}"
        loader.add_row(row["what"], str(row["workers"]), photos, megabytes)
    return [sample, loader]


@contextmanager
def _shards(num_photos: int, photo_hw: tuple[int, int] | None) -> Iterator[Path]:
    from distill.bench.photos import PHOTO_HW, write_shards

    with tempfile.TemporaryDirectory() as directory:
        shards = Path(directory) / "shards"
        write_shards(shards, num_photos, hw=photo_hw or PHOTO_HW)
        yield shards


def _plain_read(index: ShardIndex) -> tuple[float, int]:
    """Read all tars from their first byte to their last, and return the seconds and the bytes."""
    import fsspec

    started = time.perf_counter()
    num_bytes = 0
    for shard in index.shards:
        with fsspec.open(f"{index.directory}/{shard.name}", "rb") as file:
            while data := file.read(READ_BYTES):
                num_bytes += len(data)
    return time.perf_counter() - started, num_bytes


def _read_shuffled(index: ShardIndex) -> float:
    """Read the members of all samples by their places, as workers do, without decoding them. Return the seconds."""
    from distill.data.loading.epoch_plan import epoch_order

    started = time.perf_counter()
    for position in epoch_order(index.shard_sizes, seed=0, epoch=0, shuffle=True).tolist():
        member = index.member(position)
        index.read_image_bytes(member)
        index.read_annotation(member)
    return time.perf_counter() - started


def _decode(index: ShardIndex, num_photos: int) -> float:
    """Decode and letterbox photos in memory on one core, and return the seconds. No loader can save these."""
    from distill.bench.loader_sample import IMAGE_SIZE
    from distill.data.images import decode_image
    from distill.geometry import letterbox

    members = [index.member(position) for position in range(num_photos)]
    photos = [(index.read_image_bytes(member), index.origin(member)) for member in members]
    started = time.perf_counter()
    for data, origin in photos:
        letterbox(decode_image(data, origin), IMAGE_SIZE)
    return time.perf_counter() - started


def _load(
    index: ShardIndex, *, num_photos: int, num_workers: int, batch_size: int, num_drawn: int
) -> tuple[float, int]:
    """Run the loader, and return the seconds from its first batch to its last and the number of photos in that time."""
    from distill.bench.loader_sample import EMBEDDING_SIZE, IMAGE_SIZE
    from distill.data.loading.loader import EpochLoader, EpochSampler
    from distill.data.loading.samples import PhotoBatches

    photos = PhotoBatches(index, image_size=IMAGE_SIZE, embedding_size=EMBEDDING_SIZE, seed=0, max_instances=num_drawn)
    sampler = EpochSampler(index.shard_sizes, seed=0, batch_size=batch_size, shuffle=True)
    loader = EpochLoader(photos, sampler, num_workers=num_workers, max_bad_share=1.0)
    started, num_read = time.perf_counter(), 0
    for batch in loader:
        num_read += len(batch.keys)
        if num_read >= num_photos:
            break
    seconds = time.perf_counter() - started
    loader.close()
    return seconds, num_read


def _row(what: str, num_photos: int, bytes_each: float, seconds: float, *, workers: int = 0) -> dict[str, Any]:
    return {
        "what": what,
        "workers": workers,
        "photos": num_photos,
        "seconds": seconds,
        "photos_per_second": num_photos / seconds,
        "megabytes_per_second": num_photos * bytes_each / MEGA / seconds,
    }
