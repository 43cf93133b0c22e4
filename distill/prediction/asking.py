"""What is asked about photos: prompts of objects, and the two files that hold them for many photos."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Union

import msgspec
from msgspec import Meta

from distill.data.coco import CocoImage
from distill.data.detections import read_detections
from distill.errors import DataError
from distill.geometry import HW
from distill.outside import Coordinate, Identity, Name, inside, read_json
from distill.prediction.photos import NamedPhoto
from distill.prompts.types import POSITIVE
from distill.text import first_few

MEND = (
    'prompts are a list of objects such as {"photo": "a.jpg", "box": [x0, y0, x1, y1]} or {"photo": "a.jpg", '
    '"points": [[x, y]], "labels": [1]}, in pixels of the photo: correct this place'
)
IDS_MEND = "a COCO-format JSON with 'images' is needed, whose ids the detections name"
MOST_POINTS = 1000  # of an object


@dataclass(frozen=True)
class ObjectPrompt:
    """What points at one object, in original pixels.

    box_xyxy: four numbers or None. points_xy, labels: K clicks, 1 on the object and 0 off it. mask: the file of an
    earlier answer. category_id: of the object, for the files that name one. score: a detector's, or None.
    """

    box_xyxy: tuple[float, ...] | None = None
    points_xy: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    mask: Path | None = None
    category_id: int = 1
    score: float | None = None

    @property
    def extent_xyxy(self) -> tuple[float, float, float, float] | None:
        """The smallest box around box and clicks, or None of a mask alone."""
        corners = list(self.points_xy)
        if self.box_xyxy is not None:
            x0, y0, x1, y1 = self.box_xyxy
            corners += [(x0, y0), (x1, y1)]
        if not corners:
            return None
        xs, ys = zip(*corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)


@dataclass
class Asked:
    """The prompts of a command.

    everywhere: prompts for each photo. by_photo: further ones by a photo's name. notes: what a user must know, such
    as prompts of photos that are not given.
    """

    everywhere: tuple[ObjectPrompt, ...] = ()
    by_photo: dict[str, list[ObjectPrompt]] = field(default_factory=lambda: defaultdict(list))
    notes: list[str] = field(default_factory=list)

    def of(self, photo: NamedPhoto) -> list[ObjectPrompt]:
        """Return the prompts of a photo."""
        return [*self.everywhere, *self.by_photo.get(photo.name, [])]


class PromptRow(msgspec.Struct, forbid_unknown_fields=True):
    """An object of a prompts JSON. mask: a file below the JSON's folder."""

    photo: Name
    box: Union[Annotated[list[Coordinate], Meta(min_length=4, max_length=4)], None] = None
    points: Annotated[
        list[Annotated[list[Coordinate], Meta(min_length=2, max_length=2)]], Meta(max_length=MOST_POINTS)
    ] = []
    labels: Annotated[list[Annotated[int, Meta(ge=0, le=1)]], Meta(max_length=MOST_POINTS)] = []
    mask: Union[Name, None] = None
    category_id: Identity = 1


class ImageIds(msgspec.Struct):
    """A COCO-format JSON, of which only the images are read."""

    images: list[CocoImage]


def read_prompts(path: Path, photos: Sequence[NamedPhoto]) -> Asked:
    """Read a prompts JSON. A photo is named by its file, by its path below the given folder, or without suffix.

    Raises:
        DataError: the file is no such JSON, an object has no prompt, or none is of these photos.
    """
    rows = read_json(path, list[PromptRow], "prompts", MEND, lax=True)
    names, asked, foreign = _names(photos), Asked(), []
    for number, row in enumerate(rows):
        origin = f"{path}: object {number}"
        labels = row.labels or [POSITIVE] * len(row.points)
        if len(labels) != len(row.points):
            raise DataError(f"{origin}: {len(labels)} labels for {len(row.points)} points; {MEND}")
        if row.box is None and not row.points and row.mask is None:
            raise DataError(f"{origin}: it has no box, points or mask; {MEND}")
        prompt = ObjectPrompt(
            None if row.box is None else tuple(row.box),
            tuple((x, y) for x, y in row.points),
            tuple(labels),
            None if row.mask is None else inside(path.parent, row.mask, origin),
            row.category_id,
        )
        if (name := names.get(row.photo)) is None:
            foreign.append(row.photo)
        else:
            asked.by_photo[name].append(prompt)
    return _counted(asked, path, len(rows), foreign, photos)


