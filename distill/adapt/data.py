"""The data of an adaptation: photos with their masks, checked, and split into a training and a validation part."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from distill.data.coco import CocoFile, CocoSet, as_json
from distill.data.folder import FolderPhoto, PhotoFolder
from distill.data.mask_folder import read_mask_folder
from distill.errors import DataError
from distill.files import hash_file, write_text
from distill.text import first_few, progress_bar

ANNOTATIONS_FILE = "annotations.json"
MIN_TRAIN_PHOTOS = 4  # of which a training makes sense at all
MIN_VAL_PHOTOS = 2  # intervals come from resampling photos


@dataclass(frozen=True)
class AnnotatedPhotos:
    """Photos with masks. photos: the folder. content: of a COCO-format file, with the photos alone that have masks."""

    photos: Path
    content: CocoFile

    def __len__(self) -> int:
        return len(self.content.images)

    @property
    def num_masks(self) -> int:
        """How many masks all photos have."""
        return len(self.content.annotations)

    def select(self, numbers: Iterable[int]) -> AnnotatedPhotos:
        """Return some of the photos, by their places in the content, with their masks."""
        images = [self.content.images[number] for number in sorted(numbers)]
        ids = {image.id for image in images}
        annotations = [row for row in self.content.annotations if row.image_id in ids]
        return AnnotatedPhotos(
            self.photos, msgspec.structs.replace(self.content, images=images, annotations=annotations)
        )

    def with_few_masks(self, most: int, seed: int) -> AnnotatedPhotos:
        """Return the photos with at most `most` masks each, drawn at random."""
        rows = self.content.annotations
        taken: Counter[int] = Counter()
        kept = []
        for number in np.random.default_rng(seed).permutation(len(rows)):
            image_id = rows[number].image_id
            if taken[image_id] < most:
                taken[image_id] += 1
                kept.append(int(number))
        annotations = [rows[number] for number in sorted(kept)]
        return AnnotatedPhotos(self.photos, msgspec.structs.replace(self.content, annotations=annotations))

    def write(self, path: Path) -> None:
        """Write the COCO-format file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(as_json(self.content)))


def read_annotated(
    photos: Path, annotations: Path, *, connected_regions: bool = False, skip_unannotated: bool = False
) -> tuple[AnnotatedPhotos, list[str]]:
    """Read photos with their masks.

    Args:
        photos: a folder of photos.
        annotations: a COCO-format file, or a folder of masks (`distill.data.mask_folder`).
        connected_regions: of a folder of masks: whether each connected region is an object of its own.
        skip_unannotated: leave photos without a mask out, which are otherwise an error.
    Returns:
        the photos that have masks, and lines on what was left out.
    Raises:
        DataError: a photo has no mask, a mask fits no photo, or a file is damaged.
    """
    masks = annotations.resolve()
    folder = [photo for photo in PhotoFolder(photos) if masks not in photo.path.resolve().parents]
    if annotations.is_dir():
        with progress_bar("masks", len(folder)) as advance:
            content = read_mask_folder(
                folder, photos, annotations, connected_regions=connected_regions, advance=advance
            )
        coco_set = CocoSet(photos, annotations, content=content)
    elif connected_regions:
        raise DataError(f"--connected-regions is for a folder of masks; {annotations} is none")
    else:
        coco_set = CocoSet(photos, annotations)
    return _with_masks(coco_set, folder, skip_unannotated=skip_unannotated)


def _with_masks(
    coco_set: CocoSet, folder: Sequence[FolderPhoto], *, skip_unannotated: bool
) -> tuple[AnnotatedPhotos, list[str]]:
    """Return the photos of a set that have masks, and lines on what was left out. Raises as `read_annotated`."""
    photos, annotations = coco_set.images_dir, coco_set.annotations_file
    annotated = {photo.key for photo in coco_set if photo.instances}  # reads every mask
    ids = coco_set.image_ids
    listed = {(photos / str(image.file_name)).resolve() for image in coco_set.content.images}
    unlisted = [photo.key for photo in folder if photo.path.resolve() not in listed]
    bare = [*(key for key in ids if key not in annotated), *unlisted]
    if bare and not (skip_unannotated and annotated):
        num_photos = len(ids) + len(unlisted)
        mend = "annotate them, or leave them out by --skip-unannotated" if annotated else "give masks of these photos"
        raise DataError(
            f"{photos}: {len(bare)} of {num_photos} photos have no mask in {annotations}: {first_few(bare)}; {mend}"
        )
    kept = {ids[key] for key in annotated}
    rows = [
        row
        for row in coco_set.content.annotations
        if row.image_id in kept and row.id not in coco_set.empty and not row.iscrowd
    ]
    images = [image for image in coco_set.content.images if image.id in kept]
    notes = []
    if coco_set.empty:
        named = first_few([f"{identity} (photo '{key}')" for identity, key in coco_set.empty.items()])
        notes.append(f"left out: {len(coco_set.empty)} masks without a pixel: annotations {named}")
    if coco_set.num_crowd:
        notes.append(f"left out: {coco_set.num_crowd} crowd regions, which are no single objects")
    if bare:
        notes.append(f"left out: {len(bare)} photos without a mask: {first_few(bare)}")
    return AnnotatedPhotos(photos, msgspec.structs.replace(coco_set.content, images=images, annotations=rows)), notes


def split(found: AnnotatedPhotos, *, val_share: float, seed: int) -> tuple[AnnotatedPhotos, AnnotatedPhotos]:
    """Split photos at random into a training and a validation part. The same seed gives the same split.

    Raises:
        DataError: there are too few photos for both parts.
    """
    num_val = max(MIN_VAL_PHOTOS, round(val_share * len(found)))
    if len(found) - num_val < MIN_TRAIN_PHOTOS:
        raise DataError(
            f"{found.photos}: {len(found)} annotated photos are too few to hold {num_val} back for validation "
            f"(at least {MIN_TRAIN_PHOTOS} must be left to train on); annotate more, or hold back fewer by --val-share"
        )
    by_name = sorted(range(len(found)), key=lambda number: str(found.content.images[number].file_name))
    order = [by_name[number] for number in np.random.default_rng(seed).permutation(len(found))]
    return found.select(order[num_val:]), found.select(order[:num_val])


def check_parts(train: AnnotatedPhotos, val: AnnotatedPhotos) -> None:
    """Check a training and a validation part that were given as such.

    Raises:
        DataError: a part has too few photos, or a photo is in both parts.
    """
    for part, least, option in ((train, MIN_TRAIN_PHOTOS, "PHOTOS"), (val, MIN_VAL_PHOTOS, "--val-photos")):
        if len(part) < least:
            raise DataError(f"{part.photos}: {len(part)} annotated photos are too few; {option} needs {least}")
    if both := _shared_photos(train, val):
        raise DataError(
            f"{len(both)} photos are in {train.photos} and in {val.photos}: {first_few(both)}; a student that has seen "
            "a photo is not judged on it: remove them from one"
        )


def _shared_photos(train: AnnotatedPhotos, val: AnnotatedPhotos) -> list[str]:
    """Return the names of the validation photos whose bytes are also those of a training photo."""
    by_size: dict[int, list[Path]] = {}
    for path in _paths(train):
        by_size.setdefault(path.stat().st_size, []).append(path)
    shared = []
    for path in _paths(val):
        same_size = by_size.get(path.stat().st_size, [])
        if same_size and hash_file(path) in {hash_file(other) for other in same_size}:
            shared.append(path.name)
    return shared


def _paths(part: AnnotatedPhotos) -> Sequence[Path]:
    return [part.photos / str(image.file_name) for image in part.content.images]
