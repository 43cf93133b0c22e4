"""The formats that come from outside, each with a strategy for the files of one case."""

from __future__ import annotations

import io
import json
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from hypothesis import strategies as st

from tests.fuzz import cases
from tests.fuzz.damage import (
    NUMBERS,
    TEXTS,
    Raw,
    Twice,
    damaged_bytes,
    damaged_json,
    damaged_trees,
    dump,
    odd_names,
    odd_values,
)

Case = dict[str, bytes]
OTHER_SIZES = ((1, 1), (24, 24), (32, 24))


@dataclass(frozen=True)
class Format:
    """One format: the files of a case, and how much a case costs.

    cost: milliseconds of one input, roughly, which shares the inputs of a long run among the formats.
    """

    strategy: Callable[[], st.SearchStrategy[Case]]
    cost: float


def one_json(name: str, tree: Callable[[], Any]) -> Callable[[], st.SearchStrategy[Case]]:
    """Return a strategy for a case of one damaged JSON."""
    return lambda: damaged_json(tree()).map(lambda data: {name: data})


@st.composite
def rle_cases(draw: st.DrawFn) -> Case:
    """Draw a COCO-format file with one odd segmentation."""
    content = cases.coco()
    del content["annotations"][1:]
    runs = st.lists(st.one_of(st.integers(0, 800), st.sampled_from(NUMBERS)), max_size=9)
    code = st.one_of(
        st.binary(max_size=24).map(lambda data: data.decode("latin-1")),
        st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=24),
        runs,
        damaged_bytes(cases.RLE["counts"].encode()).map(lambda data: data.decode("latin-1")),
        odd_values,
    )
    number = st.one_of(st.floats(-10, 50), st.floats(), st.sampled_from(NUMBERS), odd_values)
    segmentation = st.one_of(
        code.map(lambda counts: {"size": list(cases.HW), "counts": counts}),
        damaged_trees({"size": list(cases.HW), "counts": cases.rectangle_runs()}),
        st.lists(st.lists(number, min_size=4, max_size=10), max_size=3),
        st.lists(st.lists(st.floats(-10, 50), min_size=6, max_size=8), min_size=1, max_size=3),
        odd_values,
    )
    content["annotations"][0]["segmentation"] = draw(segmentation)
    if draw(st.integers(0, 4)) == 0:
        side = st.one_of(st.integers(0, 70000), odd_values)
        content["images"][0] |= {"height": draw(side), "width": draw(side)}
    return {"a.json": dump(content).encode("utf-8", "surrogatepass")}


@st.composite
def detection_cases(draw: st.DrawFn) -> Case:
    """Draw detections on sound annotations."""
    rows: Any = cases.detections()
    tree = draw(st.sampled_from((rows, rows, {"annotations": rows}, {"predictions": rows})))
    return {"a.json": dump(cases.coco()).encode(), "d.json": draw(damaged_json(tree))}


def prediction_cases() -> st.SearchStrategy[Case]:
    """Draw the record of a prediction: a damaged line."""
    return damaged_json(cases.predictions()).map(lambda data: {"predictions.jsonl": data + b"\n"})


@st.composite
def photo_cases(draw: st.DrawFn) -> Case:
    """Draw a folder of one damaged photo, and seldom two."""
    suffix = draw(st.sampled_from(("jpg", "jpg", "png", "png", "webp")))
    mode = draw(st.sampled_from(("RGB", "L", "P", "1", "RGBA", "I;16"))) if suffix == "png" else "RGB"
    data = cases.photo(suffix, mode=mode) if mode != "I;16" else _grey16()
    if draw(st.integers(0, 79)) == 37:  # seldom: it takes a while
        suffix, data = "png", _huge_png()
    elif suffix == "png" and draw(st.booleans()):
        data = draw(_pngs(data))
    else:
        data = draw(damaged_bytes(data))
    name = draw(st.sampled_from(("a.jpg", "a.png", "a.webp", "a.JPG")))
    return {name: data} | ({"b.jpg": cases.photo()} if draw(st.booleans()) else {})


@cache
def _grey16() -> bytes:
    import numpy as np
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.arange(24 * 32, dtype=np.uint16).reshape(cases.HW) * 80).save(buffer, "PNG")
    return buffer.getvalue()


