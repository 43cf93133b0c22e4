"""Strategies that damage a valid file: wrong types at any place of a tree, cut and flipped bytes, senseless names."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st


@dataclass(frozen=True)
class Raw:
    """Text that stands in a JSON as it is, such as a number that Python would not write."""

    text: str


@dataclass(frozen=True)
class Twice:
    """A value that stands twice under its key."""

    value: Any


# What stands in a damaged file in place of a value. `Raw` texts are no values of Python, or no JSON at all.
NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, -512, 127, 255, 1000, 65536, 2**31, -(2**31) - 1, 2**32, 2**40, 2**53 + 1, 2**63, -(2**63)),
    *(2**64, 10**9, 10**18, 10**30, 0.5, -0.0, 48.7, 1e-300, 1e9, 1e30, 1e308, -1e308),
    *(float("nan"), float("inf"), float("-inf")),
)
TEXTS = (
    *("", " ", "0", "12", "-1", "nan", "no", "true", "None", ".", "..", "/", "\0", "a\0b", "\n", "a\n# b", "\r", "\t"),
    *("../../outside.jpg", "/etc/hostname", "..\\outside.jpg", "a/../../b", "file:///etc/hostname", "CON", "~"),
    *("\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x9b31m", "\u202egpj.x", "\ufeff", "\ud800", "\u0000", "é", "e\u0301"),
    *("😀", "=cmd|' /C calc'!A0", "+1", "@SUM(A1)", "-2+3", "|", "[x](javascript:0)", "<script>x</script>", "]]>"),
    *("$x$", "$", "\\frac{", "{{ 7 * 7 }}", "{0}", "%s", "%n", "${oc.env:HOME}", "???", "!!python/object:os.system"),
    *("x" * 300, "x" * 5000, "/" * 300),
)
SHAPES: tuple[Any, ...] = (
    *(None, True, False, [], {}, [[]], [{}], [None], {"": None}, [1, "a"], {"a": 1}, [[[1, 2, 3, 4]]], [0] * 1000),
    *(Raw("[" * 500 + "]" * 500), Raw("[" * 100_000 + "]" * 100_000), Raw('{"a":' * 3000 + "1" + "}" * 3000)),
    *(Raw("9" * 5000), Raw("-" + "9" * 400), Raw("1e400"), Raw("1E-400"), Raw("01"), Raw("'a'"), Raw(""), Raw("\\")),
)

odd_values = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.sampled_from(SHAPES),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
).map(copy.deepcopy)  # a later deed may change the lists among them
odd_names = st.one_of(st.sampled_from(TEXTS), st.text(max_size=12))


def dump(value: Any) -> str:
    """Return JSON of a tree that may hold `Raw` and `Twice`. NaN and infinities are written as Python does."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        pairs = []
        for key, item in value.items():
            times, item = (2, item.value) if isinstance(item, Twice) else (1, item)
            pairs += [f"{json.dumps(str(key))}: {dump(item)}"] * times
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(dump, value)) + "]"
    return dump(value.value) if isinstance(value, Twice) else json.dumps(value)


def places(tree: Any) -> list[tuple[Any, ...]]:
    """Return the place of every value in a tree, its root first."""
    return list(_places(tree, ()))


def _places(tree: Any, prefix: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    yield prefix
    rows = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in rows:
        yield from _places(value, (*prefix, key))


@st.composite
def damaged_trees(draw: st.DrawFn, tree: Any, *, most: int = 3) -> Any:
    """Draw a tree with up to `most` of its values replaced, deleted, doubled, renamed or wrapped."""
    tree = copy.deepcopy(tree)
    spots = places(tree)
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, most)))):
        tree = _damage_at(draw, tree, draw(st.sampled_from(spots)))
    return tree


def _damage_at(draw: st.DrawFn, tree: Any, place: Sequence[Any]) -> Any:
    deed = draw(st.sampled_from(("replace", "replace", "replace", "replace", "delete", "twice", "wrap", "rename")))
    if not place:
        return draw(odd_values)
    try:
        parent = _inner(tree)
        for key in place[:-1]:
            parent = _inner(parent[key])
        key = place[-1]
        parent[key]
    except (LookupError, TypeError):
        return tree  # an earlier deed took the place away
    if not isinstance(parent, (dict, list)):
        return tree
    if deed == "delete":
        del parent[key]
    elif deed == "twice" and isinstance(parent, dict):
        parent[key] = Twice(parent[key])
    elif deed == "twice":
        parent.insert(key, copy.deepcopy(parent[key]))
    elif deed == "wrap":
        parent[key] = draw(st.sampled_from(([parent[key]], {"value": parent[key]}, str(parent[key]))))
    elif deed == "rename" and isinstance(parent, dict):
        parent[draw(odd_names)] = parent.pop(key)
    else:
        parent[key] = draw(odd_values)
    return tree


def _inner(value: Any) -> Any:
    return value.value if isinstance(value, Twice) else value


@st.composite
def damaged_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """Draw bytes with a few of them flipped, cut, put in, doubled or overwritten by large numbers."""
    for _ in range(draw(st.sampled_from((1, 1, 2, 4)))):
        where = (
            draw(st.integers(0, max(0, min(len(data) - 1, 2048))))
            if draw(st.booleans())
            else draw(st.integers(0, max(0, len(data) - 1)))
        )
        deed = draw(st.sampled_from(("flip", "flip", "cut", "insert", "remove", "double", "huge", "tail")))
        if deed == "flip" and data:
            data = data[:where] + bytes([data[where] ^ draw(st.integers(1, 255))]) + data[where + 1 :]
        elif deed == "cut":
            data = data[:where]
        elif deed == "insert":
            data = data[:where] + draw(st.binary(min_size=1, max_size=16)) + data[where:]
        elif deed == "remove":
            data = data[:where] + data[where + draw(st.integers(1, 64)) :]
        elif deed == "double":
            length = draw(st.integers(1, 600))
            data = data[: where + length] + data[where:]
        elif deed == "huge":
            huge = draw(st.sampled_from((b"\xff" * 8, b"\xff\xff\xff\x7f", b"\0\0\0\0\0\0\0\x80", b"\0" * 16)))
            data = data[:where] + huge + data[where + len(huge) :]
        else:
            data += draw(st.sampled_from((b"\0" * 600, b"}", b"garbage", b"\n\n")))
    return data


@st.composite
def damaged_json(draw: st.DrawFn, tree: Any, *, most: int = 3) -> bytes:
    """Draw the bytes of a JSON file: seldom as it was, mostly with a damaged tree, at times with damaged bytes."""
    form = draw(st.integers(0, 19))
    if form == 0:
        return dump(tree).encode()
    if form <= 3:
        return draw(damaged_bytes(dump(tree).encode()))
    text = dump(draw(damaged_trees(tree, most=most)))
    if form == 4:
        codec = draw(st.sampled_from(("utf-16", "utf-32", "utf-8-sig", "utf-7")))
        return text.encode(codec, "surrogatepass")
    return text.encode("utf-8", "surrogatepass")
