"""What is finished of a prediction over many photos: one line of JSON for each, so that a stopped one goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Union

import msgspec
from msgspec import Meta

from distill.data.detections import MOST_SCORE
from distill.data.rle import RLE, check_code
from distill.errors import DataError, DistillError
from distill.files import write_errors
from distill.outside import Coordinate, Identity, Name, Side, inside, parse_json, read_bytes
from distill.prediction.answering import FoundObject
from distill.prediction.asking import ObjectPrompt

RECORD_FILE = "predictions.jsonl"
MEND = "remove it, and the photos are predicted again"
Estimate = Annotated[float, Meta(ge=-1e3, le=1e3)]  # of an IoU: an untrained model's may be anything


class ObjectRecord(msgspec.Struct):
    """An object: its prompt in original pixels, and K candidate masks with the model's estimate of their IoU."""

    masks: Annotated[list[RLE], Meta(min_length=1, max_length=4)]
    predicted_iou: Annotated[list[Estimate], Meta(min_length=1, max_length=4)]
    box: Union[list[Coordinate], None] = None
    points: list[list[Coordinate]] = []
    labels: list[int] = []
    category_id: Identity = 1
    score: Union[Annotated[float, Meta(ge=-MOST_SCORE, le=MOST_SCORE)], None] = None
    stability: Union[Estimate, None] = None

    @property
    def best(self) -> int:
        """The number of the mask with the highest predicted IoU."""
        return max(range(len(self.masks)), key=lambda k: self.predicted_iou[k])


class PhotoRecord(msgspec.Struct):
    """A finished photo. key: of the model, photo, prompts and options, so that a changed one is done again.

    files: below the output directory.
    """

    name: Name
    file: Name
    key: Name
    height: Side
    width: Side
    objects: list[ObjectRecord]
    files: list[Name] = []


def record_object(found: FoundObject) -> ObjectRecord:
    """Return the record of an object."""
    prompt = found.prompt
    return ObjectRecord(
        masks=list(found.masks),
        predicted_iou=[round(iou, 6) for iou in found.predicted_iou],
        box=None if prompt.box_xyxy is None else list(prompt.box_xyxy),
        points=[list(point) for point in prompt.points_xy],
        labels=list(prompt.labels),
        category_id=prompt.category_id,
        score=prompt.score,
        stability=found.stability,
    )


def key_of_work(photo: bytes, prompts: Sequence[ObjectPrompt], options: object) -> str:
    """Return the hash of what decides the answers on a photo: its bytes, its prompts, the model and the options."""
    digest = hashlib.sha256(photo)
    for prompt in prompts:
        content = {**asdict(prompt), "mask": None}
        digest.update(json.dumps(content).encode())
        if prompt.mask is not None:
            digest.update(read_bytes(prompt.mask, "mask", "restore it"))
    digest.update(json.dumps(options).encode())
    return digest.hexdigest()


def _read_photo(text: bytes, origin: str, out: Path) -> PhotoRecord:
    """Read a line of a record. Raises DataError when it is damaged, or its masks are not of the photo's size."""
    photo = parse_json(text, PhotoRecord, origin, MEND)
    for file in [photo.name, *photo.files]:
        inside(out, file, origin)
    for one in photo.objects:
        if len(one.masks) != len(one.predicted_iou):
            raise DataError(f"{origin}: {len(one.masks)} masks have {len(one.predicted_iou)} predicted IoUs; {MEND}")
        for code in one.masks:
            if list(code["size"]) != [photo.height, photo.width]:
                raise DataError(f"{origin}: a mask is {code['size']}, the photo {[photo.height, photo.width]}; {MEND}")
            check_code(code, origin)
    return photo


class Record:
    """The finished photos of an output directory, by name. A photo that was done again counts as it was done last."""

    def __init__(self, out: Path) -> None:
        self.out, self.path = out, out / RECORD_FILE
        self.photos: dict[str, PhotoRecord] = {}
        self._end = 0  # of the complete lines: the process may have died while it wrote the last one
        if self.path.exists():
            data = read_bytes(self.path, "record of predictions", MEND)
            self._end = data.rfind(b"\n") + 1
            for number, text in enumerate(data[: self._end].splitlines(), start=1):
                photo = _read_photo(text, f"{self.path}: line {number}", out)
                self.photos[photo.name] = photo

    def finished(self, name: str, key: str) -> PhotoRecord | None:
        """Return the record of a photo whose work is that of `key`, if all of its files are there."""
        found = self.photos.get(name)
        if found is None or found.key != key or not all((self.out / file).is_file() for file in found.files):
            return None
        return found

    def add(self, photo: PhotoRecord) -> None:
        """Append a photo. Raises DistillError when the file cannot be written."""
        self.photos[photo.name] = photo
        with write_errors(self.path, DistillError, elsewhere="another --out", note="finished photos are kept"):
            self.out.mkdir(parents=True, exist_ok=True)
            with self.path.open("r+b" if self.path.exists() else "xb") as file:
                file.seek(self._end)
                file.truncate()
                self._end += file.write(msgspec.json.encode(photo) + b"\n")