@cache
def _huge_png() -> bytes:
    """Return a photo of 20 kB with 169 million pixels of one bit each."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(buffer, "PNG")
    return buffer.getvalue()


@st.composite
def _pngs(draw: st.DrawFn, data: bytes) -> bytes:
    """Draw a PNG whose header holds other sizes, with a checksum that is right."""
    import zlib

    width, height = (draw(st.sampled_from((0, 1, 31, 32, 13000, 65535, 2**31 - 1, 2**32 - 1))) for _ in range(2))
    depth, colour = draw(st.sampled_from(((1, 0), (8, 0), (16, 0), (8, 2), (16, 2), (8, 3), (8, 6), (3, 9))))
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, draw(st.integers(0, 2)))
    return data[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]


@st.composite
def name_cases(draw: st.DrawFn) -> Case:
    """Draw names of photos."""
    names = draw(st.lists(st.one_of(odd_names, st.text(max_size=300)), min_size=1, max_size=3))
    return {"names.json": json.dumps(names).encode()}


@st.composite
def mask_cases(draw: st.DrawFn) -> Case:
    """Draw a folder of masks: label maps, folders of masks, damaged ones, and ones that fit no photo."""
    files = {}
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from((*cases.KEYS, *cases.KEYS, "other")))
        name = draw(st.sampled_from((f"{key}.png", f"{key}.tif", f"{key}/1.png", f"{key}/2.bmp", f"{key}.jpg")))
        suffix = name.rsplit(".", 1)[1]
        hw = draw(st.sampled_from((cases.HW, cases.HW, cases.HW, *OTHER_SIZES)))
        mode = draw(st.sampled_from(("L", "1", "P", "RGB")))
        data = cases.photo(suffix, hw=hw, mode=mode if suffix in ("png", "tif") else "L")
        form = draw(st.integers(0, 3))
        files[name] = data if form == 0 else draw(_pngs(data) if suffix == "png" and form == 1 else damaged_bytes(data))
    return files


# Tars: fields of headers, with a checksum that is right

FIELDS = {
    "name": (0, 100),
    "mode": (100, 8),
    "size": (124, 12),
    "type": (156, 1),
    "link": (157, 100),
    "magic": (257, 8),
}
SIZES = (0, 1, 511, 512, 513, 2**20, 2**31, 2**33 - 1, 2**40, 2**63 - 1, -1, -512, -1024, -(2**40))


def octal_or_binary(size: int) -> bytes:
    """Return a size as a tar's header holds it: octal digits, or base 256 where it is negative or too large."""
    if 0 <= size < 8**11:
        return b"%011o\0" % size
    return bytes([0xFF if size < 0 else 0x80]) + size.to_bytes(11, "big", signed=True)


def with_checksum(header: bytes) -> bytes:
    """Return a header with its checksum set right."""
    blank = header[:148] + b" " * 8 + header[156:512]
    return header[:148] + b"%06o\0 " % sum(blank) + header[156:]


@st.composite
def tar_cases(draw: st.DrawFn) -> Case:
    """Draw a damaged tar: odd fields of headers, odd members before them, or damaged bytes."""
    form = draw(st.sampled_from((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)))
    data = cases.shard() if form == tarfile.USTAR_FORMAT else long_names(form)
    for _ in range(draw(st.sampled_from((1, 1, 2)))):
        deed = draw(st.sampled_from(("field", "field", "special", "bytes")))
        starts = [place for place in range(0, len(data) - 511, 512) if data[place + 257 : place + 262] == b"ustar"] or [
            0
        ]
        start = draw(st.sampled_from(starts))
        if deed == "field":
            data = _with_field(draw, data, start)
        elif deed == "special":
            data = data[:start] + _special_member(draw) + data[start:]
        else:
            data = draw(damaged_bytes(data))
    name = draw(st.sampled_from(("a.tar", "a.tar", "a.tar", "é.tar", "a b.tar")))
    return {name: data}


def _with_field(draw: st.DrawFn, data: bytes, start: int) -> bytes:
    field = draw(st.sampled_from(("size", "size", "name", "type", "mode", "link", "magic")))
    place, length = FIELDS[field]
    if field == "size":
        value = draw(st.one_of(st.sampled_from(SIZES).map(octal_or_binary), st.binary(max_size=12)))
    elif field == "type":
        value = draw(st.sampled_from([bytes([byte]) for byte in b"\x00017xgLKSDMNXV2345"]))
    elif field == "name":
        odd = odd_names.map(lambda text: text.encode("utf-8", "surrogatepass")[:96] + b".jpg")
        value = draw(st.one_of(odd, st.binary(max_size=100), st.just(b"photo0.jpg"), st.just(b"photo1.json")))
    else:
        value = draw(st.binary(max_size=length))
    header = bytearray(data[start : start + 512].ljust(512, b"\0"))
    header[place : place + length] = value[:length].ljust(length, b"\0")
    header = bytes(header)
    return data[:start] + (with_checksum(header) if draw(st.integers(0, 9)) else header) + data[start + 512 :]


