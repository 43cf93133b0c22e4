"""The instances that the gallery of a comparison shows, with the mask of every model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

KINDS = ("worst", "median", "best")
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
    return instance_rows(comparison, protocol, list(chosen), why=chosen, images=images, annotations=annotations)


def instance_rows(
    comparison: Comparison,
    protocol: ProtocolKey,
    chosen: Sequence[int],
    *,
    why: Mapping[int, str] | None = None,
    images: Path | None,
    annotations: Path | None,
) -> Iterator[GalleryRow]:
    """Yield some instances of a protocol with the mask of every model that was evaluated by it.

    Args:
        chosen: indices of the instances, in the order of the evaluations.
        why: of each index, why it was chosen; None: it is not said.
        images, annotations: where the photos are; None: where the first evaluation read them.
    Raises:
        DistillError: photos, annotations or masks are missing, or are not those that were evaluated.
    """
    if not chosen:
        return
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
            prompt_title=protocol.full_title,
            size=size_of(first.instances.areas[i]),
            why=(why or {}).get(i, ""),
            caption=f"{key[0]}, annotation {key[1]}, {first.instances.areas[i]:,.0f} pixels",
        )


def choose_instances(ious: np.ndarray, areas: np.ndarray, num_rows: int) -> dict[int, str]:
    """Choose the instances to show: of each size as many of the worst, the median and the best, by the models' mean.

    Args:
        ious: (M, N), N instances by M models.
        areas: (N,), in original pixels.
        num_rows: the most instances.
    Returns:
        of each chosen instance, by its index, what it is an example of. The order is that of the gallery: the worst,
        the median and the best of each size in turn, then the next of each.
    """
    mean = ious.mean(0)
    sizes = np.array([size_of(area) for area in areas])
    groups = sorted((np.flatnonzero(sizes == size).tolist() for size in set(sizes.tolist())), key=lambda g: (len(g), g))
    chosen: list[tuple[int, int, int, int]] = []  # turn, group and kind, which give the order; and the index
    left = num_rows
    for rank, group in enumerate(groups):  # larger groups use what a small group leaves
        order = sorted(group, key=lambda i: mean[i])
        picked = _worst_median_best(order, min(left // (len(groups) - rank), len(order)))
        left -= sum(map(len, picked))
        for kind, indices in enumerate(picked):
            chosen += [(turn, rank, kind, i) for turn, i in enumerate(indices)]
    return {i: f"{KINDS[kind]} of {sizes[i]}" for _, _, kind, i in sorted(chosen)}


def _worst_median_best(order: Sequence[int], num: int) -> tuple[list[int], list[int], list[int]]:
    """Return `num` of a sequence that begins with the worst: as many of each kind, the clearest examples first."""
    num_worst, num_best = (num + 2) // 3, (num + 1) // 3
    num_median = num - num_worst - num_best
    rest = order[num_worst : len(order) - num_best]
    middle = sorted(range(len(rest)), key=lambda i: abs(2 * i - len(rest) + 1))[:num_median]
    best = [] if not num_best else list(order[-num_best:])[::-1]
    return list(order[:num_worst]), [rest[i] for i in middle], best


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
    folder, file = images or evaluation.metrics.get("images"), annotations or evaluation.metrics.get("annotations")
    if folder is None or file is None:
        raise RunError(f"{evaluation.directory}: it does not say where its photos are; give --images and --annotations")
    coco_set = CocoSet(folder, file)
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
