"""Makes the golden numbers of tests/reference: builds a model, gives it made-up weights, runs it, writes MODEL.json.

    python tools/make_references.py sam_vit_b --from segment-anything --check
    python tools/make_references.py efficientvit_sam_l0 --from distill --out /tmp/ours

The stored files were made by the published implementations on a CPU in float32, without released checkpoints.
`--from distill` shows which numbers this project's own implementation gives. Any other source must be importable: the
error names its repository. tests/fixtures/references.py has the formulas of weights and inputs. This project does not
have EfficientSAM's own decoder: for efficient_sam_*, state_dict and n_params_total differ from the stored ones.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests.fixtures

from distill.errors import DistillError
from distill.files import write_text
from tests.fixtures.references import (
    AREA_SHARE,
    IOU_ATOL,
    LOGIT_DIGITS,
    MEAN_ATOL,
    NUM_EMBEDDING_SAMPLES,
    NUM_LOGIT_SAMPLES,
    PEAK,
    PHOTO_HW,
    REFERENCE,
    SAMPLE_SEED,
    SEED,
    STD_ATOL,
    embedding_limit,
    fill_with_made_up_weights,
    logits_limit,
    made_up_photo,
    made_up_pixels,
    sample,
)

BOX = {"box": [120, 80, 420, 330]}  # XYXY in the photo's pixels
POINTS = {"point_coords": [[300, 200], [150, 350]], "point_labels": [1, 0]}
PROMPTS = {"box_multimask": (BOX, True), "box_single": (BOX, False), "points_multimask": (POINTS, True)}

# A function of a prompt's arguments and of `multimask`: masks (K, H, W), predicted IoU (K,), low-res logits (K, 4E, 4E)
Predict = Callable[[Mapping[str, Any], bool], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Source:
    """An implementation of some models.

    module: the Python module to import.
    repository: where it is published.
    builders: model name -> a function of the imported module that builds the model with random weights.
    predictor: a function of a model and a photo that gives its `Predict`; None where files keep no predictor's numbers.
    """

    module: str
    repository: str
    builders: Mapping[str, Callable[[Any], nn.Module]]
    predictor: Callable[[nn.Module, np.ndarray], Predict] | None = None


def _sam_predictor(module: str, class_name: str = "SamPredictor") -> Callable[[nn.Module, np.ndarray], Predict]:
    """Return a `Source.predictor` for a class with the interface of segment-anything's SamPredictor."""

    def prepare(model: nn.Module, photo: np.ndarray) -> Predict:
        predictor = getattr(importlib.import_module(module), class_name)(model)
        predictor.set_image(photo)

        def predict(prompt: Mapping[str, Any], multimask: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            arrays = {name: np.array(value) for name, value in prompt.items()}
            masks, iou_predictions, logits = predictor.predict(**arrays, **_multimask(module, multimask))
            return np.asarray(masks), np.asarray(iou_predictions), np.asarray(logits)

        return predict

    return prepare


def _multimask(module: str, multimask: bool) -> dict[str, Any]:
    """Return the argument that asks for three masks or one; EdgeSAM's predictor has one of its own."""
    return {"num_multimask_outputs": 3 if multimask else 1} if module == "edge_sam" else {"multimask_output": multimask}


def _registered(name: str) -> Callable[[Any], nn.Module]:
    return lambda package: package.sam_model_registry[name](checkpoint=None)


def _efficientvit(member: str) -> Callable[[Any], nn.Module]:
    return lambda zoo: zoo.create_efficientvit_sam_model(f"efficientvit-sam-{member}", pretrained=False)


def _efficient_sam(width: int, num_heads: int) -> Callable[[Any], nn.Module]:
    return lambda package: package.build_efficient_sam(width, num_heads, checkpoint=None)


def _ours(name: str) -> Callable[[Any], nn.Module]:
    return lambda distill: distill.build_model(name)


STORED = tuple(sorted(path.stem for path in REFERENCE.glob("*.json")))
EFFICIENTVIT_MEMBERS = ("l0", "l1", "l2", "xl0", "xl1")

SOURCES = {
    "distill": Source(
        "distill", "this repository", {name: _ours(name) for name in STORED}, _sam_predictor("distill", "Predictor")
    ),
    "segment-anything": Source("segment_anything", "PyPI: segment-anything", {"sam_vit_b": _registered("vit_b")}),
    "mobile_sam": Source(
        "mobile_sam",
        "https://github.com/ChaoningZhang/MobileSAM",
        {"mobile_sam": _registered("vit_t")},
        _sam_predictor("mobile_sam"),
    ),
    "edge_sam": Source(
        "edge_sam",
        "https://github.com/chongzhou96/EdgeSAM",
        {"edge_sam": _registered("edge_sam")},
        _sam_predictor("edge_sam"),
    ),
    "repvit_sam": Source(
        "repvit_sam",
        "https://github.com/THU-MIG/RepViT, folder sam",
        {"repvit_sam": _registered("repvit")},
        _sam_predictor("repvit_sam"),
    ),
    "efficientvit": Source(
        "efficientvit.sam_model_zoo",
        "https://github.com/mit-han-lab/efficientvit",
        {f"efficientvit_sam_{member}": _efficientvit(member) for member in EFFICIENTVIT_MEMBERS},
        _sam_predictor("efficientvit.models.efficientvit.sam", "EfficientViTSamPredictor"),
    ),
    "efficient_sam": Source(
        "efficient_sam.build_efficient_sam",
        "https://github.com/yformer/EfficientSAM",
        {"efficient_sam_vitt": _efficient_sam(192, 3), "efficient_sam_vits": _efficient_sam(384, 6)},
    ),
}


def build(name: str, source: Source) -> nn.Module:
    """Build a model, give it the made-up weights and return it in eval mode.

    Raises:
        DistillError: the source does not have the model, or cannot be imported.
    """
    if name not in source.builders:
        owners = [key for key, other in SOURCES.items() if name in other.builders]
        raise DistillError(f"{source.module} has no {name}; give --from {' or '.join(owners)}")
    try:
        module = importlib.import_module(source.module)
    except ImportError as error:
        raise DistillError(f"{source.module} cannot be imported ({error}). It is published at {source.repository}; "
                           "put it on PYTHONPATH") from error  # fmt: skip
    model = source.builders[name](module).train()
    fill_with_made_up_weights(model, SEED)
    return model.eval()  # TinyViT's published code caches its attention biases here


@torch.inference_mode()
def measure(
    name: str, model: nn.Module, predictor: Callable[[nn.Module, np.ndarray], Predict] | None
) -> dict[str, Any]:
    """Return the content of a model's file, with the fields and the rounding of tests/reference."""
    encoder: Any = model.image_encoder
    side = _input_size(encoder)
    embedding = encoder(made_up_pixels(SEED, side)).numpy()
    content = {
        "model": name,
        "seed": SEED,
        "input_size": side,
        "output_shape": list(embedding.shape),
        "mean": float(embedding.mean()),
        "std": float(embedding.std()),
        "n_params_total": sum(p.numel() for p in model.parameters()),
        "n_params_image_encoder": sum(p.numel() for p in encoder.parameters()),
        "state_dict": {key: list(tensor.shape) for key, tensor in model.state_dict().items()},
        "sample_index_seed": SAMPLE_SEED,
        "sample_values": _rounded(sample(embedding, NUM_EMBEDDING_SAMPLES), 6),
    }
    if predictor is not None:
        predict = predictor(model, made_up_photo(SEED, *PHOTO_HW))
        height, width = PHOTO_HW
        content["predictor"] = {
            "image": {"height": height, "width": width},
            "box_xyxy": BOX["box"],
            **POINTS,
            "results": {key: _result(*predict(*prompt)) for key, prompt in PROMPTS.items()},
        }
    return content


def _input_size(encoder: Any) -> int:
    """Return the side of an encoder's input in pixels; implementations name it differently."""
    for attribute in ("image_size", "img_size"):
        size = getattr(encoder, attribute, None)
        if size is not None:
            return int(size if isinstance(size, int) else size[0])
    raise DistillError(f"{type(encoder).__name__} does not say how large its input is")


def _result(masks: np.ndarray, iou_predictions: np.ndarray, logits: np.ndarray) -> dict[str, Any]:
    return {
        "iou_predictions": _rounded(iou_predictions, 6),
        "low_res_shape": list(logits.shape),
        "low_res_sample": _rounded(sample(logits, NUM_LOGIT_SAMPLES), LOGIT_DIGITS),
        "mask_areas": [int(mask.sum()) for mask in masks],
        "masks_shape": list(masks.shape),
    }


def _rounded(values: np.ndarray, digits: int) -> list[float]:
    return [round(float(value), digits) for value in values]


def differences(found: Mapping[str, Any], stored: Mapping[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Yield each compared field with its difference and the largest difference that is accepted.

    Fields that must be equal differ by 0 or by infinity. Samples are compared twice: their largest difference and their
    root mean square.
    """
    exact = ("input_size", "output_shape", "n_params_total", "n_params_image_encoder", "state_dict")
    yield from ((field, 0.0 if found[field] == stored[field] else np.inf, 0.0) for field in exact)
    yield "mean", abs(found["mean"] - stored["mean"]), MEAN_ATOL
    yield "std", abs(found["std"] - stored["std"]), STD_ATOL
    limit = embedding_limit(stored["model"])
    yield from _sample_differences("sample_values", found["sample_values"], stored["sample_values"], limit)
    if "predictor" not in stored:
        return
    limit = logits_limit(stored["model"])
    for case, expected in stored["predictor"]["results"].items():
        ours = found["predictor"]["results"][case]
        areas = AREA_SHARE * PHOTO_HW[0] * PHOTO_HW[1]
        yield f"{case}.iou_predictions", _largest(ours["iou_predictions"], expected["iou_predictions"]), IOU_ATOL
        yield f"{case}.mask_areas", _largest(ours["mask_areas"], expected["mask_areas"]), areas
        field = "low_res_sample"
        yield from _sample_differences(f"{case}.{field}", ours[field], expected[field], limit)


def _sample_differences(
    field: str, found: Sequence[float], stored: Sequence[float], rms_limit: float
) -> Iterator[tuple[str, float, float]]:
    yield field, _largest(found, stored), PEAK * rms_limit
    yield f"{field}.rms", float(np.sqrt(np.mean(np.subtract(found, stored) ** 2))), rms_limit


def _largest(found: Sequence[float], stored: Sequence[float]) -> float:
    return float(np.abs(np.subtract(found, stored)).max())


def main(arguments: Sequence[str] | None = None) -> int:
    """Make one model's file, or compare with the stored one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=STORED, metavar="MODEL", help=f"one of {', '.join(STORED)}")
    parser.add_argument("--from", dest="source", choices=SOURCES, required=True, help="the implementation to run")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where MODEL.json is written")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; print the largest differences from the stored file"
    )
    parser.add_argument(
        "--stored", type=Path, default=REFERENCE, metavar="DIR", help="for --check (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    source = SOURCES[options.source]
    stored = json.loads((options.stored / f"{options.model}.json").read_text())
    try:
        model = build(options.model, source)
    except DistillError as error:
        parser.error(str(error))
    found = measure(options.model, model, source.predictor if "predictor" in stored else None)
    if not options.check:
        write_text(options.out / f"{options.model}.json", json.dumps(found))
        print(options.out / f"{options.model}.json")
        return 0
    code = 0
    for field, difference, accepted in differences(found, stored):
        is_close = difference <= accepted
        print(f"{field:36} {difference:9.2g}  {'ok' if is_close else f'more than {accepted:g}'}")
        code = code if is_close else 1
    return code


if __name__ == "__main__":
    sys.exit(main())