def _special_member(draw: st.DrawFn) -> bytes:
    """Draw a member that describes the next one: a long name, PAX records, a sparse file."""
    kind = draw(st.sampled_from((b"L", b"K", b"x", b"g", b"S")))
    key = draw(
        st.sampled_from(("path", "size", "size", "GNU.sparse.size", "GNU.sparse.map", "hdrcharset", "mtime", ""))
    )
    value = draw(st.one_of(st.sampled_from(TEXTS), st.sampled_from(SIZES).map(str), st.text(max_size=9)))
    text = f" {key}={value}\n".encode("utf-8", "surrogatepass")
    length = draw(st.one_of(st.just(len(text) + len(str(len(text)))), st.integers(-5, 2**40)))
    body = str(length).encode() + text if kind in b"xg" else value.encode("utf-8", "surrogatepass") + b".jpg\0"
    size = draw(st.one_of(st.just(len(body)), st.just(len(body)), st.sampled_from(SIZES)))
    header = bytearray(512)
    header[:11] = b"././@Header"
    header[124:136] = octal_or_binary(size)
    header[156:157] = kind
    header[257:265] = b"ustar  \0"
    return with_checksum(bytes(header)) + body + bytes(-len(body) % 512)


@cache
def long_names(form: int) -> bytes:
    """Return a tar of names of over 100 bytes."""
    long = "x" * 180
    members = {
        f"{long}.jpg": cases.photo(),
        f"{long}.json": json.dumps(cases.sa1b(long)).encode(),
        "é.jpg": cases.photo(),
    }
    return cases.tar_bytes(members, form=form)


@st.composite
def index_cases(draw: st.DrawFn) -> Case:
    """Draw index.json, with ranges as numbers that are changed before they are encoded."""
    if draw(st.integers(0, 9)) == 0:
        packed = cases.index()
        packed["shards"][0]["ranges"] = cases.pack_ranges(packed["shards"][0]["ranges"])
        return {"index.json": draw(damaged_bytes(json.dumps(packed).encode()))}
    tree = draw(damaged_trees(cases.index()))
    rows = tree.get("shards") if isinstance(tree, dict) else None
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and isinstance(row.get("ranges"), list):
            row["ranges"] = cases.pack_ranges(row["ranges"])
    return {"index.json": dump(tree).encode("utf-8", "surrogatepass")}


# Caches


def _sealed(tree: Any) -> bytes:
    """Return a damaged tree with a checksum that is right, where it can have one."""
    try:
        content = json.loads(dump(tree))
        return cases.checksummed(content)
    except (ValueError, RecursionError, UnicodeError):
        return dump(tree).encode("utf-8", "surrogatepass")


@st.composite
def manifest_cases(draw: st.DrawFn) -> Case:
    """Draw a cache with a damaged manifest."""
    content, tar = cases.sidecar({key: cases.entry(key) for key in cases.KEYS})
    sound = cases.checksummed(cases.manifest())
    damaged = draw(st.one_of(damaged_trees(cases.manifest()).map(_sealed), damaged_bytes(sound)))
    return {"manifest.json": damaged, "a.json": cases.checksummed(content), "a.tar": tar}


@st.composite
def sidecar_cases(draw: st.DrawFn) -> Case:
    """Draw a cache with a damaged sidecar, or a damaged embedding whose checksum is right."""
    blobs = {key: cases.entry(key) for key in cases.KEYS}
    if draw(st.integers(0, 3)) == 0:
        blobs["photo0"] = draw(entry_cases())["entry"]
    content, tar = cases.sidecar(blobs)
    sound = cases.checksummed(content)
    damaged = draw(st.one_of(damaged_trees(content).map(_sealed), damaged_bytes(sound), st.just(sound)))
    return {"manifest.json": cases.checksummed(cases.manifest()), "a.json": damaged, "a.tar": tar}


