"""What an accepted file must not hold: the rules that tell a silent acceptance from a success.

An oracle looks at the files of an accepted case and at what its reader believed. It returns a name for each rule that
is broken, such as "annotations.area: not finite". `MEANT` names the acceptances that the product means, and why.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from tests.fuzz import cases

MOST_PIXELS = 1 << 16
FARTHEST = 1e6  # coordinates
# C0 and C1 controls, and those that turn the direction of writing
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
AS_TEXT = "a number as text"
FORMULA = re.compile(r"^[=+\-@\t\r]")

# Broken rules that the product accepts knowingly: format ("*": all), rule or the end of it behind its place, reason.
MEANT: dict[tuple[str, str], str] = {
    ("*", "a key stands twice"): "JSON leaves it open, and every parser in use takes the last one",
    ("*", "bytes that are no UTF-8"): "msgspec does not look into fields that it skips",
    ("coco", AS_TEXT): "some tools export ids and sizes so",
    ("lvis", AS_TEXT): "as in COCO's format",
    ("rle", AS_TEXT): "as in COCO's format",
    ("detections", AS_TEXT): "some detectors export ids and scores so",
    ("prompts", AS_TEXT): "as in COCO's format",
    ("sa1b", AS_TEXT): "as in COCO's format",
    ("detections", "bbox: a negative side"): "nothing of the box lies in the photo; it is left out and counted",
}


def reason(form: str, rule: str) -> str | None:
    """Return why a broken rule is accepted, or None if nobody means it."""
    names = (rule, rule.rpartition(": ")[2])
    return next((MEANT[key] for name in names for key in ((form, name), ("*", name)) if key in MEANT), None)


class Twice(Exception):
    """A key stands twice in an object."""


def parse(data: bytes) -> Any:
    """Parse JSON as leniently as Python can. Raises Twice, or ValueError when it is none."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise Twice
        return dict(pairs)

    # Python refuses whole numbers of over 4,300 digits, which no oracle lets pass anyway
    return json.loads(data, object_pairs_hook=once, parse_int=lambda text: int(text) if len(text) < 4000 else math.inf)


def broken_rules(form: str, case: dict[str, bytes], found: Any) -> list[str]:
    """Return the rules that an accepted case breaks, each once."""
    rules: list[str] = []
    try:
        rules += ORACLES.get(form, lambda case, found: [])(case, found)
    except Twice:
        rules.append("a key stands twice")
    except UnicodeDecodeError:
        rules.append("bytes that are no UTF-8")
    except (ValueError, RecursionError):
        rules.append("no JSON")
    rules += outward_rules(found)
    return list(dict.fromkeys(rules))


def outward_rules(found: Any) -> Iterator[str]:
    """Yield what must not stand in text that leaves the product."""
    if not isinstance(found, dict):
        return
    for name in ("text", "written", "csv", "markdown"):
        text = found.get(name, "")
        if CONTROLS.search(text):
            yield f"a control character in the {name}"
        if name in ("written", "markdown") and "\n# b" in text:
            yield f"a foreign heading in the {name}"
    for row in csv.reader(io.StringIO(found.get("csv", ""))):
        if any(FORMULA.match(cell) and not _is_text_of_number(cell) for cell in row):
            yield "a formula in the csv"


def _is_text_of_number(cell: str) -> bool:
    with contextlib.suppress(ValueError):
        float(cell)
        return True
    return False


def number_fault(value: Any, low: float, high: float, *, whole: bool = False) -> str | None:
    """Return what is wrong with a number, in a word or two. Return None if nothing is."""
    if isinstance(value, str) and _is_text_of_number(value):
        return number_fault(float(value), low, high, whole=whole) or AS_TEXT
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "no number"
    if isinstance(value, float) and not math.isfinite(value):
        return "not finite"
    if whole and value != int(value):
        return "no whole number"
    return None if low <= value <= high else "out of range"


def _check(rules: list[str], place: str, fault: str | None) -> None:
    if fault:
        rules.append(f"{place}: {fault}")


def _box(rules: list[str], place: str, box: Any) -> None:
    if not isinstance(box, list) or len(box) != 4:
        rules.append(f"{place}: no four numbers")
        return
    for number, value in enumerate(box):
        fault = number_fault(value, -FARTHEST, FARTHEST)
        is_negative = number > 1 and fault in (None, AS_TEXT) and float(value) < 0
        _check(rules, place, "a negative side" if is_negative else fault)


def _identities(rules: list[str], place: str, rows: list[Any]) -> None:
    held = [row.get("id") for row in rows]
    for value in held:
        _check(rules, f"{place}.id", number_fault(value, -(2**63), 2**63 - 1, whole=True))
    numbers = [value for value in held if isinstance(value, (int, float))]
    if len(set(numbers)) < len(numbers):
        rules.append(f"{place}.id: stands twice")


