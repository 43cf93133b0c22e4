"""The product's own readers, called as its commands call them. Only the reading process imports the product.

A reader gets the files of a case, as the strategies drew them, and an empty folder. It returns what it believed, for
the oracles. What it raises is told apart by `reading.py`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.fuzz import cases

Files = Mapping[str, bytes]
Reader = Callable[[Files, Path], Any]

PREPARED = Path("prepared")  # beside the folder of an input: what costs time to make, made once


class Refused(Exception):
    """The command ended with exit code 2 and said why."""


class Faulty(Exception):
    """The command ended with a traceback, whose text this holds."""


def write(folder: Path, files: Files) -> Path:
    """Write the files of a case below a folder, and return the folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def keep_results(module_name: str, name: str) -> None:
    """Let a function of the product keep its results: the same arguments give the same ones."""
    module = importlib.import_module(module_name)
    if not hasattr(getattr(module, name), "cache_info"):
        setattr(module, name, functools.cache(getattr(module, name)))


def command(*words: object) -> str:
    """Run a command of the product in this process. Return what it printed."""
    main = importlib.import_module("distill.cli.main")
    keep_results("distill.cli.main", "build_parser")  # 10 ms each time
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = main.main([str(word) for word in words])
    if code == 2:
        raise Refused(errors.getvalue())
    if code != 0:
        raise Faulty(errors.getvalue())
    return out.getvalue() + errors.getvalue()


# Photos and annotations


def photos_beside(folder: Path) -> Path:
    """Return a folder of the photos that annotations name."""
    photos = folder.parent / PREPARED / "photos"
    if not photos.is_dir():
        write(photos, {f"{key}.jpg": cases.photo(seed=number) for number, key in enumerate(cases.KEYS)})
        write(photos.parent, {"outside.jpg": cases.photo()})
    return photos


def coco(files: Files, folder: Path) -> Any:
    """Build shards of a COCO-format set, without the bar that the command shows."""
    from distill.data.coco import CocoSet
    from distill.data.shards.build import build_coco_shards

    coco_set = CocoSet(photos_beside(folder), write(folder, files) / "a.json")
    report = build_coco_shards(coco_set, folder / "shards")
    return {"text": "\n".join(report.lines(folder / "shards"))}


def lvis(files: Files, folder: Path) -> Any:
    """Read an LVIS file, as `distill datasets prepare` and evaluations do."""
    from distill.data.lvis import LvisSet

    found = list(LvisSet(photos_beside(folder), write(folder, files) / "a.json"))
    return {"areas": [instance.area for photo in found for instance in photo.instances]}


def rle(files: Files, folder: Path) -> Any:
    """Read a COCO-format set and decode its masks."""
    from distill.data.coco import CocoSet
    from distill.data.rle import decode_mask

    found = list(CocoSet(photos_beside(folder), write(folder, files) / "a.json"))
    return {"masks": [list(decode_mask(instance.rle).shape) for photo in found for instance in photo.instances]}


def detections(files: Files, folder: Path) -> Any:
    """Read boxes of a detector."""
    from distill.data.coco import CocoSet
    from distill.data.detections import Detections

    coco_set = CocoSet(photos_beside(folder), write(folder, files) / "a.json")
    return {
        "boxes": [
            (*row.box_xyxy, row.score)
            for rows in Detections(folder / "d.json", coco_set).by_photo.values()
            for row in rows
        ]
    }


def prompts(files: Files, folder: Path) -> Any:
    """Read prompts of objects, as `distill predict --prompts` does."""
    from distill.prediction.asking import read_prompts
    from distill.prediction.photos import find_photos

    asked = read_prompts(write(folder, files) / "p.json", find_photos([photos_beside(folder)]))
    found = [prompt for of_photo in asked.by_photo.values() for prompt in of_photo]
    return {"extents": [prompt.extent_xyxy for prompt in found], "masks": [str(prompt.mask) for prompt in found]}


def predictions(files: Files, folder: Path) -> Any:
    """Read the record of a prediction, and write what `distill predict` makes of it."""
    from distill.prediction.formats import write_coco, write_yolo
    from distill.prediction.record import Record

    photos = list(Record(write(folder, files)).photos.values())
    write_coco(photos, folder / "coco.json", polygons=True)
    write_yolo(photos, folder / "labels")
    return {"areas": [len(photo.objects) for photo in photos]}