@st.composite
def entry_cases(draw: st.DrawFn) -> Case:
    """Draw a cached embedding with a damaged description, a damaged header, or damaged values."""
    inner, outer, values = dump(cases.entry_header()), cases.entry_tensors(), cases.entry_values()
    form = draw(st.integers(0, 3))
    if form <= 1:
        inner = dump(draw(damaged_trees(cases.entry_header())))
    elif form == 2:
        outer = draw(damaged_trees(outer))
    header = {"__metadata__": {"distill": inner}, **outer} if isinstance(outer, dict) else outer
    blob = cases.safetensors_bytes(dump(header), values)
    if form == 3:
        blob = draw(damaged_bytes(blob))
    return {"entry": blob}


# Models


@st.composite
def torch_cases(draw: st.DrawFn) -> Case:
    """Draw a .pth file: odd objects in it, or damaged bytes of its zip, its pickle or the older form."""
    import torch

    tensors: dict[str, Any] = {
        "a.weight": torch.arange(6.0).reshape(2, 3),
        "a.bias": torch.zeros(3),
        "n": torch.tensor(1),
    }
    tree: Any = draw(st.sampled_from((tensors, {"state_dict": tensors, "epoch": 3}, {"model": tensors})))
    form = draw(st.integers(0, 4))
    if form <= 1:
        tree = draw(damaged_trees(tree))
    if form == 4:
        tree = {"a.weight": tensors["a.weight"]}  # one storage: the older form orders them by their addresses
    data = torch_bytes(tree, old=form == 4)
    if form == 2:
        data = draw(damaged_bytes(data))
    elif form == 3:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inside = {name: archive.read(name) for name in archive.namelist()}
        chosen = draw(st.sampled_from(sorted(inside)))
        inside[chosen] = draw(damaged_bytes(inside[chosen]))
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in inside.items():
                archive.writestr(zipfile.ZipInfo(name), content)  # without the time of day
        data = buffer.getvalue()
    elif form == 4:
        data = draw(damaged_bytes(data))
    return {draw(st.sampled_from(("a.pth", "a.pt"))): data}


def torch_bytes(tree: Any, *, old: bool = False) -> bytes:
    """Return what torch.save writes of a tree that may hold `Raw` and `Twice`."""
    import torch

    buffer = io.BytesIO()
    torch.save(plain(tree), buffer, _use_new_zipfile_serialization=not old)
    data = buffer.getvalue()
    if old:  # it names a storage by its address
        address = b"X" + (14).to_bytes(4, "little") + b"1" * 14  # a text of 14 bytes in a pickle
        data = re.sub(rb"X....\d{6,}", address, data, flags=re.DOTALL)
    return data


def plain(tree: Any) -> Any:
    """Return a tree without `Raw` and `Twice`, which no pickle holds."""
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [plain(value) for value in tree]
    return tree.text if isinstance(tree, Raw) else plain(tree.value) if isinstance(tree, Twice) else tree


@st.composite
def training_checkpoint_cases(draw: st.DrawFn) -> Case:
    """Draw last.ckpt of a training."""
    tree = draw(damaged_trees(cases.training_checkpoint()))
    data = torch_bytes(tree)
    return {"last.ckpt": draw(damaged_bytes(data)) if draw(st.integers(0, 3)) == 0 else data}


@st.composite
def spec_cases(draw: st.DrawFn) -> Case:
    """Draw what is wrong with a student's file: its description, its header, or its tensors."""
    if draw(st.integers(0, 2)):
        return {"spec": dump(draw(damaged_trees(cases.model_spec()))).encode("utf-8", "surrogatepass")}
    put = draw(st.sampled_from((b"\xff\xff\xff\x7f", b"\0\0\x80\x7f", b"\xff" * 8, b"{", b"9", b"\0" * 4)))
    cut = draw(st.sampled_from((0, 0, 0, 1, 4, 1000)))
    deed = {"tensors": draw(st.booleans()), "place": draw(st.integers(0, 2**23)), "bytes": put.hex(), "cut": cut}
    return {"deed": json.dumps(deed).encode()}


# Recipes and run directories

