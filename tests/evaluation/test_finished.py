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
        (ProtocolKey("efficientvit_sam/coco_point3", "point", 3, "best"), "3 clicks by EfficientViT-SAM's rules"),
        (
            ProtocolKey("efficientvit_sam/coco_box", "box", None, "best"),
            "box by EfficientViT-SAM's rules, best of three",
        ),
        (ProtocolKey("somebody/coco_box", "box", None, "single"), "box"),
        (ProtocolKey("mobile_sam/pair100", "pair", None, "single"), "pair100 by MobileSAM's rules"),
        (ProtocolKey("mobile_sam/point", "point", None, "best"), "point by MobileSAM's rules"),
        (ProtocolKey("everything", None, None, None), "everything"),
    ],
)
def test_titles(protocol, title):
    assert protocol.title == title


@pytest.mark.parametrize(
    ("protocol", "title"),
    [
        (ProtocolKey("coco_box", "box", None, "single"), "box, single mask"),
        (ProtocolKey("coco_point", "point", 1, "best"), "1 click, best of three"),
        (ProtocolKey("coco_point", "point", 1, "single"), "1 click, single mask"),
        (ProtocolKey("somebody/else", "box", None, "other"), "box, other"),
        (ProtocolKey("everything", None, None, None), "everything"),
    ],
)
def test_full_titles_always_name_the_policy(protocol, title):
    assert protocol.full_title == title
