"""The instances that the gallery of a comparison shows, with the mask of every model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from distill.comparison.join import Comparison
from distill.data.coco import AnnotatedPhoto, CocoSet
from distill.data.rle import RLE, decode_mask, to_rle
from distill.errors import RunError
from distill.evaluation.finished import FinishedEvaluation, ProtocolKey
from distill.evaluation.record import INSTANCES_FILE, RESULTS_FILE
from distill.evaluation.scoring.metrics import LARGE_AREA, SMALL_AREA
from distill.evaluation.written import InstanceLine, RunLengths, read_lines, read_results
from distill.pages.mask_gallery import GalleryRow

Key = tuple[str, int | None]  # photo and annotation id of an instance


def gallery_rows(
    comparison: Comparison, protocol: ProtocolKey, *, num_rows: int, images: Path | None, annotations: Path | None
) -> Iterator[GalleryRow]:
    """Yield instances of a protocol with the mask of every model that was evaluated by it.

    The arguments and errors are those of `instance_rows`; num_rows: the most instances, see `choose_instances`.
    """
    found = comparison.evaluations(protocol)
    ious = np.stack([evaluation.instances.ious for _, evaluation in found])  # (M, N)
    chosen = choose_instances(ious, found[0][1].instances.areas, num_rows)
    return instance_rows(comparison, protocol, chosen, images=images, annotations=annotations)


def instance_rows(
    comparison: Comparison,
    protocol: ProtocolKey,
    chosen: Sequence[int],
    *,
    images: Path | None,
    annotations: Path | None,
) -> Iterator[GalleryRow]:
    """Yield some instances of a protocol with the mask of every model that was evaluated by it.

    Args:
        chosen: indices of the instances, in the order of the evaluations.
        images, annotations: where the photos are; None: where the first evaluation read them.
    Raises:
        DistillError: photos, annotations or masks are missing, or are not those that were evaluated.
    """
    found = comparison.evaluations(protocol)
    first = found[0][1]
    ious = np.stack([evaluation.instances.ious for _, evaluation in found])  # (M, N)
    keys = [first.instances.keys[i] for i in chosen]
    photos = _photos(first, keys, images, annotations)
    prompts = dict(_prompts(first.directory / INSTANCES_FILE, keys))
    masks = {model.label: (evaluation, _masks(evaluation, keys)) for model, evaluation in found}
    for i, key in zip(chosen, keys, strict=True):
        photo = photos[key[0]]
        instance = next((instance for instance in photo.instances if instance.id == key[1]), None)
        if instance is None:
            raise RunError(
                f"{photo.path}: the annotations hold no instance {key[1]} of it; give those that were evaluated"
            )
        yield GalleryRow(
            photo=photo.load(),
            prompt=prompts[key],
            truth=decode_mask(instance.rle).astype(bool),
            masks={
                label: _decode(of_model[key], instance.rle, evaluation)
                for label, (evaluation, of_model) in masks.items()
            },
            ious={model.label: float(ious[m, i]) for m, (model, _) in enumerate(found)},
            prompt_title=protocol.title,
            size=size_of(first.instances.areas[i]),
            caption=f"{key[0]}, annotation {key[1]}, {first.instances.areas[i]:,.0f} pixels",
        )


def choose_instances(ious: np.ndarray, areas: np.ndarray, num_rows: int) -> list[int]:
    """Choose the instances to show: of each size the worst by the models' mean, and as many evenly over the others.

    Args:
        ious: (M, N), N instances by M models.
        areas: (N,), in original pixels.
        num_rows: the most instances.
    Returns:
        the indices of the instances, the worst first.
    """
    mean = ious.mean(0)
    sizes = np.array([size_of(area) for area in areas])
    groups = sorted((np.flatnonzero(sizes == size).tolist() for size in set(sizes.tolist())), key=len)
    chosen: list[int] = []
    for rank, group in enumerate(groups):  # larger groups use what a small group leaves
        order = sorted(group, key=lambda i: mean[i])
        share = min((num_rows - len(chosen)) // (len(groups) - rank), len(order))
        worst = (share + 1) // 2
        spread = np.linspace(worst, len(order) - 1, share - worst).round().astype(int)
        chosen += [*order[:worst], *(order[i] for i in spread)]
    return sorted(chosen, key=lambda i: mean[i])


def size_of(area: float) -> str:
    """Return COCO's word for an area in original pixels."""
    return "large" if area >= LARGE_AREA else "small" if area < SMALL_AREA else "medium"


def _photos(
    evaluation: FinishedEvaluation, keys: Sequence[Key], images: Path | None, annotations: Path | None
) -> dict[str, AnnotatedPhoto]:
    """Find the photos of some keys.

    Raises:
        DataError: the set cannot be read, as `CocoSet` says.
        RunError: a photo is not in the set.
    """
    wanted = {photo for photo, _ in keys}
    coco_set = CocoSet(images or evaluation.metrics["images"], annotations or evaluation.metrics["annotations"])
    found = {photo.key: photo for photo in coco_set if photo.key in wanted}
    if absent := sorted(wanted - set(found)):
        raise RunError(
            f"{coco_set.annotations_file}: names no photo {absent[0]}; give the annotations that were evaluated"
        )
    return found


def _masks(evaluation: FinishedEvaluation, keys: Sequence[Key]) -> dict[Key, RunLengths]:
    """Read the masks of an evaluation as run lengths, by key. Raises RunError when some are missing."""
    path = evaluation.directory / RESULTS_FILE
    wanted = set(keys)
    rows = read_results(path)
    found = {key: row.segmentation for row in rows if (key := (row.image, row.annotation_id)) in wanted}
    if len(found) < len(wanted):
        raise RunError(f"{path}: {len(wanted) - len(found)} of {len(wanted)} masks are missing; evaluate again")
    return found


def _decode(mask: RunLengths, truth: RLE, evaluation: FinishedEvaluation) -> np.ndarray:
    """Return a mask as bool (H, W). Raises DataError unless it has the photo's size."""
    height, width = truth["size"]
    code = RLE(size=list(mask.size), counts=mask.counts)
    checked = to_rle(code, (height, width), str(evaluation.directory / RESULTS_FILE))  # runs that a C library believes
    return np.zeros((height, width), bool) if checked is None else decode_mask(checked).astype(bool)


def _prompts(path: Path, keys: Sequence[Key]) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Yield the prompts of instances.jsonl of some keys. Raises RunError when a click lacks its label."""
    wanted = set(keys)
    for row in read_lines(path, InstanceLine):
        if (key := (row.image, row.annotation_id)) in wanted:
            if len(row.prompt.points_xy) != len(row.prompt.labels):
                raise RunError(f"{path}: {row.image}: clicks and labels differ in number; evaluate again")
            yield key, msgspec.to_builtins(row.prompt)