def coco(case: dict[str, bytes], found: Any) -> list[str]:
    """Check a COCO-format file."""
    rules: list[str] = []
    content = parse(case["a.json"])
    for row in content["images"]:
        for side in ("height", "width"):
            _check(rules, f"images.{side}", number_fault(row.get(side), 1, MOST_PIXELS, whole=True))
        name = row.get("file_name", row.get("coco_url"))
        if not isinstance(name, str) or ".." in name.split("/") or name.startswith("/"):
            rules.append("images.file_name: outside of the folder")
    crowd = []
    for row in content["annotations"]:
        if row.get("iscrowd") is not None:
            _check(rules, "annotations.iscrowd", None if row["iscrowd"] in (0, 1) else "neither 0 nor 1")
            crowd += [row] if row["iscrowd"] else []
        if row.get("area") is not None:
            _check(rules, "annotations.area", number_fault(row["area"], 0, FARTHEST**2))
        if row.get("bbox"):
            _box(rules, "annotations.bbox", row["bbox"])
        _check(rules, "annotations.image_id", number_fault(row.get("image_id"), -(2**63), 2**63 - 1, whole=True))
        if "category_id" in row:
            _check(rules, "annotations.category_id", number_fault(row["category_id"], -(2**63), 2**63 - 1, whole=True))
        segmentation = row.get("segmentation")
        polygons = segmentation if isinstance(segmentation, list) and row not in crowd else []
        for polygon in polygons:
            for value in polygon:
                _check(rules, "annotations.segmentation", number_fault(value, -FARTHEST, FARTHEST))
    for place in ("images", "annotations", "categories"):
        _identities(rules, place, content.get(place) or [])
    for row in content.get("categories") or []:
        if not isinstance(row.get("name", ""), str):
            rules.append("categories.name: no text")
    return rules


def detections(case: dict[str, bytes], found: Any) -> list[str]:
    """Check a results JSON."""
    rules: list[str] = []
    content = parse(case["d.json"])
    if isinstance(content, dict):
        content = next(content[name] for name in ("annotations", "predictions", "detections") if name in content)
    for row in content:
        if not isinstance(row["image_id"], str):
            _check(rules, "image_id", number_fault(row["image_id"], -(2**63), 2**63 - 1, whole=True))
        _check(rules, "category_id", number_fault(row["category_id"], -(2**63), 2**63 - 1, whole=True))
        _check(rules, "score", number_fault(row["score"], -FARTHEST, FARTHEST))
        _box(rules, "bbox", row["bbox"])
    return rules


def prompts(case: dict[str, bytes], found: Any) -> list[str]:
    """Check prompts: numbers, and that a mask stays in its folder."""
    rules: list[str] = []
    for row in parse(case["p.json"]):
        for value in [*(row.get("box") or []), *(value for point in row.get("points") or [] for value in point)]:
            _check(rules, "coordinate", number_fault(value, -FARTHEST, FARTHEST))
        if ".." in str(row.get("mask")).split("/"):
            rules.append("mask: outside of its folder")
    return rules


def sa1b(case: dict[str, bytes], found: Any) -> list[str]:
    """Check the JSON beside a photo, and the boxes and masks that came of it."""
    rules: list[str] = []
    content = parse(case["photo0.json"])
    for side in ("height", "width"):
        _check(rules, f"image.{side}", number_fault(content["image"][side], 1, MOST_PIXELS, whole=True))
    for row in content["annotations"]:
        if row["bbox"]:  # a mask without a box is left out
            _box(rules, "annotations.bbox", row["bbox"])
    for name in ("boxes", "masks"):
        if not all(map(math.isfinite, found[name])):
            rules.append(f"{name}: not finite")
    return rules


def index(case: dict[str, bytes], found: Any) -> list[str]:
    """Check that whatever stands in index.json, the samples are those of the tar."""
    is_right = found["num"] == len(cases.KEYS) and all(found["right"]) and found["annotated"]
    return [] if is_right else ["other samples than those of the tar"]


def unlike(sound: Any, tree: Any, place: str = "") -> Iterator[str]:
    """Yield where a tree has another type than a sound one, or a number that is not finite or wrongly negative.

    Keys that are absent, further keys, and null are no faults: fields may be optional.
    """
    here = place or "the file"
    if tree is None or sound is None:
        return
    if isinstance(sound, dict):
        if not isinstance(tree, dict):
            yield f"{here}: no object"
            return
        for key in sound.keys() & tree.keys():
            yield from unlike(sound[key], tree[key], f"{place}.{key}".lstrip("."))
    elif isinstance(sound, list):
        if not isinstance(tree, list):
            yield f"{here}: no list"
            return
        for item in tree:
            if sound:
                yield from unlike(sound[0], item, f"{place}[]")
    elif isinstance(sound, bool):
        if not isinstance(tree, bool):
            yield f"{here}: neither true nor false"
    elif isinstance(sound, (int, float)):
        may_be_negative = "intervals" in place or "iou" in place  # of a correlation; or -1 for "none"
        fault = number_fault(tree, -FARTHEST if may_be_negative else 0, 1e30, whole=isinstance(sound, int))
        if fault:
            yield f"{here}: {fault}"
    elif not isinstance(tree, str):
        yield f"{here}: no text"