YAML_TEXTS = (
    "a: &a [x, x]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b, *b]\nd: &d [*c, *c, *c, *c]\ne: [*d, *d, *d, *d]\n",
    "kind: &k [*k]\n",
    "kind: !!python/object/apply:os.system ['true']\n",
    "kind: !!binary aGVsbG8=\n",
    "<<: {kind: feature}\n",
    "? [a, b]\n: c\n",
    "? {a: b}\n: c\n",
    "- kind\n",
    "kind: feature\nkind: mask\n",
    "kind: feature\n---\nkind: mask\n",
    "%YAML 9.9\n---\nkind: feature\n",
    "kind: " + "[" * 400 + "]" * 400 + "\n",
    "a: {" * 1500 + "\n",
    "kind:\tfeature\n",
    "kind: 2026-99-99\n",
    "kind: 0x\n1: 2\nnull: 3\ntrue: 4\n1.5: 5\n2026-01-01: 6\n",
    "kind: feature\nextends: recipe.yaml\n",
    "kind: feature\nextends: [a]\n",
    "kind: feature\ndata: {images: '${data.images}'}\n",
    "kind: feature\ndata: {images: '${'}\n",
    "kind: feature\nloss: ${oc.env:HOME}\n",
    "kind: feature\ndata: {images: '${oc.decode:\"[1\"}'}\n",
    "kind: feature\nrun: ${now:}\n",
    ".inf: .nan\n",
    "kind: feature\noptim: {lr: .nan}\n",
    "kind: feature\noptim: {lr: .inf}\n",
    "kind: feature\ntrainer.max_steps: 1\n",
    "kind: feature\n'a.b.c..d': 1\n",
)


@st.composite
def recipe_cases(draw: st.DrawFn) -> Case:
    """Draw a recipe: a damaged tree as JSON, which is YAML too, or odd YAML, or damaged bytes."""
    form = draw(st.integers(0, 9))
    text = dump(cases.recipe())
    if form <= 6:
        text = dump(draw(damaged_trees(cases.recipe())))
    elif form == 7:
        text = draw(st.sampled_from(YAML_TEXTS)) + (draw(st.text(max_size=12)) if draw(st.booleans()) else "")
    data = text.encode("utf-8", "surrogatepass")
    return {"recipe.yaml": draw(damaged_bytes(data)) if form >= 8 else data}


def _yaml(tree: Any) -> bytes:
    return dump(tree).encode("utf-8", "surrogatepass")


@st.composite
def run_cases(draw: st.DrawFn) -> Case:
    """Draw a run directory with one damaged file of its training's record."""
    files = {"recipe.yaml": cases.recipe(), "cost.json": cases.cost(), "stages.json": cases.stages()}
    chosen = draw(st.sampled_from(sorted(files)))
    case = {name: _yaml(tree) for name, tree in files.items()}
    case[chosen] = draw(damaged_json(files[chosen]))
    return case


@st.composite
def evaluation_cases(draw: st.DrawFn, what: str) -> Case:
    """Draw two evaluations, one of which has a damaged file."""
    files = cases.evaluations()
    if what == "bench":
        return {**files, "bench.json": draw(damaged_json(cases.bench()))}
    if what == "instances" or (what == "any" and draw(st.booleans())):
        lines = [
            draw(damaged_json(row)) if draw(st.booleans()) else json.dumps(row).encode() for row in cases.instances()
        ]
        return {**files, "student/instances.jsonl": b"\n".join(lines) + draw(st.sampled_from((b"\n", b"", b"\n{")))}
    name = draw(st.sampled_from(("student/metrics.json",) * 4 + ("student/model.json",)))
    return {**files, name: draw(damaged_json(json.loads(files[name])))}


FORMATS: dict[str, Format] = {
    "coco": Format(one_json("a.json", cases.coco), 8),
    "lvis": Format(one_json("a.json", cases.lvis), 3),
    "rle": Format(rle_cases, 3),
    "detections": Format(detection_cases, 3),
    "prompts": Format(one_json("p.json", cases.prompts), 3),
    "predictions": Format(prediction_cases, 3),
    "sa1b": Format(one_json("photo0.json", cases.sa1b), 5),
    "images": Format(photo_cases, 6),
    "names": Format(name_cases, 10),
    "masks": Format(mask_cases, 5),
    "tar": Format(tar_cases, 5),
    "index": Format(index_cases, 4),
    "manifest": Format(manifest_cases, 5),
    "sidecar": Format(sidecar_cases, 5),
    "entry": Format(entry_cases, 2),
    "torch_file": Format(torch_cases, 4),
    "training_checkpoint": Format(training_checkpoint_cases, 4),
    "spec": Format(spec_cases, 60),
    "recipe": Format(recipe_cases, 30),
    "card": Format(one_json("card.json", cases.card), 20),
    "run": Format(run_cases, 20),
    "metrics": Format(lambda: evaluation_cases("metrics"), 10),
    "instances": Format(lambda: evaluation_cases("instances"), 10),
    "bench": Format(lambda: evaluation_cases("bench"), 10),
    "compare": Format(lambda: evaluation_cases("any"), 300),
}
