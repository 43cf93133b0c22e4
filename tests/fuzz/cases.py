"""Valid small files of each outside format, without the product's own writers: what they write may change."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import struct
import tarfile
import zlib
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

HW = (24, 32)  # of the photo
KEYS = ("photo0", "photo1")


@cache
def photo(suffix: str = "jpg", *, seed: int = 0, hw: tuple[int, int] = HW, mode: str = "RGB") -> bytes:
    """Return a small photo."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(
        buffer, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "tif": "TIFF", "bmp": "BMP"}[suffix]
    )
    return buffer.getvalue()


def rectangle_runs(hw: tuple[int, int] = HW) -> list[int]:
    """Return the runs of a rectangle from (4, 6) to (16, 20), down the columns: COCO's uncompressed code."""
    mask = np.zeros(hw, np.uint8)
    mask[4:16, 6:20] = 1
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    return np.diff([0, *edges, len(flat)]).tolist()


def compress(runs: list[int]) -> str:
    """Return the compressed code of runs, as pycocotools' rleToString writes it."""
    text = ""
    for i, run in enumerate(runs):
        number = run - runs[i - 2] if i > 2 else run
        more = True
        while more:
            bits = number & 0x1F
            number >>= 5
            more = number != -1 if bits & 0x10 else number != 0
            text += chr((bits | 0x20 if more else bits) + 48)
    return text


RLE = {"size": list(HW), "counts": compress(rectangle_runs())}


