"""A sound case of each format, which the product has to accept."""

from __future__ import annotations

import json

from tests.fuzz import cases


def sound_case(form: str) -> dict[str, bytes]:
    """Return the files of a case that nothing is wrong with."""
    sidecar, tar = cases.sidecar({key: cases.entry(key) for key in cases.KEYS})
    cache = {
        "manifest.json": cases.checksummed(cases.manifest()),
        "a.json": cases.checksummed(sidecar),
        "a.tar": tar,
    }
    index = cases.index()
    index["shards"][0]["ranges"] = cases.pack_ranges(index["shards"][0]["ranges"])
    coco = json.dumps(cases.coco()).encode()
    run = {
        "recipe.yaml": json.dumps(cases.recipe()).encode(),
        "cost.json": json.dumps(cases.cost()).encode(),
        "stages.json": json.dumps(cases.stages()).encode(),
    }
    if form in ("torch_file", "training_checkpoint"):
        return _checkpoint(form)
    return {
        "coco": {"a.json": coco},
        "lvis": {"a.json": json.dumps(cases.lvis()).encode()},
        "rle": {"a.json": coco},
        "detections": {"a.json": coco, "d.json": json.dumps(cases.detections()).encode()},
        "prompts": {"p.json": json.dumps(cases.prompts()).encode()},
        "predictions": {"predictions.jsonl": json.dumps(cases.predictions()).encode() + b"\n"},
        "sa1b": {"photo0.json": json.dumps(cases.sa1b()).encode()},
        "images": {"a.jpg": cases.photo(), "b.png": cases.photo("png")},
        "names": {"names.json": b'["a", "b.c", "d/e"]'},
        "masks": {"photo0.png": cases.photo("png", mode="L"), "photo1/1.png": cases.photo("png", mode="1")},
        "tar": {"a.tar": cases.shard()},
        "index": {"index.json": json.dumps(index).encode()},
        "manifest": cache,
        "sidecar": cache,
        "entry": {"entry": cases.entry()},
        "spec": {"spec": json.dumps(cases.model_spec()).encode()},
        "recipe": {"recipe.yaml": json.dumps(cases.recipe()).encode()},
        "card": {"card.json": json.dumps(cases.card()).encode()},
        "run": run,
        "metrics": cases.evaluations(),
        "instances": cases.evaluations(),
        "bench": cases.evaluations() | {"bench.json": json.dumps(cases.bench()).encode()},
        "compare": cases.evaluations(),
    }[form]


def _checkpoint(form: str) -> dict[str, bytes]:
    import torch

    from tests.fuzz.formats import torch_bytes

    if form == "torch_file":
        return {"a.pth": torch_bytes({"state_dict": {"a.weight": torch.ones(2, 3)}})}
    return {"last.ckpt": torch_bytes(cases.training_checkpoint())}