def like(name: str, sound: Callable[[], Any]) -> Callable[[dict[str, bytes], Any], list[str]]:
    """Return an oracle that compares one JSON of a case with the sound one."""
    return lambda case, found: list(unlike(sound(), parse(case[name]))) if name in case else []


def manifest(case: dict[str, bytes], found: Any) -> list[str]:
    """Check a cache's manifest."""
    return [*_sealed("manifest.json", cases.manifest(), case), *_finite(case, found)]


def sidecar(case: dict[str, bytes], found: Any) -> list[str]:
    """Check a shard's sidecar."""
    sound = cases.sidecar({key: cases.entry(key) for key in cases.KEYS})[0]
    return [*_sealed("a.json", {**sound, "members": []}, case), *_finite(case, found)]


def _sealed(name: str, sound: Any, case: dict[str, bytes]) -> Iterator[str]:
    yield from unlike(sound, parse(case[name]))


def _finite(case: dict[str, bytes], found: Any) -> list[str]:
    return [] if found["finite"] else ["values: not finite"]


def entry(case: dict[str, bytes], found: Any) -> list[str]:
    """Check an embedding."""
    rules = _finite(case, found)
    if found["shape"] != [cases.CHANNELS, cases.GRID, cases.GRID]:
        rules.append("another shape")
    return rules


def spec(case: dict[str, bytes], found: Any) -> list[str]:
    """Check a student's description and weights."""
    rules = _finite(case, found) + like("spec", cases.model_spec)(case, found)
    if found["norm_eps"] is not None:
        _check(rules, "norm_eps", number_fault(found["norm_eps"], 0, 1))
    return rules


def instances(case: dict[str, bytes], found: Any) -> list[str]:
    """Check the lines of instances.jsonl."""
    rules: list[str] = []
    for line in case["student/instances.jsonl"].decode("utf-8", "surrogatepass").split("\n"):
        if not line.strip():
            continue
        row = parse(line.encode("utf-8", "surrogatepass"))
        rules += [] if isinstance(row["image"], str) else ["image: no text"]
        _check(rules, "area", number_fault(row["area"], 0, FARTHEST**2))
        if row["iou"] is not None:
            _check(rules, "iou", number_fault(row["iou"], 0, 1))
    return rules


def bench() -> dict[str, Any]:
    """Return what is read of a bench; the rest is for people."""
    row = cases.bench()["models"][0]
    del row["image_size"], row["encoder_params"], row["runs"][0]["repeats"]
    return {"models": [row]}


def card() -> dict[str, Any]:
    """Return what is read of card.json."""
    return {**cases.card(), "bench": bench()["models"][0]}


def numbers_of_text(tree: Any) -> Any:
    """Return a tree with texts of numbers as numbers: in YAML 1.1, `1e-3` without a dot is text."""
    if isinstance(tree, dict):
        return {key: numbers_of_text(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [numbers_of_text(value) for value in tree]
    if isinstance(tree, str) and _is_text_of_number(tree):
        return float(tree)
    return tree


def checked_json(name: str, sound: Callable[[], Any]) -> Callable[[dict[str, bytes], Any], list[str]]:
    """Return an oracle for a file that may be YAML too: where it is no JSON, nothing is checked."""

    def check(case: dict[str, bytes], found: Any) -> list[str]:
        try:
            tree = parse(case[name])
        except (ValueError, RecursionError, Twice):
            return []
        return list(unlike(sound(), numbers_of_text(tree)))

    return check


def compared(case: dict[str, bytes], found: Any) -> list[str]:
    """Check the evaluations of a comparison."""
    return like("student/metrics.json", cases.metrics)(case, found) + instances(case, found)


ORACLES: dict[str, Callable[[dict[str, bytes], Any], list[str]]] = {
    "coco": coco,
    "lvis": coco,
    "rle": coco,
    "detections": detections,
    "prompts": prompts,
    "sa1b": sa1b,
    "index": index,
    "manifest": manifest,
    "sidecar": sidecar,
    "entry": entry,
    "torch_file": _finite,
    "spec": spec,
    "recipe": checked_json("recipe.yaml", cases.recipe),
    "card": like("card.json", card),
    "run": checked_json("cost.json", cases.cost),
    "metrics": like("student/metrics.json", cases.metrics),
    "instances": instances,
    "bench": like("bench.json", bench),
    "compare": compared,
}
