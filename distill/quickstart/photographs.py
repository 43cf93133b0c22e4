"""The photographs of the quickstart: the packaged nuclei, to train and judge, and four of scikit-image to look at."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

from distill.comparison.measure import EvaluationData
from distill.config.named_data import catalogue_files
from distill.data.catalogue import LocatedSplit, read_dataset
from distill.errors import DataError
from distill.files import write_errors, write_text

SET = "nuclei"  # of the catalogue
ANNOTATIONS_FILE = "photographs.json"  # beside this module: masks drawn by hand


def packaged(split: str) -> EvaluationData:
    """Return where a split of the packaged set lies. Raises DataError when this installation lacks it."""
    dataset = read_dataset(catalogue_files()[SET])
    located = LocatedSplit(None, dataset, dataset.split(split))
    if located.annotations is None or not located.annotations.is_file():
        raise DataError(f"'{SET}': this installation lacks {located.images}; install the package again")
    return EvaluationData(located.images, located.annotations)


def read_packaged(split: str, *, at_least: int = 0) -> dict[str, Any]:
    """Return the COCO-format annotations of a split.

    Raises:
        DataError: the split has fewer photos than `at_least`, or see `packaged`.
    """
    content: dict[str, Any] = json.loads(packaged(split).annotations.read_text(encoding="utf-8"))
    if at_least > (found := len(content["images"])):
        raise DataError(f"'{SET}/{split}' has {found} photos, not {at_least}; give a smaller number")
    return content


def write_part(split: str, num: int, path: Path) -> EvaluationData:
    """Write the annotations of `num` photos of a split, spread evenly over it, and return where both lie.

    Those to train on get the four photographs of the gallery as well, without their masks: the student then learns
    what the teacher sees in them, but not what a person drew. All are copied to a folder beside the annotations.

    Raises:
        DataError: the split has fewer photos.
    """
    content = read_packaged(split, at_least=num)
    images = content["images"]
    chosen = [images[i * len(images) // num] for i in range(num)]
    ids = {image["id"] for image in chosen}
    annotations = [annotation for annotation in content["annotations"] if annotation["image_id"] in ids]
    folder = packaged(split).images
    if split == "train":
        sources = [folder / image["file_name"] for image in chosen]
        further = _without_masks(gallery(), first_id=1 + max(image["id"] for image in images))
        sources += [gallery().images / image["file_name"] for image in further]
        chosen += further
        folder = path.with_suffix("")
        with write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for source in sources:
                shutil.copyfile(source, folder / source.name)
    write_text(path, json.dumps({**content, "images": chosen, "annotations": annotations}), raises=DataError)
    return EvaluationData(folder, path)


def _without_masks(data: EvaluationData, *, first_id: int) -> list[dict[str, Any]]:
    """Return the photos of a set as images of another one."""
    images = json.loads(data.annotations.read_text(encoding="utf-8"))["images"]
    return [{**image, "id": first_id + i} for i, image in enumerate(images)]


def gallery() -> EvaluationData:
    """Return where the four photographs of scikit-image and their masks lie."""
    return EvaluationData(Path(str(files("skimage.data"))), Path(__file__).with_name(ANNOTATIONS_FILE))
