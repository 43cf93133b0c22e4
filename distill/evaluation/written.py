"""The files of an evaluation as its readers get them: declared forms with bounds. The directory may be of a stranger.

metrics.json, instances.jsonl, results.json, model.json and data.json; fields that the forms lack are left as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from distill.data.rle import Counts
from distill.errors import DistillError, RunError
from distill.outside import Coordinate, Count, Identity, Name, Share, Side, convert, parse_json, read_bytes, read_json

T = TypeVar("T")

AGAIN, NO_METRICS = "evaluate again", "not the metrics of an evaluation"
Score = Annotated[float, Meta(ge=-1e15, le=1e15)] | None
Quality = Annotated[float, Meta(ge=-1, le=1)]  # an IoU, a precision or a recall; COCO's code writes -1 for "none"
Seconds = Annotated[float, Meta(ge=0, le=1e15)]
Text = str | None
Scalar = bool | int | float | str | None


class Metrics(msgspec.Struct):
    """The known fields of metrics.json. Everything but the model may be missing in files of earlier versions."""

    model: str
    weights_sha256: Text = None
    kind: Text = None
    protocol: Text = None
    prompt: Text = None
    num_clicks: Count | None = None
    multimask: Text = None
    rules: Text = None
    resolution: Text = None
    images: Text = None
    annotations: Text = None
    detections: Text = None
    max_images: Count | None = None
    annotations_sha256: Text = None
    detections_sha256: Text = None
    data_sha256: Text = None
    teacher: Text = None
    teacher_sha256: Text = None
    runtime: Text = None
    num_images: Count | None = None
    num_instances: Count | None = None
    num_detections: Count | None = None
    num_crowd: Count | None = None
    num_empty: Count | None = None
    date: Text = None
    seconds: Seconds | None = None
    photos_per_second: Seconds | None = None
    intervals: dict[
        str, Annotated[list[Annotated[float, Meta(ge=-1e6, le=1e6)]], Meta(min_length=2, max_length=2)]
    ] = {}
    sets: dict[Name, Score] | UnsetType = UNSET


# Metrics that tables and plots look for by name; another number of an evaluation may be anything that is one.
SIZES = ("", "_large", "_medium", "_small")
MOST_CLICKS = 100  # whose mean IoUs are looked for
SCORES = [f"{head}{size}" for head in ("miou", "boundary_iou", "ap", "map", "ar_1000", "ar") for size in SIZES]
SCORES += [f"miou_click{number}" for number in range(MOST_CLICKS)]
Scores = msgspec.defstruct("Scores", [(name, Quality | None, None) for name in SCORES])


class Prompt(msgspec.Struct, omit_defaults=True):
    """The prompt of an instance, in pixels of the photo."""

    box_xyxy: tuple[Coordinate, Coordinate, Coordinate, Coordinate] | None = None
    points_xy: list[tuple[Coordinate, Coordinate]] = []
    labels: list[int] = []


class InstanceLine(msgspec.Struct):
    """A line of instances.jsonl."""

    image: Name
    annotation_id: Identity | None
    area: Annotated[float, Meta(ge=0, le=1e10)]
    iou: Share | None
    prompt: Prompt


class RunLengths(msgspec.Struct):
    """A mask as pycocotools codes it."""

    size: tuple[Side, Side]
    counts: Counts


class ResultRow(msgspec.Struct):
    """A row of results.json, in COCO's form."""

    image: Name
    image_id: Identity
    category_id: Identity | None
    segmentation: RunLengths
    score: Score
    annotation_id: Identity | None = None


def read_metrics(path: Path) -> dict[str, Any]:
    """Read a metrics.json. Its known fields have their types, and every other number is finite.

    Raises:
        RunError: it is not the metrics of an evaluation.
    """
    data = read_bytes(path, "metrics of an evaluation", AGAIN, raises=RunError)
    content = parse_json(data, dict[str, Any], f"{path}: {NO_METRICS}", AGAIN, raises=RunError)
    return check_metrics(content, str(path))


def check_metrics(content: Mapping[str, Any], origin: str, *, mend: str = AGAIN) -> dict[str, Any]:
    """Check the content of a metrics.json, and return it with `weights_sha256` and `intervals`.

    Raises:
        RunError: it is not the metrics of an evaluation.
    """
    origin = f"{origin}: {NO_METRICS}"
    known = msgspec.structs.asdict(convert(content, Metrics, origin, mend, raises=RunError))
    convert(content, Scores, origin, mend, raises=RunError)
    if not any(known[key] for key in ("protocol", "prompt", "kind")):
        raise RunError(f"{origin}: it names no protocol; {mend}")
    # A number without a known name stays; what is neither number nor text belongs to no version.
    kept = {key: known.get(key, value) for key, value in content.items() if key in known or isinstance(value, Scalar)}
    return {"weights_sha256": None, **kept, "intervals": known["intervals"]}


def read_lines(path: Path, form: type[T]) -> Iterator[T]:
    """Yield the objects of a JSON-lines file. Raises RunError when it is missing, cut short or of another form."""
    decoder = msgspec.json.Decoder(form)
    data = read_bytes(path, "lines of an evaluation", AGAIN, raises=RunError)
    for number, text in enumerate(data.splitlines(), start=1):
        try:
            yield decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RunError(f"{path}: line {number}: cut short, or of another form ({error}); {AGAIN}") from error


def read_results(path: Path) -> list[ResultRow]:
    """Read the masks of results.json. Raises RunError when it is missing or of another form."""
    return read_json(path, list[ResultRow], "masks of an evaluation", f"{AGAIN} to keep them", raises=RunError)


def read_object(path: Path, what: str, *, raises: type[DistillError] = RunError) -> dict[str, Any]:
    """Read a small JSON object of texts and numbers. Raises the error when it is anything else."""
    form = dict[str, Scalar]
    return read_json(path, form, what, "restore it, or give another directory", raises=raises)
