"""LVIS (arXiv:1908.03195): COCO's photos under other annotations. Its rules for AP are in evaluation/lvis_rules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import ClassVar, Literal

from distill.data.coco import CocoCategory, CocoFile, CocoImage, CocoSet
from distill.errors import DataError
from distill.outside import Identity


class LvisImage(CocoImage, kw_only=True, gc=False):
    """A row of `images`, with the categories that are not in the photo, or of which not all objects are annotated."""

    neg_category_ids: list[Identity]
    not_exhaustive_category_ids: list[Identity]


class LvisCategory(CocoCategory, kw_only=True, gc=False):
    """A row of `categories`. frequency: in LVIS's training photos: rare, common or frequent."""

    frequency: Literal["r", "c", "f"]


class LvisFile(CocoFile, kw_only=True):
    """The content of an LVIS file, as far as it is used."""

    images: Sequence[LvisImage]
    categories: Sequence[LvisCategory] = []


class LvisSet(CocoSet):
    """An LVIS annotation file over COCO's photos.

    LVIS names a photo by its address, such as .../train2017/000000000009.jpg. The photo is looked for both with the
    last folder of the address and without it.

    Raises:
        DataError: as CocoSet, or the file lacks LVIS's own fields.
    """

    form: ClassVar[type[CocoFile]] = LvisFile

    def _file_name(self, image: CocoImage) -> str:
        if image.file_name:
            return image.file_name
        parts = PurePosixPath(image.coco_url or "").parts[-2:]
        if not parts:
            raise DataError(
                f"{self.annotations_file}: image {image.id} has neither 'file_name' nor 'coco_url'; LVIS needs one"
            )
        return parts[-1] if (self.images_dir / parts[-1]).is_file() else "/".join(parts)
