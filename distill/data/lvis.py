"""LVIS (arXiv:1908.03195): COCO's photos under other annotations. Its rules for AP are in evaluation/lvis_rules."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from distill.data.coco import CocoSet
from distill.errors import DataError

IMAGE_FIELDS = ("neg_category_ids", "not_exhaustive_category_ids")


class LvisSet(CocoSet):
    """An LVIS annotation file over COCO's photos.

    LVIS names a photo by its address, such as .../train2017/000000000009.jpg. The photo is looked for both with the
    last folder of the address and without it.

    Raises:
        DataError: as CocoSet, or the file lacks LVIS's own fields.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        for row in self.content["images"]:
            for field in IMAGE_FIELDS:
                self._field(row, field, "image")
        for row in self.content.get("categories", []):
            self._field(row, "frequency", "category")

    def _file_name(self, row: dict[str, Any]) -> str:
        if "file_name" in row:
            return str(row["file_name"])
        if "coco_url" not in row:
            raise DataError(
                f"{self.annotations_file}: image {row.get('id')} has neither 'file_name' nor 'coco_url'; LVIS needs one"
            )
        folder, name = PurePosixPath(row["coco_url"]).parts[-2:]
        return name if (self.images_dir / name).is_file() else f"{folder}/{name}"
