from __future__ import annotations

import pytest

from distill.evaluation.finished import ProtocolKey


@pytest.mark.parametrize(
    ("protocol", "title"),
    [
        (ProtocolKey("coco_box", "box", None, "single"), "box"),
        (ProtocolKey("coco_box", "box", None, "best"), "box, best of three"),
        (ProtocolKey("coco_point3", "point", 3, "best"), "3 clicks"),
        (ProtocolKey("coco_point", "point", 1, "single"), "1 click, single mask"),
        (ProtocolKey("everything", None, None, None), "everything"),
    ],
)
def test_titles(protocol, title):
    assert protocol.title == title
