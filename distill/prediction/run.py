"""Prediction over photos: each is read, answered, written and recorded in turn. A stopped one goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from distill.data.images import decode_image, read_photo
from distill.errors import DataError, DistillError
from distill.files import write_errors
from distill.models.predictor import Promptable
from distill.prediction.answering import Answering, Everything, FoundObject
from distill.prediction.asking import Asked, ObjectPrompt, check_prompt
from distill.prediction.formats import COCO_FILE, LABELS_FOLDER, POLYGONS_FILE, write_coco, write_yolo
from distill.prediction.photos import NamedPhoto
from distill.prediction.pictures import write_pictures
from distill.prediction.record import PhotoRecord, Record, key_of_work, record_object

PNG, COCO, POLYGONS, YOLO = "png", "coco", "polygons", "yolo"
FORMATS = (PNG, COCO, POLYGONS, YOLO)


@dataclass(frozen=True)
class Options:
    """How photos are predicted.

    multimask: three masks for each prompt; formats other than PNGs take the best by predicted IoU.
    tile: the side of the smallest tiles in pixels; 0: each photo is looked at as one.
    everything: the options of masks without prompts; None: the prompts are answered.
    formats: of FORMATS.
    """

    multimask: bool = False
    tile: int = 0
    everything: Everything | None = None
    formats: tuple[str, ...] = (PNG,)


@dataclass
class Predicted:
    """What came of a prediction.

    photos: the records of all photos, those that were finished before included, in order.
    num_before: how many were finished before. failed: a line for each photo that could not be predicted.
    num_outside: boxes of a detector that have no part of their photo. They are left out, and counted as they are found.
    files: the files of all photos together. num_empty: objects whose mask has no pixel.
    """

    photos: list[PhotoRecord] = field(default_factory=list)
    num_before: int = 0
    failed: list[str] = field(default_factory=list)
    num_outside: int = 0
    files: list[Path] = field(default_factory=list)
    num_empty: int = 0


def predict_photos(
    load: Callable[[], Promptable],
    photos: Sequence[NamedPhoto],
    asked: Asked,
    out: Path,
    options: Options,
    *,
    model_key: str = "",
    advance: Callable[[int], None] = lambda count: None,
) -> Predicted:
    """Predict photos and write the files of each format into `out`.

    With one photo a mistake ends the work; with several it costs its photo, and the others go on. Several photos are
    recorded in `out`, and what is recorded is not done again.

    Args:
        load: gives the model. It is called once, when the first photo needs it.
        asked: the prompts; not used with `options.everything`.
        model_key: says which model it is, for the record.
        advance: called with the number of photos that were done since its last call.
    Raises:
        DistillError: the only photo cannot be read or a prompt lies outside of it; or a file cannot be written.
    """
    record = Record(out) if len(photos) > 1 else None
    work = _Work(load, out, options, record, model_key)
    result = Predicted()
    for photo in photos:
        prompts = [] if options.everything else asked.of(photo)
        try:
            if prompts or options.everything:
                result.photos.append(work.do(photo, prompts, result))
        except DataError as error:
            if record is None:
                raise
            result.failed.append(str(error))
        advance(1)
    _write_formats(result, out, options.formats)
    return result


class _Work:
    """What is done with each photo. The model is loaded when one first needs it: a finished command stays quick.

    record: of several photos; None of a single one.
    """

    def __init__(
        self, load: Callable[[], Promptable], out: Path, options: Options, record: Record | None, model_key: str
    ) -> None:
        self._load, self._out, self._options, self._record = load, out, options, record
        self._settings = [model_key, {**asdict(options), "formats": PNG in options.formats}]
        self._answering: Answering | None = None

    def do(self, photo: NamedPhoto, prompts: Sequence[ObjectPrompt], result: Predicted) -> PhotoRecord:
        """Predict a photo, unless it is finished, and count in `result`. Raises DataError when that cannot be."""
        data = read_photo(photo.path)
        key = key_of_work(data, prompts, self._settings)
        if self._record and (done := self._record.finished(photo.name, key)) is not None:
            result.num_before += 1
            return done
        pixels = decode_image(data, str(photo.path))
        inside = _checked(prompts, pixels, "" if self._record is None else f"{photo.path}: ")
        result.num_outside += len(prompts) - len(inside)
        objects = self._answer(pixels, inside)
        files = write_pictures(pixels, objects, self._out, photo.name) if PNG in self._options.formats else []
        done = PhotoRecord(
            photo.name,
            photo.shown,
            key,
            height=pixels.shape[0],
            width=pixels.shape[1],
            objects=[record_object(found) for found in objects],
            files=[file.relative_to(self._out).as_posix() for file in files],
        )
        if self._record:
            self._record.add(done)
        return done

    def _answer(self, pixels: np.ndarray, prompts: Sequence[ObjectPrompt]) -> list[FoundObject]:
        if self._answering is None:
            self._answering = Answering(self._load(), multimask=self._options.multimask, tile=self._options.tile)
        if self._options.everything is not None:
            return self._answering.everything(pixels, self._options.everything)
        return self._answering.answer(pixels, prompts)


def _checked(prompts: Sequence[ObjectPrompt], pixels: np.ndarray, origin: str) -> list[ObjectPrompt]:
    """Return the prompts that lie on a photo. Raise DataError when one does not that a person gave."""
    inside = []
    for prompt in prompts:
        wrong = check_prompt(prompt, (pixels.shape[0], pixels.shape[1]))
        if wrong is None:
            inside.append(prompt)
        elif prompt.score is None:
            raise DataError(f"{origin}{wrong}")
    return inside


def _write_formats(result: Predicted, out: Path, formats: Sequence[str]) -> None:
    """Write the files that hold all photos, and the labels."""
    if not result.photos:
        return
    if {COCO, POLYGONS, YOLO} & set(formats):
        with write_errors(out, DistillError, elsewhere="another --out"):
            out.mkdir(parents=True, exist_ok=True)
    if COCO in formats:
        result.num_empty = write_coco(result.photos, out / COCO_FILE)
        result.files.append(out / COCO_FILE)
    if POLYGONS in formats:
        result.num_empty = write_coco(result.photos, out / POLYGONS_FILE, polygons=True)
        result.files.append(out / POLYGONS_FILE)
    if YOLO in formats:
        result.num_empty = write_yolo(result.photos, out / LABELS_FOLDER)
        result.files.append(out / LABELS_FOLDER)