def sa1b(files: Files, folder: Path) -> Any:
    """Load a batch of a shard as a training does."""
    from distill.data.loading.samples import PhotoBatches, Request
    from distill.data.shards.index import ShardIndex

    write(folder, {"a.tar": cases.tar_bytes({"photo0.jpg": cases.photo(), "photo0.json": files["photo0.json"]})})
    batches = PhotoBatches(ShardIndex.open(folder), image_size=32, embedding_size=2, seed=0, max_instances=2)
    loaded = batches[Request(0, [0])]
    if loaded.error is not None:
        raise Refused(str(loaded.error))
    return {"boxes": loaded.fields["boxes_xyxy"].flatten().tolist(), "masks": loaded.fields["masks"].flatten().tolist()}


def images(files: Files, folder: Path) -> Any:
    """Build shards of a folder of photos."""
    write(folder / "photos", files)
    return {"text": _build_folder(folder)}


def _build_folder(folder: Path) -> str:
    from distill.data.folder import PhotoFolder
    from distill.data.shards.build import build_folder_shards

    report = build_folder_shards(PhotoFolder(folder / "photos"), folder / "shards")
    return "\n".join(report.lines(folder / "shards"))


def names(files: Files, folder: Path) -> Any:
    """Build shards of photos with odd names, and index them again."""
    photos = folder / "photos"
    photos.mkdir()
    for name in json.loads(files["names.json"]):
        with contextlib.suppress(OSError, ValueError):  # what is no name of a file
            if ".." not in Path(name).parts and not Path(name).is_absolute():
                write(photos, {f"{name}.jpg": cases.photo()})
    return {"text": _build_folder(folder) + command("shards", "index", folder / "shards")}


def masks(files: Files, folder: Path) -> Any:
    """Read a folder of masks beside photos, as `distill adapt` does."""
    from distill.data.folder import PhotoFolder
    from distill.data.mask_folder import read_mask_folder

    photos = photos_beside(folder)
    write(folder, files)
    read_mask_folder(list(PhotoFolder(photos)), photos, folder)
    return {}


# Shards and caches


def tar(files: Files, folder: Path) -> Any:
    """Index a directory of tars."""
    write(folder, files)
    return {"text": command("shards", "index", folder)}


def index(files: Files, folder: Path) -> Any:
    """Open shards by their index and read every sample."""
    from distill.data.shards.index import ShardIndex

    write(folder, {**files, "a.tar": cases.shard()})
    found = ShardIndex.open(folder)
    members = [found.member(position) for position in range(min(len(found), 10))]
    right = [
        found.read_image_bytes(member) == cases.photo(seed=cases.KEYS.index(member.key))
        if member.key in cases.KEYS
        else False
        for member in members
    ]
    for member in members:
        found.read_annotation(member)
    return {"num": len(found), "right": right, "fingerprint": found.fingerprint, "annotated": found.has_annotations}


def cache(files: Files, folder: Path) -> Any:
    """Look at a cache, verify it, and read from it."""
    from distill.data.cache.embeddings import EmbeddingCache

    write(folder, files)
    text = command("cache", "stats", folder)
    with contextlib.suppress(Refused):
        text += command("cache", "verify", folder)
    embedding = EmbeddingCache.open(folder).read(cases.KEYS[0])
    return {"text": text, "finite": bool(embedding.isfinite().all())}


def entry(files: Files, folder: Path) -> Any:
    """Decode a cached embedding."""
    from distill.data.cache.codecs import decode_embedding

    embedding = decode_embedding(files["entry"])
    return {"shape": list(embedding.shape), "finite": bool(embedding.isfinite().all())}


# Models


def torch_file(files: Files, folder: Path) -> Any:
    """Read the tensors of a released checkpoint, and look at them as all do that take weights."""
    from distill.models.foreign_checkpoint import read_tensors
    from distill.students.finite import check_finite_weights

    tensors = read_tensors(write(folder, files) / next(iter(files)))
    check_finite_weights(tensors, "a.pth")
    return {"finite": all(_is_finite(tensor) for tensor in tensors.values())}


def _is_finite(tensor: Any) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def training_checkpoint(files: Files, folder: Path) -> Any:
    """Read a checkpoint of a training as a resumed run does."""
    from distill.training.checkpoint_file import read_checkpoint

    content, position = read_checkpoint(write(folder, files) / "last.ckpt")
    return {"step": position.step}


