"""A folder that `distill export` wrote, as a model: its files answer like the torch model that they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from distill.errors import CheckpointError, DistillError
from distill.files import hash_file
from distill.geometry import HW, normalize_pad_torch
from distill.models.checkpoint import find_weights, is_packaged, sha256_file
from distill.models.photo_transform import masks_from_input
from distill.models.sam import LOW_RES_PER_CELL, MASK_THRESHOLD, PROMPT_PIXELS_PER_CELL, ModelSpec
from distill.models.spec_header import SPEC_FORMAT, parse_spec
from distill.outside import inside, read_json
from distill.prompts.types import BOX_HIGH, BOX_LOW, PAD, Prompts
from distill.runtimes.folder import (
    DECODER_FILE,
    DESCRIPTION_FILE,
    ENCODER_FILE,
    FILES,
    SINGLE_DECODER_FILE,
    holds_export,
)
from distill.runtimes.sessions import Precision, Runtime, Session, Sizes, open_session

DECODER_INPUTS: dict[str, Sizes] = {"point_coords": (None, None, 2), "point_labels": (None, None)}
NUM_MASKS = 4  # of a decoder with all masks: token 0, then the three of the multimask output
SINGLE, MULTIMASK = slice(0, 1), slice(1, NUM_MASKS)


class _Description(msgspec.Struct):
    """model.json of an export, as far as a runtime needs it. `files`: the sha256 of each file, by its name."""

    spec: dict[str, Any]
    files: dict[str, str] = {}


class ExportedModel:
    """An image encoder and a mask decoder in files, run on the CPU by onnxruntime or OpenVINO.

    It stands where a PromptableModel stands that only answers, in a Predictor and in an evaluation. Its members are
    those of PromptableModel.

    Args:
        folder: as `distill export` writes it.
        precision: of OpenVINO; onnxruntime obeys the number formats in the files.
    Raises:
        DistillError: the folder is not complete, a file was changed, or the runtime cannot load it.
    """

    device = torch.device("cpu")
    dtype = torch.float32
    mask_threshold = MASK_THRESHOLD

    def __init__(self, folder: Path, runtime: Runtime, precision: Precision = "fp32") -> None:
        self.folder, self.runtime, self.precision = folder, runtime, precision
        self.spec = read_spec(folder)
        side, size = self.image_size, self.embedding_size
        self._encoder = open_session(folder / ENCODER_FILE, runtime, precision, fixed={"pixels": (1, 3, side, side)})
        self._decoder = open_session(folder / DECODER_FILE, runtime, precision)
        single = folder / SINGLE_DECODER_FILE
        self._single_decoder = open_session(single, runtime, precision) if single.is_file() else None
        _check_inputs(folder / ENCODER_FILE, self._encoder, {"pixels": (1, 3, side, side)})
        embedding = (1, self.spec.embedding_dim, size, size)
        _check_inputs(folder / DECODER_FILE, self._decoder, {"image_embeddings": embedding, **DECODER_INPUTS})

    @property
    def image_size(self) -> int:
        """Side S of the encoder's input in pixels."""
        return self.spec.image_size

    @property
    def embedding_size(self) -> int:
        """Side E of the embedding's grid."""
        return self.spec.embedding_size

    @property
    def prompt_size(self) -> int:
        """Side of the prompt frame in pixels, 16 E."""
        return PROMPT_PIXELS_PER_CELL * self.spec.embedding_size

    @property
    def low_res_size(self) -> int:
        """Side of the decoder's masks, 4E."""
        return LOW_RES_PER_CELL * self.spec.embedding_size

    def preprocess(self, x: Tensor) -> Tensor:
        """Normalise photos (..., 3, h, w) of the input frame, 0 to 255, and pad them with zeros to (..., 3, S, S)."""
        return normalize_pad_torch(x, self.image_size)

    def postprocess_masks(self, masks: Tensor, input_size: HW, original_size: HW) -> Tensor:
        """Resize logits (P, K, 4E, 4E) to the photo's own resolution; see PromptableModel.postprocess_masks."""
        sizes = {"image_size": self.image_size, "prompt_size": self.prompt_size}
        return masks_from_input(masks, input_size, original_size, **sizes)

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels (B, 3, S, S) as embeddings (B, C, E, E), photo by photo."""
        photos = pixels.numpy()
        found = [self._encoder.run({"pixels": photos[i : i + 1]}, ["image_embeddings"])[0] for i in range(len(photos))]
        return torch.from_numpy(np.concatenate(found))

    def decode(self, embeddings: Tensor, prompts: Prompts, *, multimask: bool) -> tuple[Tensor, Tensor]:
        """Answer all prompts of a batch of images; the arguments and the results are those of PromptableModel.decode.

        Raises:
            DistillError: the prompts are masks alone, or the file gives no such masks.
        """
        feeds = self._feeds(prompts)
        takes_single = not multimask and "mask_input" not in feeds
        decoder = (self._single_decoder if takes_single else None) or self._decoder
        logits: list[np.ndarray] = [np.empty(0)] * len(prompts)
        scores: list[np.ndarray] = [np.empty(0)] * len(prompts)
        for image in sorted(set(prompts.image_index.tolist())):
            rows = (prompts.image_index == image).nonzero()[:, 0].numpy()
            at_once = 1 if decoder.inputs["point_coords"][0] == 1 else len(rows)
            for start in range(0, len(rows), at_once):
                some = rows[start : start + at_once]
                given = {name: values[some] for name, values in feeds.items()}
                masks, ious = self._run_decoder(decoder, embeddings[image : image + 1].numpy(), given)
                for row, mask, iou in zip(some, masks, ious, strict=True):
                    logits[row], scores[row] = mask, iou
        kept = MULTIMASK if multimask else SINGLE
        if logits and len(scores[0]) < NUM_MASKS and multimask:
            raise DistillError(
                f"{self.folder / DECODER_FILE}: gives {len(scores[0])} mask for a prompt, and this protocol asks for "
                "the best of three; export the model with all masks, or give multimask=single"
            )
        return torch.from_numpy(np.stack(logits)[:, kept]), torch.from_numpy(np.stack(scores)[:, kept])

    def _feeds(self, prompts: Prompts) -> dict[str, np.ndarray]:
        """Return prompts as the decoder's inputs, float32: points first, then the corners of the box."""
        points, labels = [], []
        if prompts.points_xy is not None and prompts.point_labels is not None:
            points.append(prompts.points_xy)
            labels.append(prompts.point_labels)
        like = prompts.boxes_xyxy if prompts.boxes_xyxy is not None else prompts.points_xy
        if like is None:
            raise DistillError("an exported decoder answers points and boxes: give one beside the mask")
        if prompts.boxes_xyxy is not None:
            points.append(prompts.boxes_xyxy.reshape(-1, 2, 2))
            labels.append(torch.tensor([[BOX_LOW, BOX_HIGH]]).expand(len(prompts), 2))
        else:  # segment_anything adds such a point where there is no box
            points.append(torch.zeros(len(prompts), 1, 2))
            labels.append(torch.full((len(prompts), 1), PAD))
        given = {
            "point_coords": torch.cat(points, 1).float().numpy(),  # (P, N, 2)
            "point_labels": torch.cat(labels, 1).float().numpy(),  # (P, N)
        }
        if prompts.mask_logits is not None:
            given["mask_input"] = prompts.mask_logits.float().numpy()  # (P, 1, 4E, 4E)
            given["has_mask_input"] = np.ones(len(prompts), np.float32)
        return given

    def _run_decoder(
        self, decoder: Session, embedding: np.ndarray, given: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return low-res logits (P, K, 4E, 4E) and predicted IoU (P, K) of prompts on one photo (1, C, E, E)."""
        side = self.low_res_size
        feeds = {
            "image_embeddings": embedding,
            "mask_input": np.zeros((1, 1, side, side), np.float32),  # one for all prompts
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.ones(2, np.float32),  # in segment-anything's form; its enlarged masks are not used
            **given,
        }
        taken = {name: value for name, value in feeds.items() if name in decoder.inputs}
        low_res, ious = decoder.run(taken, ["low_res_masks", "iou_predictions"])
        return low_res, ious


def is_exported(source: str | Path) -> bool:
    """Return whether a path is a folder that `distill export` wrote."""
    return not is_packaged(source) and holds_export(Path(source))


def hash_exported(folder: Path) -> str:
    """Return one sha256 of a folder's files, which changes when one of them does."""
    digests = "".join(hash_file(folder / name) for name in (ENCODER_FILE, DECODER_FILE))
    return hashlib.sha256(digests.encode()).hexdigest()


def hash_model(source: str | Path) -> str:
    """Return the sha256 that tells a model from others: of its weights, or of a folder's files.

    Raises:
        CheckpointError: there is no such model.
    """
    return hash_exported(Path(source)) if is_exported(source) else sha256_file(find_weights(source))


def num_bytes(source: str | Path) -> int:
    """Return the bytes of a model's files, about as many as its weights take in memory."""
    paths = [Path(source) / name for name in FILES] if is_exported(source) else [find_weights(source)]
    return sum(path.stat().st_size for path in paths)


def read_spec(folder: Path) -> ModelSpec:
    """Read which model a folder holds. Raises CheckpointError if its description is damaged, or a file was changed."""
    path = folder / DESCRIPTION_FILE
    mend = "export the model again"
    found = read_json(path, _Description, "description of an export", mend, raises=CheckpointError)
    for name, digest in found.files.items():
        if hash_file(inside(folder, name, str(path), raises=CheckpointError)) != digest:
            raise CheckpointError(f"{folder / name}: not the file that {DESCRIPTION_FILE} describes; {mend}")
    return parse_spec({"format": SPEC_FORMAT, "spec": found.spec}, path)


def _check_inputs(path: Path, session: Session, wanted: Mapping[str, Sizes]) -> None:
    """Raise CheckpointError unless a file has these inputs, in these sizes as far as both are fixed."""
    for name, sizes in wanted.items():
        found = session.inputs.get(name)
        fits = found is not None and len(found) == len(sizes)
        if not fits or any(None not in pair and pair[0] != pair[1] for pair in zip(found or (), sizes, strict=True)):
            raise CheckpointError(
                f"{path}: its input {name} is {found or 'absent'}, and {DESCRIPTION_FILE} beside it asks for {sizes}; "
                "export the model again"
            )
