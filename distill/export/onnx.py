"""ONNX graphs of a promptable model: the fused image encoder, and the prompt encoder with the mask decoder."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from distill.errors import DistillError
from distill.export.decoder import DecoderForm, ExportDecoder
from distill.export.trace import OPSET, Graph, Signature, save_graph, trace
from distill.files import temporary_path, write_errors, write_json
from distill.geometry import PIXEL_MEAN, PIXEL_STD
from distill.models.sam import PromptableModel
from distill.prompts.types import BOX_HIGH, BOX_LOW, NEGATIVE, PAD, POSITIVE
from distill.runtimes.folder import DECODER_FILE, DESCRIPTION_FILE, ENCODER_FILE
from distill.students.fuse import fuse

PHOTO_SIZE = (150.0, 225.0)  # H, W of the photo with which the decoder is traced and compared
TRACED_PROMPTS, TRACED_POINTS = 2, 4


@dataclass(frozen=True)
class Shapes:
    """The lengths of the axes that the caller may choose; None leaves an axis to every call.

    batch: photos in a call of the encoder. prompts: prompts in a call of the decoder. points: points of each prompt.
    """

    batch: int | None = None
    prompts: int | None = None
    points: int | None = None


ANY_SHAPE = Shapes()


@dataclass(frozen=True)
class Exported:
    """A written file.

    difference: the largest difference between its outputs and torch's, as a share of the largest value.
    """

    path: Path
    difference: float


def export_onnx(
    model: PromptableModel,
    out: Path,
    *,
    opset: int = OPSET,
    form: DecoderForm | None = None,
    shapes: Shapes = ANY_SHAPE,
) -> list[Exported]:
    """Write encoder.onnx, decoder.onnx and model.json (sizes, statistics).

    Args:
        out: the directory; it is created if needed. Files of an earlier export are replaced.
        opset: the version of ONNX's operators.
        form: what the decoder takes and gives; by default many prompts of one photo to four low-res masks each.
        shapes: axes of a fixed length.
    Returns:
        the two ONNX files.
    Raises:
        DistillError: the encoder cannot be fused or traced, a file's answers differ from torch's, or a file cannot be
            written.
    """
    model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    form = form or DecoderForm()
    with write_errors(out, DistillError):
        out.mkdir(parents=True, exist_ok=True)
    exported = [
        export_encoder(model, out / ENCODER_FILE, opset=opset, shapes=shapes),
        export_decoder(model, out / DECODER_FILE, opset=opset, form=form, shapes=shapes),
    ]
    write_json(out / DESCRIPTION_FILE, describe(model, form), indent=1, raises=DistillError)
    return exported


def describe(model: PromptableModel, form: DecoderForm) -> dict[str, Any]:
    """Return what model.json says: how a photo becomes the encoder's input, and what the decoder takes and gives."""
    return {
        "spec": asdict(model.spec),
        "image_size": model.image_size,
        "prompt_size": model.prompt_size,
        "pixel_mean": PIXEL_MEAN,
        "pixel_std": PIXEL_STD,
        "decoder": {"inputs": form.inputs, "outputs": form.outputs, **asdict(form)},
        "input": "RGB; longest side resized to image_size, normalised, zeros to the right of it and below; "
        "points are in the frame whose longest side is prompt_size",
    }


def export_encoder(model: PromptableModel, path: Path, *, opset: int = OPSET, shapes: Shapes = ANY_SHAPE) -> Exported:
    """Write the fused image encoder: normalised pixels (B, 3, S, S) -> image_embeddings (B, C, E, E)."""
    return _write(trace_encoder(model, what=str(path), opset=opset, shapes=shapes), path)


def export_decoder(
    model: PromptableModel,
    path: Path,
    *,
    opset: int = OPSET,
    form: DecoderForm | None = None,
    shapes: Shapes = ANY_SHAPE,
) -> Exported:
    """Write the prompt encoder and mask decoder as one file; ExportDecoder names its inputs and outputs."""
    graph = trace_decoder(model, form or DecoderForm(), what=str(path), opset=opset, shapes=shapes)
    return _write(graph, path)


def trace_encoder(model: PromptableModel, *, what: str, opset: int = OPSET, shapes: Shapes = ANY_SHAPE) -> Graph:
    """Trace the fused image encoder of a float32 model on the CPU; see `export_encoder` and `trace`."""
    size, batch = model.image_size, shapes.batch or 1
    pixels = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    axis = {0: "batch"} if shapes.batch is None else {}
    signature = Signature({"pixels": pixels}, ("image_embeddings",), {"pixels": axis, "image_embeddings": axis})
    return trace(fuse(model.image_encoder), signature, what=what, opset=opset)


def trace_decoder(
    model: PromptableModel, form: DecoderForm, *, what: str, opset: int = OPSET, shapes: Shapes = ANY_SHAPE
) -> Graph:
    """Trace the decoder of a float32 model on the CPU; see `export_decoder` and `trace`."""
    inputs = decoder_inputs(model, form, shapes.prompts or TRACED_PROMPTS, shapes.points or TRACED_POINTS)
    prompts = {0: "num_prompts"} if shapes.prompts is None else {}
    points = {1: "num_points"} if shapes.points is None else {}
    masks = {0: "num_masks"} if shapes.prompts is None else {}  # one for each prompt, or one for all
    axes = {
        "point_coords": {**prompts, **points},
        "point_labels": {**prompts, **points},
        "mask_input": masks,
        "has_mask_input": masks,
        "low_res_masks": prompts,
        "iou_predictions": prompts,
        **({"masks": {**prompts, 2: "height", 3: "width"}} if form.photo_size else {}),
    }
    return trace(ExportDecoder(model, form), Signature(inputs, form.outputs, axes), what=what, opset=opset)


def decoder_inputs(
    model: PromptableModel, form: DecoderForm, num_prompts: int, num_points: int
) -> dict[str, torch.Tensor]:
    """Return inputs of the decoder: boxes with clicks, in turn with clicks alone, and masks of earlier answers."""
    random = torch.Generator().manual_seed(0)
    frame = form.point_frame or model.prompt_size
    coords = torch.rand(num_prompts, num_points, 2, generator=random) * frame
    labels = torch.tensor([_labels(i, num_points) for i in range(num_prompts)])
    if num_points > 1:
        coords[:, -2:] = coords[:, -2:].sort(1).values  # the corners of a box
    size, side = model.embedding_size, form.mask_side or model.low_res_size
    inputs = {
        "image_embeddings": torch.randn(1, model.embedding_dim, size, size, generator=random),
        "point_coords": coords,
        "point_labels": labels,
        "mask_input": torch.randn(num_prompts, 1, side, side, generator=random),
        "has_mask_input": torch.arange(1, num_prompts + 1).remainder(2).float(),
    }
    return {**inputs, "orig_im_size": torch.tensor(PHOTO_SIZE)} if form.photo_size else inputs


def _labels(row: int, num_points: int) -> list[float]:
    """Return the labels of a prompt: a box with clicks in even rows, clicks with their padding in odd ones."""
    clicks = [float(NEGATIVE if i % 2 else POSITIVE) for i in range(num_points)]
    ending = [BOX_LOW, BOX_HIGH] if row % 2 == 0 else [PAD]
    return clicks if num_points < len(ending) else [*clicks[: num_points - len(ending)], *map(float, ending)]


def _write(graph: Graph, path: Path) -> Exported:
    temporary = temporary_path(path)
    try:
        with write_errors(path, DistillError):
            save_graph(graph.model, temporary)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return Exported(path, graph.difference)