def student(folder: Path) -> bytes:
    """Return the file of a small student."""
    path = folder.parent / PREPARED / "student.safetensors"
    if not path.is_file():
        import torch

        from distill.models.checkpoint import save_model
        from distill.models.sam import ModelSpec, build_from_spec

        path.parent.mkdir(exist_ok=True)
        torch.manual_seed(0)
        sizes = {"embedding_dim": 32, "embedding_size": 8, "decoder_mlp_dim": 32}
        save_model(build_from_spec(ModelSpec("efficientvit_sam_t", 64, norm_eps=1e-6, **sizes)), path)
    return path.read_bytes()


def spec(files: Files, folder: Path) -> Any:
    """Load a student whose header, or whose tensors, somebody changed."""
    from distill.models.checkpoint import load_model

    data = student(folder)
    end = 8 + int.from_bytes(data[:8], "little")
    if "spec" in files:
        header = json.loads(data[8:end])
        header["__metadata__"]["distill"] = files["spec"].decode("utf-8", "replace")
        data = cases.safetensors_bytes(json.dumps(header), data[end:])
    else:
        deed = json.loads(files["deed"])
        place = end + deed["place"] % (len(data) - end) // 4 * 4 if deed["tensors"] else deed["place"] % end
        data = data[:place] + bytes.fromhex(deed["bytes"]) + data[place + len(deed["bytes"]) // 2 :]
        data = data[: len(data) - deed["cut"]]
    path = write(folder, {"student.safetensors": data}) / "student.safetensors"
    model = load_model(path)
    eps = model.spec.norm_eps
    finite = all(_is_finite(tensor) for tensor in model.state_dict().values())
    return {"finite": finite, "norm_eps": None if eps is None else float(eps), "size": model.spec.image_size}


# Recipes and run directories


def recipe(files: Files, folder: Path) -> Any:
    """Check a recipe."""
    write(folder, files)
    return {"text": command("check", folder / "recipe.yaml", f"run={folder}/run")}


def run_directory(files: Files, folder: Path) -> Any:
    """Read what a run directory says about its training, and write its card."""
    for name in ("load_model", "encoder_macs"):  # 0.2 s each, and the same for every input
        keep_results("distill.cards.model_card", name)
    data = student(folder)
    sha256 = hashlib.sha256(data).hexdigest().encode()
    own = {name: content.replace(cases.WEIGHTS.encode(), sha256) for name, content in files.items()}
    write(folder / "run", {"student.safetensors": data} | own)
    text = command("card", folder / "run")
    return {"text": text, "written": (folder / "run" / "README.md").read_text(encoding="utf-8")}


def evaluation(files: Files, folder: Path) -> Any:
    """Read evaluations, join them, and write their tables."""
    from distill.comparison.run import compare_models
    from distill.comparison.tables import print_table, to_csv, to_markdown
    from distill.evaluation.finished import metrics_lines
    from distill.text import say

    write(folder / "evaluations", files)
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        bench = folder / "evaluations/bench.json"
        comparison = compare_models(
            [],
            folder / "out",
            folders=[folder / "evaluations"],
            bench_file=bench if bench.is_file() else None,
            with_bench=False,
        )
        print_table(comparison)
        for model in comparison.models:
            for found in model.evaluations.values():
                say("\n".join(metrics_lines(found.metrics)))
        for note in comparison.notes:
            say(note)
        tables = {"csv": to_csv(comparison), "markdown": to_markdown(comparison)}
    return {"text": out.getvalue() + errors.getvalue(), **tables}


def compare(files: Files, folder: Path) -> Any:
    """Run the complete comparison, with its plots and its page."""
    write(folder / "evaluations", files)
    text = command("compare", "--evaluations", folder / "evaluations", "--no-bench", "--out", folder / "out")
    written = {name.name: name.read_text(encoding="utf-8") for name in (folder / "out").iterdir() if name.is_file()}
    return {"text": text, "csv": written.get("table.csv", ""), "markdown": written.get("table.md", "")}


READERS: dict[str, Reader] = {
    "coco": coco,
    "lvis": lvis,
    "rle": rle,
    "detections": detections,
    "prompts": prompts,
    "predictions": predictions,
    "sa1b": sa1b,
    "images": images,
    "names": names,
    "masks": masks,
    "tar": tar,
    "index": index,
    "manifest": cache,
    "sidecar": cache,
    "entry": entry,
    "torch_file": torch_file,
    "training_checkpoint": training_checkpoint,
    "spec": spec,
    "recipe": recipe,
    "card": run_directory,
    "run": run_directory,
    "metrics": evaluation,
    "instances": evaluation,
    "bench": evaluation,
    "compare": compare,
}
