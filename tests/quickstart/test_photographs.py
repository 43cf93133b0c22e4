from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from distill.data.coco import CocoSet
from distill.data.rle import decode_mask
from distill.errors import DataError
from distill.quickstart import photographs
from distill.quickstart.report import PICTURED


def test_a_part_holds_so_many_photos_and_all_of_their_masks(tmp_path: Path) -> None:
    part = photographs.write_part("val", 5, tmp_path / "part.json")
    complete = photographs.packaged("val")
    masks = {photo.key: len(photo.instances) for photo in CocoSet(complete.images, complete.annotations)}
    chosen = {photo.key: len(photo.instances) for photo in CocoSet(part.images, part.annotations)}
    assert len(chosen) == 5 and chosen == {key: masks[key] for key in chosen}
    everything = photographs.write_part("val", len(masks), tmp_path / "all.json")
    assert json.loads(everything.annotations.read_text()) == json.loads(complete.annotations.read_text())


def test_the_photographs_to_look_at_are_trained_on_without_their_masks(tmp_path: Path) -> None:
    part = photographs.write_part("train", 3, tmp_path / "part.json")
    photos = {photo.key: photo for photo in CocoSet(part.images, part.annotations)}
    looked_at = {key for key, _ in PICTURED}
    assert len(photos) == 3 + len(looked_at) and looked_at < set(photos)
    for key, photo in photos.items():
        assert photo.load().shape[:2] == photo.hw and bool(photo.instances) == (key not in looked_at)


def test_more_photos_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'nuclei/val' has 24 photos, not 25; give a smaller number"):
        photographs.write_part("val", 25, tmp_path / "part.json")
    assert not list(tmp_path.iterdir())


def test_an_installation_without_the_photos(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entry = photographs.catalogue_files()["nuclei"]
    (tmp_path / "nuclei.yaml").write_text(entry.read_text())
    (tmp_path / "nuclei").mkdir()
    monkeypatch.setattr(photographs, "catalogue_files", lambda: {"nuclei": tmp_path / "nuclei.yaml"})
    monkeypatch.setattr("distill.data.catalogue.set_folder", lambda root, name: tmp_path / name)
    with pytest.raises(DataError, match="'nuclei': this installation lacks .*; install the package again"):
        photographs.packaged("val")


def test_the_masks_drawn_by_hand_lie_on_their_photographs() -> None:
    found = photographs.gallery()
    masks = {
        (photo.key, instance.id): (photo, instance)
        for photo in CocoSet(found.images, found.annotations)
        for instance in photo.instances
    }
    assert {key for key, _ in masks} == {"astronaut", "chelsea", "coffee", "rocket"}
    assert set(PICTURED) <= set(masks)
    for photo, instance in masks.values():
        mask = decode_mask(instance.rle).astype(bool)
        assert photo.load().shape[:2] == mask.shape and mask.any()
        assert abs(mask.sum() / instance.area - 1) < 0.05  # the polygon's own area, as COCO has it
    photo, patch = masks["astronaut", 8]
    inside, mask = photo.load().astype(int), decode_mask(patch.rle).astype(bool)
    blue = inside[..., 2] - inside[..., 0]  # the patch is blue, the suit around it orange
    assert np.median(blue[mask]) > 0 > np.median(blue[~mask & _near(mask)])


def _near(mask: np.ndarray) -> np.ndarray:
    """Return the box of a mask."""
    ys, xs = np.nonzero(mask)
    near = np.zeros_like(mask)
    near[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] = True
    return near
