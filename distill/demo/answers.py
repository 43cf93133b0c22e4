"""What the served page asks for: photos are embedded by all models, and prompts answered by each in turn."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union

import msgspec
import numpy as np
from msgspec import Meta

from distill.data.images import decode_image
from distill.errors import DataError
from distill.models.predictor import Predictor, Promptable
from distill.outside import Coordinate, Line, parse_json
from distill.prediction.asking import ObjectPrompt, check_prompt
from distill.prompts.types import POSITIVE
from distill.quickstart.photographs import gallery

KEPT_PHOTOS = 8  # uploaded ones, whose embeddings are kept; SAM's take 4 MB each
MOST_POINTS = 200
MEND = "load the page again"


class Asked(msgspec.Struct):
    """A prompt of the page, in the photo's pixels. A box, or clicks, or both; labels: 1 on the object, 0 off it."""

    photo: Line
    box: Union[Annotated[list[Coordinate], Meta(min_length=4, max_length=4)], None] = None
    points: Annotated[
        list[Annotated[list[Coordinate], Meta(min_length=2, max_length=2)]], Meta(max_length=MOST_POINTS)
    ] = []
    labels: Annotated[list[Annotated[int, Meta(ge=0, le=1)]], Meta(max_length=MOST_POINTS)] = []


class UnknownPhotoError(DataError):
    """A photo that is not kept any more."""


@dataclass(frozen=True)
class ShownModel:
    """A model and its title on the page."""

    title: str
    model: Promptable


@dataclass(frozen=True)
class _Photo:
    width: int
    height: int
    predictors: list[Predictor]  # one for each model, with its embedding
    milliseconds: list[float]


class Demo:
    """Models with the photos that they have embedded. Threads may call it; one of them computes at a time.

    Args:
        models: one or two; the first is the student.
        photo: the encoded bytes of the photo to start with. It is kept as long as the demo lives.
    """

    def __init__(self, models: Sequence[ShownModel], photo: bytes) -> None:
        self.models, self.first_photo = list(models), photo
        self._photos: OrderedDict[str, _Photo] = OrderedDict()
        self._turn = threading.Lock()  # two at once would take longer, and the shown times would be of both
        for shown in self.models:  # the first run of a model takes longer than all others
            self._predictors([shown], decode_image(photo, "the packaged photo"))
        self._first = self.add_photo(photo)

    def start(self) -> dict[str, Any]:
        """Return the models' titles and the packaged photo, as `add_photo` does."""
        return {"models": [shown.title for shown in self.models], "photo": self._first}

    def add_photo(self, data: bytes) -> dict[str, Any]:
        """Embed a photo by all models, and keep it.

        Returns:
            its id, width, height, and the milliseconds that each model took.
        Raises:
            DataError: the bytes are no photo.
        """
        pixels = decode_image(data, "the photo")
        with self._turn:
            predictors, milliseconds = self._predictors(self.models, pixels)
            name = secrets.token_urlsafe(12)
            self._photos[name] = _Photo(pixels.shape[1], pixels.shape[0], predictors, milliseconds)
            if len(self._photos) > KEPT_PHOTOS + 1:
                kept_for_ever = next(iter(self._photos))
                self._photos.move_to_end(kept_for_ever)
                self._photos.popitem(last=False)
                self._photos.move_to_end(kept_for_ever, last=False)
        return {"id": name, "width": pixels.shape[1], "height": pixels.shape[0], "milliseconds": milliseconds}

    def predict(self, body: bytes) -> dict[str, Any]:
        """Answer a prompt, which is JSON of an `Asked`, by all models.

        A single click gets the best of three masks by predicted IoU; anything else gets the single mask.

        Returns:
            answers: of each model the runs of its mask (background and mask in turns, along the rows), its predicted
            IoU and the milliseconds; and the IoU between the two masks, or None.
        Raises:
            DataError: the JSON is of another form, the photo is not kept, or the prompt lies outside of it.
        """
        asked = parse_json(body, Asked, "the prompt", MEND)
        with self._turn:
            photo = self._photos.get(asked.photo)
            if photo is None:
                raise UnknownPhotoError("this photo is not kept any more: drop it again")
            prompt = _prompt_of(asked, photo)
            masks, answers = [], []
            for predictor in photo.predictors:
                begin = time.perf_counter()
                mask, iou = _best_mask(predictor, prompt)
                milliseconds = 1000 * (time.perf_counter() - begin)
                masks.append(mask)
                answers.append({"runs": row_runs(mask), "predicted_iou": iou, "milliseconds": milliseconds})
        return {"answers": answers, "iou": _iou(*masks) if len(masks) == 2 else None}

    def _predictors(self, models: Sequence[ShownModel], pixels: np.ndarray) -> tuple[list[Predictor], list[float]]:
        predictors, milliseconds = [], []
        for shown in models:
            begin = time.perf_counter()
            predictor = Predictor(shown.model)
            predictor.set_image(pixels)
            predictors.append(predictor)
            milliseconds.append(1000 * (time.perf_counter() - begin))
        return predictors, milliseconds


def packaged_photo() -> Path:
    """Return the photograph with which a demo starts: a cup of coffee, of scikit-image."""
    return gallery().images / "coffee.png"


def row_runs(mask: np.ndarray) -> list[int]:
    """Return the run lengths of a mask (H, W) along its rows: background first, then mask and background in turns."""
    flat = np.concatenate([[False], np.asarray(mask, bool).ravel()])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    runs: list[int] = np.diff(np.concatenate([[0], edges, [flat.size - 1]])).tolist()
    return runs


def _prompt_of(asked: Asked, photo: _Photo) -> ObjectPrompt:
    labels = asked.labels or [POSITIVE] * len(asked.points)
    if len(labels) != len(asked.points):
        raise DataError(f"{len(labels)} labels for {len(asked.points)} points; {MEND}")
    if asked.box is None and not asked.points:
        raise DataError("nothing to predict: click on the object, or draw a box around it")
    box = None if asked.box is None else tuple(asked.box)
    prompt = ObjectPrompt(box, tuple((x, y) for x, y in asked.points), tuple(labels))
    if wrong := check_prompt(prompt, (photo.height, photo.width)):
        raise DataError(wrong.removeprefix("--"))
    return prompt


def _best_mask(predictor: Predictor, prompt: ObjectPrompt) -> tuple[np.ndarray, float]:
    masks, predicted_iou, _ = predictor.predict(
        point_coords=prompt.points_xy or None,
        point_labels=prompt.labels or None,
        box=prompt.box_xyxy,
        multimask_output=prompt.box_xyxy is None and len(prompt.labels) == 1,
    )
    best = int(predicted_iou.argmax())
    return masks[best], float(predicted_iou[best])


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    """Return the IoU of two masks (H, W); two empty ones agree."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0
