"""The fuzz suite itself: what becomes of an input gets the right name, and the same seed draws the same inputs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import strategies as st

from tests.fuzz import cases
from tests.fuzz.damage import Raw, Twice, dump, places
from tests.fuzz.formats import FORMATS
from tests.fuzz.oracles import broken_rules
from tests.fuzz.readers import READERS
from tests.fuzz.reading import ReadingProcess
from tests.fuzz.run import draw_cases
from tests.fuzz.sound import sound_case
from tests.fuzz.test_formats import short_run


def test_every_format_has_a_reader():
    assert FORMATS.keys() == READERS.keys()


def test_the_same_seed_draws_the_same_cases():
    for form in FORMATS:
        assert draw_cases(form, 5, "a") == draw_cases(form, 5, "a")
    assert draw_cases("coco", 5, "a") != draw_cases("coco", 5, "b")


@pytest.fixture(scope="module")
def misbehaving() -> Iterator[ReadingProcess]:
    process = ReadingProcess(seconds=0.3, readers="tests.fuzz.misbehaving")
    yield process
    process.close()


@pytest.mark.parametrize(
    ("deed", "kind"),
    [
        ("nothing", "accepted"),
        ("refuse", "refused"),
        ("raise", "traceback"),
        ("allocate", "memory"),
        ("grow", "memory"),
        ("crash", "killed"),
        ("compute", "hung"),
        ("sleep", "hung"),
    ],
)
def test_what_a_reader_does_has_a_name(deed: str, kind: str, misbehaving: ReadingProcess):
    verdict = misbehaving.read("tar", {"deed": deed.encode()})
    assert verdict.kind == kind
    assert verdict.is_fault == (kind not in ("accepted", "refused"))
    assert verdict.place.startswith("text.py:") == (deed == "raise")
    assert misbehaving.read("tar", {"deed": b"nothing"}).kind == "accepted"  # by another worker


@pytest.mark.parametrize(("deed", "kind"), [("allocate", "memory"), ("compute", "hung"), ("crash", "killed")])
def test_the_short_run_fails_where_a_limit_acts(deed: str, kind: str, misbehaving: ReadingProcess):
    with pytest.raises(AssertionError, match=f"^{kind}: "):
        short_run("tar", misbehaving, st.just({"deed": deed.encode()}))
    short_run("tar", misbehaving, st.just({"deed": b"refuse"}))


def test_an_accepted_file_without_sense_is_named():
    content = cases.coco()
    content["annotations"][0] |= {"area": float("nan"), "bbox": [0, 0, 1e30, -1]}
    content["images"][0]["height"] = 48.7
    content["images"][1] |= {"id": 0, "file_name": "../photo1.jpg"}
    assert set(broken_rules("coco", {"a.json": json.dumps(content).encode()}, {})) == {
        "annotations.area: not finite",
        "annotations.bbox: out of range",
        "annotations.bbox: a negative side",
        "images.height: no whole number",
        "images.id: stands twice",
        "images.file_name: outside of the folder",
    }
    for form in FORMATS:
        if form not in ("coco", "lvis", "index", "card"):
            found = {"finite": True, "shape": [4, 4, 4], "norm_eps": None, "boxes": [], "masks": []}
            assert not broken_rules(form, sound_case(form), {**found, "num": 2, "right": [], "annotated": True})


def test_text_that_would_do_something_is_named():
    found = {"text": "a\x1b[31m", "csv": "model,miou\n=cmd|x,-0.5\n", "markdown": "a\n# b"}
    assert broken_rules("names", {}, found) == [
        "a control character in the text",
        "a foreign heading in the markdown",
        "a formula in the csv",
    ]
    assert broken_rules("names", {}, {"csv": "model,miou\nname,-0.5\n"}) == []


def test_a_damaged_tree_may_hold_what_json_cannot():
    assert dump({"a": Raw("1e400"), "b": Twice([1])}) == '{"a": 1e400, "b": [1], "b": [1]}'
    assert places({"a": [0, {"b": 1}]}) == [(), ("a",), ("a", 0), ("a", 1), ("a", 1, "b")]


def test_no_process_and_no_folder_is_left(misbehaving: ReadingProcess):
    process = ReadingProcess(readers="tests.fuzz.misbehaving")
    process.read("tar", {"deed": b"crash"})
    folder = process.folder
    assert folder.is_dir()
    process.close()
    assert not folder.exists()
    assert not os.path.exists(f"/proc/{process.pid}")


def test_a_metric_that_is_text_for_one_model_leaves_its_cell_empty(tmp_path: Path):
    files = cases.evaluations()
    for name, value in (("student", "text"), ("teacher", 0.5)):
        content = json.loads(files[f"{name}/metrics.json"]) | {"other": value}
        files[f"{name}/metrics.json"] = json.dumps(content).encode()
    table = READERS["metrics"](files, tmp_path)["csv"]
    assert "other" in table and "0.5" in table and "text" not in table