def read_detector_boxes(
    path: Path, photos: Sequence[NamedPhoto], *, images: Path | None = None, min_score: float = 0.0
) -> Asked:
    """Read a detector's boxes in COCO's results format.

    Args:
        images: a COCO-format JSON that says which file each image id is; without it an id is a file's name, with or
            without suffix and leading zeros.
        min_score: boxes below it are left out, and counted in the notes.
    Raises:
        DataError: a file is not of its format, or no box is on these photos.
    """
    rows = read_detections(path)
    names = _names(photos)
    if images is not None:
        for image in read_json(images, ImageIds, "annotations", IDS_MEND, lax=True).images:
            file = image.file_name or (image.coco_url or "").rpartition("/")[2]
            if (name := names.get(file) or names.get(Path(file).name)) is not None:
                names[str(image.id)] = name
    asked, foreign, num_low = Asked(), [], 0
    for row in rows:
        text = str(row.image_id)
        if (name := names.get(text) or names.get(text.lstrip("0"))) is None:
            foreign.append(text)
        elif row.score < min_score:
            num_low += 1
        else:
            x, y, width, height = row.bbox
            prompt = ObjectPrompt((x, y, x + width, y + height), category_id=row.category_id, score=row.score)
            asked.by_photo[name].append(prompt)
    if num_low:
        asked.notes.append(f"{num_low:,} boxes of {path} have a score below {min_score:g} and are left out")
        if not asked.by_photo:
            raise DataError(f"{path}: all {num_low:,} boxes on these photos have a score below {min_score:g}")
    return _counted(asked, path, len(rows), foreign, photos)


def check_prompt(prompt: ObjectPrompt, hw: HW) -> str | None:
    """Return what is wrong with a prompt on a photo of a height and width, or None."""
    height, width = hw
    size = f"the photo, which is {width} pixels wide and {height} high"
    for x, y in prompt.points_xy:
        if not (0 <= x <= width and 0 <= y <= height):
            return f"--point {x:g} {y:g} lies outside {size}"
    if prompt.box_xyxy is not None:
        x0, y0, x1, y1 = prompt.box_xyxy
        if not (x0 < x1 and y0 < y1):
            return f"--box {x0:g} {y0:g} {x1:g} {y1:g} is empty: give left, top, right, bottom"
        if not (x0 < width and y0 < height and x1 > 0 and y1 > 0):
            return f"--box {x0:g} {y0:g} {x1:g} {y1:g} lies outside {size}"
    return None


def _names(photos: Sequence[NamedPhoto]) -> dict[str, str]:
    """Return the name of a photo by each text that may stand for it.

    Its own name and path come first. A file's name, with or without suffix and leading zeros, stands for a photo if it
    fits no other.
    """
    exact = {text: photo.name for photo in photos for text in (photo.name, photo.shown, str(photo.path))}
    loose: dict[str, set[str]] = defaultdict(set)
    for photo in photos:
        file = Path(photo.shown)
        for text in (file.name, file.stem, file.stem.lstrip("0")):
            loose[text].add(photo.name)
    return {text: min(names) for text, names in loose.items() if text and len(names) == 1} | exact


def _counted(asked: Asked, path: Path, num: int, foreign: list[str], photos: Sequence[NamedPhoto]) -> Asked:
    """Note prompts without photo and photos without prompt. Raise DataError when nothing belongs together."""
    others = sorted(set(foreign))
    if not asked.by_photo:
        raise DataError(
            f"{path}: none of its {num:,} prompts is of a given photo (it names {first_few(others)}); give those "
            "photos, or prompts of these"
        )
    if others:
        asked.notes.append(f"{len(foreign):,} prompts of {path} are of photos that are not given: {first_few(others)}")
    if without := [photo.name for photo in photos if photo.name not in asked.by_photo]:
        asked.notes.append(f"{len(without):,} photos have no prompt in {path}: {first_few(without)}")
    return asked
