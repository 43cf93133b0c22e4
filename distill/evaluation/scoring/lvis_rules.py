"""LVIS's own rules for average precision.

LVIS (arXiv:1908.03195) says for each photo which categories were looked for, so AP counts no others: see section 2, and
eval.py of the `lvis` package, whose numbers these are. That package itself does not run with NumPy 2.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

MAX_DETECTIONS = 300  # per photo, over all categories: the `lvis` package, eval.py
FREQUENCIES = {"ap_rare": "r", "ap_common": "c", "ap_frequent": "f"}  # of a category in LVIS's training photos


class LvisEval(COCOeval):  # type: ignore[misc]  # pycocotools ships no types
    """COCO's matching by LVIS's rules.

    The 300 best detections of a photo count. Detections of a category that was not looked for in the photo are left
    out. In a category whose objects were not all annotated, detections without a match are ignored.
    """

    _dts: Any

    def __init__(self, truth: Any, detections: Any, kind: str) -> None:
        super().__init__(truth, detections, kind)
        self.params.maxDets = [MAX_DETECTIONS]

    def _prepare(self) -> None:
        super()._prepare()
        images = {image_id: self.cocoGt.imgs[image_id] for image_id in self.params.imgIds}
        present = {key for key, rows in self._gts.items() if rows}
        looked_for = {(id_, category) for id_, row in images.items() for category in row["neg_category_ids"]} | present
        detections: dict[tuple[int, int], list[dict[str, Any]]] = self._dts
        self._dts = defaultdict(list, {key: rows for key, rows in detections.items() if key in looked_for})
        self._partly = {(id_, c) for id_, row in images.items() for c in row["not_exhaustive_category_ids"]}

    def evaluateImg(self, image_id: int, category_id: int, area: list[float], max_detections: int) -> Any:
        """Match the detections of a photo and a category, as COCOeval does, and ignore those that LVIS ignores."""
        found = super().evaluateImg(image_id, category_id, area, max_detections)
        if found is not None and (image_id, category_id) in self._partly:
            found["dtIgnore"] = np.logical_or(found["dtIgnore"], found["dtMatches"] == 0)
        return found

    def frequency_rows(self, frequency: str) -> list[int]:
        """Return the indices in `params.catIds` of the categories of a frequency."""
        categories = self.cocoGt.cats
        return [i for i, id_ in enumerate(self.params.catIds) if categories[id_]["frequency"] == frequency]


def best_of_each_photo(results: list[dict[str, Any]], num: int = MAX_DETECTIONS) -> list[dict[str, Any]]:
    """Return at most `num` detections of each photo, those with the highest scores."""
    grouped: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in results:
        grouped[row["image_id"]].append(row)
    kept = []
    for rows in grouped.values():
        kept += rows if len(rows) <= num else sorted(rows, key=lambda row: row["score"], reverse=True)[:num]
    return kept