def coco() -> dict[str, Any]:
    """Return a COCO-format file of two photos with polygons, both kinds of codes, and a crowd region."""
    base = {"bbox": [6, 4, 14, 12], "area": 168.0, "category_id": 1, "iscrowd": 0}
    polygon = [6.0, 4.0, 20.0, 4.0, 20.0, 16.0, 6.0, 16.0]
    return {
        "info": {"year": 2026},
        "images": [
            {"id": number, "file_name": f"{key}.jpg", "height": HW[0], "width": HW[1]}
            for number, key in enumerate(KEYS)
        ],
        "annotations": [
            {"id": 1, "image_id": 0, "segmentation": [polygon], **base},
            {"id": 2, "image_id": 0, "segmentation": dict(RLE), **base},
            {"id": 3, "image_id": 1, "segmentation": {"size": list(HW), "counts": rectangle_runs()}, **base},
            {"id": 4, "image_id": 1, "segmentation": dict(RLE), **base, "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "thing", "supercategory": "all"}],
    }


def lvis() -> dict[str, Any]:
    """Return an LVIS file of the same photos."""
    content = coco()
    for row in content["images"]:
        row["coco_url"] = f"http://images.cocodataset.org/train2017/{row.pop('file_name')}"
        row |= {"neg_category_ids": [], "not_exhaustive_category_ids": [1]}
    for row in content["annotations"]:
        del row["iscrowd"]
    content["categories"][0] |= {"frequency": "f", "synset": "thing.n.01", "image_count": 2, "instance_count": 4}
    return content


def sa1b(key: str = KEYS[0]) -> dict[str, Any]:
    """Return the JSON beside a photo in SA-1B's layout."""
    row = {
        "id": 7,
        "segmentation": dict(RLE),
        "bbox": [6, 4, 14, 12],
        "area": 168,
        "predicted_iou": 0.97,
        "stability_score": 0.98,
        "crop_box": [0, 0, HW[1], HW[0]],
        "point_coords": [[10.5, 8.5]],
    }
    image = {"image_id": key, "width": HW[1], "height": HW[0], "file_name": f"{key}.jpg"}
    return {"image": image, "annotations": [row, {**row, "id": 8}]}


def detections() -> list[dict[str, Any]]:
    """Return boxes of a detector."""
    return [
        {"image_id": 0, "category_id": 1, "bbox": [5.5, 3.5, 15.0, 13.0], "score": 0.9},
        {"image_id": 1, "category_id": 1, "bbox": [6.0, 4.0, 14.0, 12.0], "score": 0.4, "file_name": "photo1.jpg"},
    ]


def prompts() -> list[dict[str, Any]]:
    """Return prompts of objects on photos."""
    return [
        {"photo": "photo0.jpg", "box": [5.5, 3.5, 15.0, 13.0], "category_id": 3},
        {"photo": "photo1", "points": [[6.0, 4.0], [9, 9]], "labels": [1, 0], "mask": "masks/photo1.png"},
    ]


def predictions() -> dict[str, Any]:
    """Return a finished photo in the record of a prediction."""
    code = {"size": [4, 5], "counts": "54;"}
    one = {"masks": [code, code], "predicted_iou": [0.5, 0.7], "box": [1, 1, 3, 3], "score": 0.5, "stability": 0.9}
    photo = {"name": "photo0", "file": "photo0.jpg", "key": "abc", "height": 4, "width": 5, "objects": [one]}
    return {**photo, "files": ["photo0_mask_0.png"]}


def tar_bytes(members: dict[str, bytes], *, form: int = tarfile.USTAR_FORMAT) -> bytes:
    """Return a tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@cache
def shard() -> bytes:
    """Return an image shard of two photos with annotations."""
    members = {}
    for number, key in enumerate(KEYS):
        members |= {f"{key}.jpg": photo(seed=number), f"{key}.json": json.dumps(sa1b(key)).encode()}
    return tar_bytes(members)


def keys_hash() -> str:
    """Return the hash of the shard's keys."""
    return hashlib.sha256("\n".join(KEYS).encode()).hexdigest()


def index() -> dict[str, Any]:
    """Return index.json of that shard; `ranges` are numbers here, which the file holds as base64."""
    with tarfile.open(fileobj=io.BytesIO(shard())) as tar:
        found = {member.name: (member.offset_data, member.size) for member in tar}
    ranges = [[*found[f"{key}.jpg"], *found[f"{key}.json"]] for key in KEYS]
    row = {"name": "a.tar", "num_samples": len(KEYS), "num_bytes": len(shard()), "keys_hash": keys_hash()}
    return {"version": 1, "shards": [{**row, "keys": "\n".join(KEYS), "ranges": ranges}]}


def pack_ranges(ranges: Any) -> Any:
    """Return ranges as index.json holds them, where they are numbers that fit."""
    try:
        return base64.b64encode(np.array(ranges, "<i8").tobytes()).decode()
    except (ValueError, TypeError, OverflowError):
        return ranges


def safetensors_bytes(header: Any, data: bytes) -> bytes:
    """Return a safetensors file of a header, as text or as bytes."""
    text = header if isinstance(header, bytes) else header.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data


CHANNELS, GRID = 4, 4
VALID_HW = (3, 4)  # cells of a photo of 24 x 32 pixels in a grid of 4 x 4
NUM_VALUES = 3 * 4 + 2  # of a channel: the valid cells, and the summary of one line of padding


def entry_header(key: str = KEYS[0]) -> dict[str, Any]:
    """Return the description in the header of a cached embedding."""
    return {
        "key": key,
        "view": "identity",
        "codec": "fp16",
        "layout": "C,block+padding",
        "dtype": "float16",
        "original_hw": list(HW),
        "grid": GRID,
        "valid_hw": list(VALID_HW),
        "band": 0,
    }


def entry_tensors() -> dict[str, Any]:
    """Return the rest of that header: where the one tensor lies."""
    return {"values": {"dtype": "F16", "shape": [CHANNELS, NUM_VALUES], "data_offsets": [0, 2 * CHANNELS * NUM_VALUES]}}


@cache
def entry_values() -> bytes:
    """Return the values of that tensor."""
    return np.random.default_rng(0).normal(size=(CHANNELS, NUM_VALUES)).astype("<f2").tobytes()


def entry(key: str = KEYS[0]) -> bytes:
    """Return a cached embedding."""
    header = {"__metadata__": {"distill": json.dumps(entry_header(key))}, **entry_tensors()}
    return safetensors_bytes(json.dumps(header), entry_values())


def checksummed(content: Any) -> bytes:
    """Return content with its own checksum, as caches keep it. Where it is no object, return it as it is."""
    if not isinstance(content, dict):
        return json.dumps(content, indent=1).encode() + b"\n"
    body = json.dumps(content, indent=1)
    seal = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({**content, "seal": seal}, indent=1).encode() + b"\n"


def fingerprint() -> dict[str, Any]:
    """Return what a cache was made of."""
    return {
        "teacher": "teacher.safetensors",
        "weights_sha256": "0" * 64,
        "image_size": 64,
        "embedding_dim": CHANNELS,
        "embedding_size": GRID,
        "preprocessing": "sam-letterbox-1",
        "precision": "fp32",
        "codec": "fp16",
        "views": ["identity"],
        "images": hashlib.sha256(f"a.tar {keys_hash()}\n".encode()).hexdigest(),
    }


def digest() -> str:
    """Return the hash that ties a shard to its cache."""
    return hashlib.sha256(json.dumps({**fingerprint(), "teacher": None}, sort_keys=True).encode()).hexdigest()


def manifest() -> dict[str, Any]:
    """Return the content of a cache's manifest."""
    return {
        "format": 2,
        "fingerprint": fingerprint(),
        "fidelity": {
            "num_images": 2,
            "num_prompts": 4,
            "prompts": "box",
            "relative_l2": 0.001,
            "cosine": 0.999,
            "mask_iou": 0.99,
            "mask_iou_float32": 0.995,
            "bytes_per_image": 1024.0,
        },
        "shards": [{"name": "a.tar", "num_samples": len(KEYS), "keys_hash": keys_hash()}],
        "totals": {"samples": len(KEYS), "bad": 0, "bytes": 10240},
    }


def sidecar(blobs: dict[str, bytes]) -> tuple[dict[str, Any], bytes]:
    """Return the sidecar of an embedding shard and the shard itself."""
    tar = tar_bytes({f"{key}.safetensors": blob for key, blob in blobs.items()}, form=tarfile.GNU_FORMAT)
    members, offset = [], 0
    for key, blob in blobs.items():
        members.append([key, "identity", offset + 512, len(blob), zlib.crc32(blob)])
        offset += 512 + -(-len(blob) // 512) * 512
    content = {
        "format": 2,
        "cache": digest(),
        "keys_hash": keys_hash(),
        "samples": len(blobs),
        "bytes": len(tar),
        "sha256": hashlib.sha256(tar).hexdigest(),
        "bad": [],
        "members": members,
    }
    return content, tar


def metrics() -> dict[str, Any]:
    """Return metrics.json of an evaluation."""
    return {
        "miou": 0.5,
        "miou_large": None,
        "miou_medium": 0.6,
        "miou_small": 0.4,
        "num_instances": 3,
        "boundary_iou": 0.3,
        "num_images": 2,
        "num_crowd": 0,
        "num_empty": 0,
        "intervals": {"miou": [0.4, 0.6], "miou_small": [0.1, 0.5]},
        "kind": "evaluate",
        "protocol": "coco_box",
        "prompt": "box",
        "num_clicks": None,
        "multimask": "single",
        "resolution": "original",
        "images": "photos",
        "annotations": "annotations.json",
        "detections": None,
        "max_images": 0,
        "annotations_sha256": "7" * 64,
        "model": "runs/student",
        "weights_sha256": "e" * 64,
        "seconds": 2.2,
        "photos_per_second": 0.9,
    }


def instances() -> list[dict[str, Any]]:
    """Return the lines of instances.jsonl."""
    base = {"predicted_iou": 0.9, "prompt": {"box_xyxy": [6.0, 4.0, 20.0, 16.0]}, "category_id": 1, "score": 0.9}
    return [
        {"image": "photo0", "annotation_id": 1, "area": 168.0, "iou": 0.5, **base, "boundary_iou": 0.3},
        {"image": "photo0", "annotation_id": 2, "area": 1680.0, "iou": 0.4, **base, "boundary_iou": None},
        {"image": "photo1", "annotation_id": 3, "area": 16.0, "iou": 0.6, **base, "boundary_iou": 0.1},
    ]


def jsonl(rows: list[Any]) -> bytes:
    """Return JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def evaluations() -> dict[str, bytes]:
    """Return the files of two finished evaluations, of a student and of its teacher."""
    files = {}
    for name, sha256 in (("student", "e" * 64), ("teacher", "f" * 64)):
        model = {"model": f"runs/{name}", "weights_sha256": sha256}
        files[f"{name}/metrics.json"] = json.dumps({**metrics(), **model}).encode()
        files[f"{name}/model.json"] = json.dumps(model).encode()
        files[f"{name}/instances.jsonl"] = jsonl(instances())
    return files


def bench() -> dict[str, Any]:
    """Return a bench of the student."""
    run = {"batch_size": 1, "precision": "fp32", "fused": True, "latency_ms": 52.2, "images_per_second": 19.1}
    sizes = {"image_size": 256, "params": 5329568, "encoder_params": 1265008, "macs": 837521408}
    row = {"model": "runs/student", **sizes, "runs": [{**run, "peak_memory_mb": 26.4, "repeats": 34}]}
    machine = {"platform": "Linux", "cpus": 2, "threads": 1, "gpus": []}
    return {
        "machine": machine,
        "benchmark": "models",
        "device": "cpu",
        "threads": 1,
        "teacher": None,
        "seconds": 2.0,
        "models": [{**row, "weights_sha256": "e" * 64}],
    }


WEIGHTS = "WEIGHTS"  # stands for the hash of the student's weights, which the reading process knows


def card() -> dict[str, Any]:
    """Return card.json."""
    row = {**metrics(), "weights_sha256": WEIGHTS, "data_sha256": "7" * 64}
    machine = {"platform": "Linux", "cpus": 2, "gpus": []}
    found = {"machine": machine, **bench()["models"][0], "weights_sha256": WEIGHTS}
    return {"weights_sha256": WEIGHTS, "evaluations": {"coco_box/box/None/single": row}, "bench": found}


def recipe() -> dict[str, Any]:
    """Return a recipe of the feature stage, which names no file that has to exist."""
    return {
        "kind": "feature",
        "teacher": {"name": "quickstart", "source": "online"},
        "student": {"name": "efficientvit_sam_t", "image_size": 64, "init_from": None},
        "data": {"images": "hf://nobody/nothing", "val_images": None, "batch_size": 2, "num_workers": 0},
        "loss": {"mse": 1.0, "cosine": 0.5},
        "optim": {"lr": 1e-3, "weight_decay": 0.01, "warmup_steps": 2},
        "validation": {"every_n_steps": 40, "max_images": 6},
        "trainer": {"max_steps": 8, "accelerator": "cpu", "precision": "32-true", "log_every_n_steps": 4},
    }


def cost() -> dict[str, Any]:
    """Return cost.json of a training."""
    counts = {"seconds": 19.8, "steps": 10, "photos": 40, "devices": 1, "nodes": 1}
    return {**counts, "device": "cpu (x86_64)", "precision": "bf16-mixed"}


def stages() -> dict[str, Any]:
    """Return stages.json of a run: the stages before it."""
    row = {"run": "/nowhere/feature", "recipe": recipe(), "cost": cost(), "lost_start": None}
    return {"stages": [row], "lost_start": None}


def model_spec() -> dict[str, Any]:
    """Return the description of the small student in its header."""
    sizes = {"image_size": 64, "embedding_dim": 32, "embedding_size": 8, "decoder_mlp_dim": 32}
    return {"format": 1, "spec": {"encoder": "efficientvit_sam_t", **sizes, "norm_eps": 1e-6, "paint_prompts": False}}


def training_checkpoint() -> dict[str, Any]:
    """Return a checkpoint of a training as a tree, without tensors."""
    counts = {"ready": 3, "completed": 3, "started": 3, "processed": 3}
    progress = {"total": dict(counts), "current": dict(counts), "is_last_batch": False}
    steps = {"total": {"ready": 3, "completed": 3}, "current": {"ready": 3, "completed": 3}}
    return {
        "epoch": 0,
        "global_step": 3,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": {"model.a": 0.0},
        "loops": {
            "fit_loop": {
                "state_dict": {"combined_loader": [{"epoch": 0, "position": 3, "num_batches": 8}]},
                "epoch_loop.batch_progress": progress,
                "epoch_loop.automatic_optimization.optim_progress": {"optimizer": {"step": steps}},
            }
        },
        "callbacks": {},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]}],
        "lr_schedulers": [{"last_epoch": 3}],
        "distill_position": {"validated_batches": 3},
        "distill_recipe": {"options": {"kind": "feature"}, "history": [], "teacher_sha256": "0" * 64},
        "distill": model_spec(),
    }
