"""Prediction over photos: each is read, answered, written and recorded in turn. A stopped one goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from distill.data.images import decode_image, read_photo
from distill.errors import DataError, DistillError
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
    files: the files of all photos together. num_empty: objects whose mask has no pixel.
    """

    photos: list[PhotoRecord] = field(default_factory=list)
    num_before: int = 0
    failed: list[str] = field(default_factory=list)
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
    result, answering = Predicted(), _OnDemand(load, options)
    for photo in photos:
        prompts = [] if options.everything else asked.of(photo)
        if not prompts and not options.everything:
            advance(1)
            continue
        try:
            data = read_photo(photo.path)
            key = key_of_work(data, prompts, [model_key, {**asdict(options), "formats": PNG in options.formats}])
            done = record.finished(photo.name, key) if record else None
            if done is None:
                pixels = decode_image(data, str(photo.path))
                _check(prompts, pixels, photo, alone=len(photos) == 1)
                objects = answering.answer(pixels, prompts)
            else:
                result.num_before += 1
        except DataError as error:
            if record is None:
                raise
            result.failed.append(str(error))
            advance(1)
            continue
        if done is None:
            files = write_pictures(pixels, objects, out, photo.name) if PNG in options.formats else []
            done = _recorded(photo, key, pixels, objects, [file.relative_to(out).as_posix() for file in files])
            if record:
                record.add(done)
        result.photos.append(done)
        advance(1)
    _write_formats(result, out, options.formats)
    return result


class _OnDemand:
    """The model, which is loaded when a photo first needs it: a finished or mistaken command stays quick."""

    def __init__(self, load: Callable[[], Promptable], options: Options) -> None:
        self._load, self._options = load, options
        self._answering: Answering | None = None

    def answer(self, pixels: np.ndarray, prompts: Sequence[ObjectPrompt]) -> list[FoundObject]:
        """Answer the prompts, or find everything."""
        if self._answering is None:
            self._answering = Answering(self._load(), multimask=self._options.multimask, tile=self._options.tile)
        if self._options.everything is not None:
            return self._answering.everything(pixels, self._options.everything)
        return self._answering.answer(pixels, prompts)


def _check(prompts: Sequence[ObjectPrompt], pixels: np.ndarray, photo: NamedPhoto, *, alone: bool) -> None:
    for prompt in prompts:
        if wrong := check_prompt(prompt, (pixels.shape[0], pixels.shape[1])):
            raise DataError(wrong if alone else f"{photo.path}: {wrong}")


def _recorded(
    photo: NamedPhoto, key: str, pixels: np.ndarray, objects: Sequence[FoundObject], files: list[str]
) -> PhotoRecord:
    height, width = pixels.shape[:2]
    rows = [record_object(found) for found in objects]
    return PhotoRecord(photo.name, photo.shown, key, height, width, rows, files)


def _write_formats(result: Predicted, out: Path, formats: Sequence[str]) -> None:
    """Write the files that hold all photos, and the labels."""
    if not result.photos:
        return
    if {COCO, POLYGONS, YOLO} & set(formats):
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DistillError(f"{out}: cannot be made ({error.strerror}); choose another --out") from error
    if COCO in formats:
        result.num_empty = write_coco(result.photos, out / COCO_FILE)
        result.files.append(out / COCO_FILE)
    if POLYGONS in formats:
        result.num_empty = write_coco(result.photos, out / POLYGONS_FILE, polygons=True)
        result.files.append(out / POLYGONS_FILE)
    if YOLO in formats:
        result.num_empty = write_yolo(result.photos, out / LABELS_FOLDER)
        result.files.append(out / LABELS_FOLDER)
