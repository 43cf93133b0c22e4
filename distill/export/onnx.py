"""ONNX files of a promptable model: the fused image encoder, and the decoder with segment-anything's inputs.

Every file is run in onnxruntime and compared with torch before it gets its name.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.utils.onnx import SamOnnxModel
from torch import Tensor, nn

from distill.errors import DistillError
from distill.files import commit_file, temporary_path, write_errors, write_json
from distill.geometry import PIXEL_MEAN, PIXEL_STD
from distill.models.sam import PromptableModel
from distill.prompts.types import Prompts, paint_prompts
from distill.students.fuse import fuse

ENCODER_FILE, DECODER_FILE, DESCRIPTION_FILE = "encoder.onnx", "decoder.onnx", "model.json"
OPSET = 17  # the first with layer norm as one operation
MAX_DIFFERENCE = 1e-3  # between onnxruntime's and torch's outputs, as a share of the largest value

# segment_anything/utils/onnx.py: labels of the points that are the corners of a box
BOX_LOW, BOX_HIGH = 2, 3
CHECKED_LABELS = (BOX_LOW, BOX_HIGH, 1, 0)
CHECKED_SIZE = (150.0, 225.0)  # H, W of the photo with which the decoder is traced and compared


@dataclass(frozen=True)
class Exported:
    """A written file.

    difference: the largest difference between its outputs and torch's, as a share of the largest value.
    """

    path: Path
    difference: float


class OnnxDecoder(SamOnnxModel):  # type: ignore[misc] # segment_anything ships no types
    """segment-anything's ONNX form of the prompt encoder and mask decoder, for a model of any size.

    Inputs:
        image_embeddings: (1, C, E, E).
        point_coords: (1, N, 2) XY in the prompt frame.
        point_labels: (1, N). 1 is on the object, 0 off it; 2 and 3 are the corners of a box. Without a box, a last
            point with the label -1 must be added.
        mask_input: (1, 1, 4E, 4E) low-res logits of an earlier answer.
        has_mask_input: (1,) 1 to use mask_input, 0 to ignore it.
        orig_im_size: (2,) H and W of the photo.

    Outputs, each for four masks: token 0 (single), then the three of the multimask output.
        masks: (1, 4, H, W) logits in original pixels.
        iou_predictions: (1, 4).
        low_res_masks: (1, 4, 4E, 4E) logits.
    """

    INPUTS = ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size")
    OUTPUTS = ("masks", "iou_predictions", "low_res_masks")

    def __init__(self, model: PromptableModel) -> None:
        parts = nn.Module()
        parts.prompt_encoder = copy.deepcopy(model.prompt_encoder)
        parts.mask_decoder = copy.deepcopy(model.mask_decoder)
        parts.image_encoder = SimpleNamespace(img_size=model.prompt_size)  # type: ignore[assignment]
        super().__init__(parts.eval().requires_grad_(False), return_single_mask=False)
        self.paints_prompts = model.spec.paint_prompts
        self.prompt_size, self.low_res_size = model.prompt_size, model.low_res_size

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        orig_im_size: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.paints_prompts:
            mask_input = has_mask_input * mask_input + self._paint(point_coords, point_labels)
            has_mask_input = torch.ones_like(has_mask_input)
        masks, iou_predictions, low_res = super().forward(
            image_embeddings, point_coords, point_labels, mask_input, has_mask_input, orig_im_size
        )
        return masks, iou_predictions, low_res

    def mask_postprocessing(self, masks: Tensor, orig_im_size: Tensor) -> Tensor:
        """Resize logits (1, 4, 4E, 4E) to the photo's own resolution, (1, 4, H, W).

        segment-anything's method is not used: recent torch traces it with the photo's size as a constant.
        """
        side = self.prompt_size
        masks = F.interpolate(masks, (side, side), mode="bilinear", align_corners=False)
        height, width = self.resize_longest_image_size(orig_im_size, side).unbind()
        masks = masks[..., :height, :width]
        height, width = orig_im_size.to(torch.int64).unbind()
        return F.interpolate(masks, (height, width), mode="bilinear", align_corners=False)  # type: ignore[arg-type]

    def _paint(self, point_coords: Tensor, point_labels: Tensor) -> Tensor:
        """Paint the points and the box among them as mask logits (1, 1, 4E, 4E)."""
        is_low, is_high = ((point_labels == label).float() for label in (BOX_LOW, BOX_HIGH))  # (1, N)
        low, high = ((point_coords * is_corner[..., None]).sum(1) for is_corner in (is_low, is_high))  # (1, 2)
        image_index = torch.zeros(1, dtype=torch.long, device=point_coords.device)
        sizes = {"prompt_size": self.prompt_size, "low_res_size": self.low_res_size}
        box = paint_prompts(Prompts(image_index, boxes_xyxy=torch.cat([low, high], 1)), **sizes)
        points = paint_prompts(Prompts(image_index, points_xy=point_coords, point_labels=point_labels), **sizes)
        return is_low.sum() * box + points  # without a box its term is 0


def export_onnx(model: PromptableModel, out: Path, *, opset: int = OPSET) -> list[Exported]:
    """Write encoder.onnx (any batch size), decoder.onnx (any number of points) and model.json (sizes, statistics).

    Args:
        out: the directory; it is created if needed. Files of an earlier export are replaced.
        opset: the version of ONNX's operators.
    Returns:
        the two ONNX files.
    Raises:
        DistillError: the encoder cannot be fused or traced, a file's answers differ from torch's, or a file cannot be
            written.
    """
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    with write_errors(out, DistillError):
        out.mkdir(parents=True, exist_ok=True)
    exported = [
        export_encoder(model, out / ENCODER_FILE, opset=opset),
        export_decoder(model, out / DECODER_FILE, opset=opset),
    ]
    description = {
        "spec": asdict(model.spec),
        "image_size": model.image_size,
        "prompt_size": model.prompt_size,
        "pixel_mean": PIXEL_MEAN,
        "pixel_std": PIXEL_STD,
        "input": "RGB; longest side resized to image_size, normalised, zeros to the right of it and below; "
        "points are in the frame whose longest side is prompt_size",
    }
    write_json(out / DESCRIPTION_FILE, description, indent=1, raises=DistillError)
    return exported


def export_encoder(model: PromptableModel, path: Path, *, opset: int = OPSET) -> Exported:
    """Write the fused image encoder: normalised pixels (B, 3, S, S) -> image_embeddings (B, C, E, E)."""
    encoder = fuse(model.image_encoder)
    size = model.image_size
    inputs = {"pixels": torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))}
    batch = {0: "batch"}
    axes = {"pixels": batch, "image_embeddings": batch}
    return _export(encoder, inputs, ("image_embeddings",), axes, path=path, opset=opset)


def export_decoder(model: PromptableModel, path: Path, *, opset: int = OPSET) -> Exported:
    """Write the prompt encoder and mask decoder as one file; OnnxDecoder names its inputs and outputs."""
    random = torch.Generator().manual_seed(0)
    low, high, *clicks = torch.rand(len(CHECKED_LABELS), 2, generator=random).mul(model.prompt_size).unbind()
    corners = torch.minimum(low, high), torch.maximum(low, high)
    values = (
        torch.randn(1, model.embedding_dim, model.embedding_size, model.embedding_size, generator=random),
        torch.stack([*corners, *clicks])[None],
        torch.tensor([CHECKED_LABELS], dtype=torch.float32),
        torch.randn(1, 1, model.low_res_size, model.low_res_size, generator=random),
        torch.ones(1),
        torch.tensor(CHECKED_SIZE),
    )
    inputs = dict(zip(OnnxDecoder.INPUTS, values, strict=True))
    axes = {"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}}
    return _export(OnnxDecoder(model), inputs, OnnxDecoder.OUTPUTS, axes, path=path, opset=opset)


def _export(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    axes: Mapping[str, Mapping[int, str]],
    *,
    path: Path,
    opset: int,
) -> Exported:
    temporary = temporary_path(path)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # tracing warns of sizes that become constants; here they are the model's own
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.onnx")
            torch.onnx.export(
                module,
                tuple(inputs.values()),
                str(temporary),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes={name: dict(axis) for name, axis in axes.items()},
                opset_version=opset,
                dynamo=False,
            )
        difference = _difference(module, inputs, temporary)
        if not difference <= MAX_DIFFERENCE:
            raise DistillError(
                f"{path}: onnxruntime's answer differs from torch's by {difference:.1e} of its largest value (at most "
                f"{MAX_DIFFERENCE:.0e}); nothing is written"
            )
        with write_errors(path, DistillError), temporary.open("rb+") as file:
            commit_file(file, temporary, path)
    except torch.onnx.errors.OnnxExporterError as error:
        raise DistillError(
            f"{path}: ONNX opset {opset} cannot express the model: {error}; try another --opset"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return Exported(path, difference)


@torch.no_grad()
def _difference(module: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> float:
    """Return the largest difference between the file's outputs and the module's, as a share of the largest value."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    expected = module(*inputs.values())
    pairs = zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True)
    return max(float(np.abs(a - b.numpy()).max() / b.abs().max()) for a, b in pairs)
