"""Shards from photographs: a COCO-format set, or a folder of photos, in SA-1B's layout."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from distill.data.coco import AnnotatedPhoto, CocoSet, Instance
from distill.data.folder import PhotoFolder
from distill.data.images import decode_as_annotated, decode_image, is_upright, photo_suffix, read_photo
from distill.data.rle import decode_mask, encode_mask, rle_area
from distill.data.shards.defaults import MAX_BAD_SHARE, SAMPLES_PER_SHARD
from distill.data.shards.sa1b import annotation_row, sample_annotation
from distill.data.shards.writer import ShardWriter
from distill.errors import DataError
from distill.geometry import HW, resize_longest_side
from distill.lock import hold_directory
from distill.text import NUM_NAMED, first_few

JPEG_QUALITY = 95  # of photos that must be encoded again; chroma is not subsampled
MAX_COVERAGE = 255
GIVE_OUT = "--out DIR"

Advance = Callable[[int], None]  # called with the number of photos done since the last call


@dataclass
class BuildReport:
    """What was written (samples and instances) and what was left out (crowd regions, empty masks, bad photos).

    Attributes:
        empty: annotation id -> key, of masks without a pixel.
        bad: key -> what is wrong with its photo.
    """

    num_samples: int = 0
    num_instances: int = 0
    num_crowd: int = 0
    empty: dict[int, str] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)

    def lines(self, directory: str | Path) -> list[str]:
        """Return what was left out and what was written into `directory`, for a terminal."""
        lines = [f"skipped: {reason}" for reason in list(self.bad.values())[:NUM_NAMED]]
        if len(self.bad) > NUM_NAMED:
            lines.append(f"skipped: {len(self.bad) - NUM_NAMED} more photos that cannot be decoded")
        if self.empty:
            named = first_few([f"{identity} (photo '{key}')" for identity, key in self.empty.items()])
            lines.append(f"skipped: {len(self.empty)} masks without a pixel: annotations {named}")
        if self.num_crowd:
            lines.append(f"skipped: {self.num_crowd} crowd regions, which are no single objects")
        return [*lines, f"{directory}: {self.num_samples:,} photos with {self.num_instances:,} masks"]


class StoredPhoto(NamedTuple):
    """A photo as it goes into a shard: encoded bytes, their suffix, and its (height, width)."""

    data: bytes
    suffix: str
    hw: HW


def build_coco_shards(
    coco_set: CocoSet,
    directory: str | Path,
    *,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    max_side: int | None = None,
    max_bad_share: float = MAX_BAD_SHARE,
    advance: Advance | None = None,
) -> BuildReport:
    """Write the photos and instances of a COCO-format set, ordered by key.

    Args:
        max_side: larger photos are reduced to this longest side, with their masks.
        max_bad_share: photos that cannot be decoded are left out, up to this share of the set.
        advance: is called with 1 after each photo.

    Raises:
        DataError: as ShardWriter and CocoSet, or more photos are bad than allowed. Nothing of the
            build is left.
        RunError: another process writes shards to this directory.
    """
    report = BuildReport(num_crowd=coco_set.num_crowd)
    with hold_directory(Path(directory), give=GIVE_OUT), ShardWriter(directory, samples_per_shard) as writer:
        for photo in coco_set:
            try:
                data = read_photo(photo.path)
                image = decode_as_annotated(data, photo.hw, str(photo.path))
            except DataError as error:
                _note_bad(report, photo.key, error, allowed=max_bad_share * len(coco_set))
            else:
                stored = store_photo(data, image, max_side)
                rows = _rows(photo, stored.hw, report)
                annotation = sample_annotation(photo.key, stored.hw, rows, suffix=stored.suffix)
                writer.add(photo.key, stored.data, annotation, suffix=stored.suffix)
                report.num_samples += 1
                report.num_instances += len(rows)
            if advance is not None:
                advance(1)
    report.empty.update(coco_set.empty)
    return report


def build_folder_shards(
    folder: PhotoFolder,
    directory: str | Path,
    *,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    max_side: int | None = None,
    max_bad_share: float = MAX_BAD_SHARE,
    advance: Advance | None = None,
) -> BuildReport:
    """Write the photos of a folder, without annotations, ordered by key.

    Arguments and errors are those of `build_coco_shards`.
    """
    report = BuildReport()
    with hold_directory(Path(directory), give=GIVE_OUT), ShardWriter(directory, samples_per_shard) as writer:
        for photo in folder:
            try:
                data = read_photo(photo.path)
                image = decode_image(data, str(photo.path))
            except DataError as error:
                _note_bad(report, photo.key, error, allowed=max_bad_share * len(folder))
            else:
                stored = store_photo(data, image, max_side)
                writer.add(photo.key, stored.data, None, suffix=stored.suffix)
                report.num_samples += 1
            if advance is not None:
                advance(1)
    return report


def store_photo(data: bytes, image: np.ndarray, max_side: int | None = None) -> StoredPhoto:
    """Return a photo's file unchanged if it is upright and no larger than `max_side`, else encode it again as JPEG.

    Args:
        data: the photo's file.
        image: the decoded photo, uint8 (H, W, 3), in the orientation that is wanted.
    """
    hw = image.shape[:2]
    if max_side is not None and max(hw) > max_side:
        image = resize_longest_side(image, max_side)
    elif is_upright(data) and (suffix := photo_suffix(data)):
        return StoredPhoto(data, suffix, hw)
    return StoredPhoto(encode_jpeg(image), "jpg", image.shape[:2])


def encode_jpeg(image: np.ndarray) -> bytes:
    """Encode a photo, uint8 (H, W, 3) RGB, as a JPEG of high quality."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _rows(photo: AnnotatedPhoto, stored_hw: HW, report: BuildReport) -> list[dict[str, Any]]:
    """Return SA-1B's `annotations` of a photo. Masks that vanish when they are reduced are noted in the report."""
    rows = []
    for instance in photo.instances:
        resized = instance if stored_hw == photo.hw else _resize_instance(instance, photo.hw, stored_hw)
        if resized is None:
            report.empty[instance.id] = photo.key
            continue
        rows.append(
            annotation_row(
                resized.id,
                resized.rle,
                stored_hw,
                bbox_xyxy=resized.bbox_xyxy,
                area=resized.area,
                category_id=resized.category_id,
            )
        )
    return rows


def _resize_instance(instance: Instance, hw: HW, resized: HW) -> Instance | None:
    """Resize an instance with its photo. Return None if it covers no pixel by more than half."""
    coverage = Image.fromarray(decode_mask(instance.rle) * np.uint8(MAX_COVERAGE))
    reduced = np.asarray(coverage.resize((resized[1], resized[0]), Image.Resampling.BOX)) > MAX_COVERAGE // 2
    if not reduced.any():
        return None
    rle = encode_mask(reduced)
    scale_x, scale_y = resized[1] / hw[1], resized[0] / hw[0]
    x0, y0, x1, y1 = instance.bbox_xyxy
    box = (x0 * scale_x, y0 * scale_y, x1 * scale_x, y1 * scale_y)
    return instance._replace(rle=rle, bbox_xyxy=box, area=float(rle_area(rle)))


def _note_bad(report: BuildReport, key: str, error: DataError, *, allowed: float) -> None:
    report.bad[key] = str(error)
    if len(report.bad) > allowed:
        raise DataError(
            f"{len(report.bad)} photos cannot be used, more than the allowed share of the set (--max-bad-share); "
            f"the last: {error}"
        ) from error
