"""The predictor: it encodes photos once and answers prompts in their own pixels, as segment-anything's SamPredictor.

A predictor keeps the photo, the model keeps nothing. For several threads give each its own Predictor over one model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distill.errors import DistillError
from distill.geometry import HW, letterbox
from distill.models.photo_transform import PhotoTransform
from distill.models.prompt_arrays import PhotoPrompt, check_image, read_prompt
from distill.prompts.types import Prompts

IMAGE_FORMATS = ("RGB", "BGR")
MOST_PIXELS = 1 << 26  # of masks at the photo's size are computed at a time: 256 MB of float32
MOST_PROMPTS = 32  # answered at a time: at SAM's size (C = 256, E = 64) the decoder keeps about 20 MB for each

Answer = tuple[np.ndarray, np.ndarray, np.ndarray]


class NoPhotoError(DistillError, RuntimeError):
    """A prompt before a photo. It is a RuntimeError too, since SamPredictor raises that."""


class Promptable(Protocol):
    """What a predictor asks of its model; a PromptableModel has it."""

    mask_threshold: float

    @property
    def image_size(self) -> int:
        """Side S of the encoder's input in pixels."""

    @property
    def prompt_size(self) -> int:
        """Side of the prompt frame in pixels, 16 E."""

    @property
    def low_res_size(self) -> int:
        """Side of the decoder's masks, 4E."""

    @property
    def device(self) -> torch.device:
        """Where pixels and prompts have to be."""

    @property
    def dtype(self) -> torch.dtype:
        """The number format of pixels and embeddings."""

    def preprocess(self, x: Tensor) -> Tensor:
        """Normalise photos (..., 3, h, w) of the input frame, and pad them to (..., 3, S, S)."""

    def postprocess_masks(self, masks: Tensor, input_size: HW, original_size: HW) -> Tensor:
        """Resize low-res logits (P, K, 4E, 4E) to original pixels (P, K, H, W)."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels (B, 3, S, S) as embeddings (B, C, E, E)."""

    def decode(self, embeddings: Tensor, prompts: Prompts, *, multimask: bool) -> tuple[Tensor, Tensor]:
        """Return low-res logits (P, K, 4E, 4E) and predicted IoU (P, K) of P prompts."""


class Predictor:
    """A model and one photo, or several, with every public attribute and method of segment-anything's SamPredictor.

    transform: moves photos and prompts to the model's frames.
    features: the photo's embedding (1, C, E, E), None without a photo.
    original_size, input_size: height and width of the photo in original pixels and in the input frame.
    is_image_set: whether there is a photo.
    orig_h, orig_w, input_h, input_w: None, as in SamPredictor, which sets them to nothing else.
    """

    def __init__(self, sam_model: Promptable) -> None:
        self.model = sam_model
        if isinstance(sam_model, torch.nn.Module) and sam_model.training:  # other threads may run it: do not touch it
            sam_model.eval()
        self.transform = PhotoTransform(sam_model.image_size, sam_model.prompt_size)
        self.reset_image()

    def reset_image(self) -> None:
        """Forget the photo, or the photos."""
        self.is_image_set = False
        self.features: Tensor | None = None
        self.original_size: HW | None = None
        self.input_size: HW | None = None
        self.orig_h = self.orig_w = self.input_h = self.input_w = None
        self._batch: list[tuple[HW, HW]] = []  # original and input size of each photo of `set_image_batch`

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device

    @torch.no_grad()
    def set_image(self, image: np.ndarray, image_format: Literal["RGB", "BGR"] = "RGB") -> None:
        """Encode a photo.

        Args:
            image: uint8 (H, W, 3).
            image_format: the order of its colours.
        Raises:
            DistillError: the array has another type or shape, or the format is no such word.
        """
        image = _to_rgb(image, image_format)
        self.set_torch_image(self._to_input(image), (image.shape[0], image.shape[1]))

    @torch.no_grad()
    def set_torch_image(self, transformed_image: Tensor, original_image_size: HW) -> None:
        """Encode a photo that `transform.apply_image` has resized.

        Args:
            transformed_image: (1, 3, h, w) RGB, 0 to 255, with a longest side of S.
            original_image_size: height and width of the photo before.
        Raises:
            DistillError: the tensor has another shape.
        """
        shape, side = tuple(transformed_image.shape), self.model.image_size
        if len(shape) != 4 or shape[:2] != (1, 3) or max(shape[2:]) != side:
            raise DistillError(f"a transformed photo is (1, 3, h, w) with a longest side of {side}, not {shape}")
        self.reset_image()
        pixels = self.model.preprocess(transformed_image.to(self.device))  # (1, 3, S, S)
        self.features = self.model.encode(pixels.to(self.model.dtype))
        self.original_size = (int(original_image_size[0]), int(original_image_size[1]))
        self.input_size = (shape[2], shape[3])
        self.is_image_set = True

    @torch.no_grad()
    def set_image_batch(
        self, images: Sequence[np.ndarray], image_format: Literal["RGB", "BGR"] = "RGB", *, batch_size: int = 8
    ) -> None:
        """Encode several photos of any sizes, for `predict_batch`.

        Args:
            images: uint8 (H, W, 3) each.
            batch_size: how many the encoder takes at once.
        Raises:
            DistillError: there is no photo, or one has another type or shape.
        """
        if not len(images):
            raise DistillError("there is no photo in the batch")
        photos = [_to_rgb(image, image_format) for image in images]
        self.reset_image()
        embeddings = []
        for start in range(0, len(photos), batch_size):
            pixels = [letterbox(photo, self.model.image_size) for photo in photos[start : start + batch_size]]
            embeddings.append(self.model.encode(torch.stack(pixels).to(self.device, self.model.dtype)))
        self.features = torch.cat(embeddings)  # (B, C, E, E)
        sizes = [(photo.shape[0], photo.shape[1]) for photo in photos]
        side = self.model.image_size
        self._batch = [(size, self.transform.get_preprocess_shape(*size, side)) for size in sizes]

    def get_image_embedding(self) -> Tensor:
        """Return the photo's embedding (1, C, E, E). Before `set_image` it raises NoPhotoError."""
        if not self.is_image_set or self.features is None:
            raise NoPhotoError("no photo is set: call set_image before predict")
        return self.features

    @property
    def embedding(self) -> Tensor:
        """The photo's embedding, as `get_image_embedding` returns it."""
        return self.get_image_embedding()

    def predict(
        self,
        point_coords: npt.ArrayLike | None = None,
        point_labels: npt.ArrayLike | None = None,
        box: npt.ArrayLike | None = None,
        mask_input: npt.ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> Answer:
        """Answer one prompt, which may combine points, a box and an earlier answer; or N prompts of one kind.

        Args:
            point_coords: (K, 2) or (N, K, 2) XY in original pixels.
            point_labels: (K,) or (N, K), 1 on the object, 0 off it, -1 for a point that is to be ignored.
            box: (4,), (1, 4) or (N, 4) XYXY in original pixels.
            mask_input: (1, 4E, 4E) or (N, 1, 4E, 4E) low-res logits of an earlier answer.
            multimask_output: True for three masks, for ambiguous prompts; False for one.
            return_logits: True for logits in place of masks.
        Returns:
            masks bool (M, H, W), or logits float32; predicted IoU float32 (M,); low-res logits float32
            (M, 4E, 4E). M is 3 or 1. For N > 1 prompts each array has N as its first axis. SamPredictor answers one
            prompt.
        Raises:
            DistillError: there is no photo or no prompt, or the prompt has another shape.
        """
        features = self.get_image_embedding()
        assert self.original_size is not None and self.input_size is not None
        prompt = read_prompt(point_coords, point_labels, box, mask_input, low_res_size=self.model.low_res_size)
        sizes = (self.original_size, self.input_size)
        return _without_one(self._answer(features, [prompt], [sizes], multimask_output, return_logits)[0])

    def predict_batch(
        self,
        point_coords_batch: Sequence[npt.ArrayLike | None] | None = None,
        point_labels_batch: Sequence[npt.ArrayLike | None] | None = None,
        box_batch: Sequence[npt.ArrayLike | None] | None = None,
        mask_input_batch: Sequence[npt.ArrayLike | None] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """Answer prompts on each photo of `set_image_batch`, decoding those of one kind together.

        Args:
            point_coords_batch, point_labels_batch, box_batch, mask_input_batch: for each photo what `predict` takes.
                None stands for a photo without this part of a prompt, or for all of them.
        Returns:
            lists with an array for each photo: masks bool (N, M, H, W), predicted IoU (N, M), and low-res logits
            (N, M, 4E, 4E). Here N stands first also where it is 1.
        Raises:
            DistillError: see `predict`; or a list is not as long as the photos.
        """
        if not self._batch or self.features is None:
            raise NoPhotoError("no photos are set: call set_image_batch before predict_batch")
        given = (point_coords_batch, point_labels_batch, box_batch, mask_input_batch)
        for values in given:
            if values is not None and len(values) != len(self._batch):
                raise DistillError(f"a prompt is needed for each of {len(self._batch)} photos, not {len(values)}")
        rows = zip(*([None] * len(self._batch) if values is None else values for values in given), strict=True)
        prompts = [read_prompt(*row, low_res_size=self.model.low_res_size) for row in rows]
        answers = self._answer(self.features, prompts, self._batch, multimask_output, return_logits)
        masks, iou_predictions, low_res = zip(*answers, strict=True)
        return list(masks), list(iou_predictions), list(low_res)

    @torch.no_grad()
    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Answer N prompts that `transform` has moved to the prompt frame.

        Args:
            point_coords: (N, K, 2) XY. point_labels: (N, K).
            boxes: (N, 4) XYXY.
            mask_input: (N, 1, 4E, 4E) low-res logits of earlier answers.
            multimask_output, return_logits: as in `predict`.
        Returns:
            masks bool (N, M, H, W), or logits; predicted IoU (N, M); low-res logits (N, M, 4E, 4E). All numbers are
            float32, also those of a model in half precision.
        Raises:
            DistillError: there is no photo or no prompt.
        """
        features = self.get_image_embedding()
        assert self.original_size is not None and self.input_size is not None
        if point_coords is not None and point_labels is None:
            raise DistillError("point_coords are given without point_labels: 1 on the object, 0 off it")
        given = [values for values in (point_coords, boxes, mask_input) if values is not None]
        if not given:
            raise DistillError("nothing to predict: give point_coords with point_labels, boxes, or a mask_input")
        prompts = Prompts(torch.zeros(len(given[0]), dtype=torch.long, device=self.device))
        if point_coords is not None:
            prompts.points_xy, prompts.point_labels = self._float(point_coords), self._float(point_labels)
        if boxes is not None:
            prompts.boxes_xyxy = self._float(boxes).reshape(-1, 4)
        if mask_input is not None:
            prompts.mask_logits = self._float(mask_input)
        low_res, iou_predictions = self._decode(features, prompts, multimask_output)
        masks = self.model.postprocess_masks(low_res, self.input_size, self.original_size)  # (N, M, H, W)
        return masks if return_logits else masks > self.model.mask_threshold, iou_predictions, low_res

    def _to_input(self, image: np.ndarray) -> Tensor:
        resized = np.array(self.transform.apply_image(image))  # a copy: PIL's arrays are read-only
        return torch.from_numpy(resized).to(self.device).permute(2, 0, 1)[None]  # (1, 3, h, w)

    def _float(self, values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)

    @torch.no_grad()
    def _answer(
        self,
        features: Tensor,
        prompts: Sequence[PhotoPrompt],
        sizes: Sequence[tuple[HW, HW]],
        multimask: bool,
        return_logits: bool,
    ) -> list[Answer]:
        """Answer the prompts of each photo, with N as the first axis. Prompts of one kind are decoded together."""
        answers: dict[int, Answer] = {}
        for kind in dict.fromkeys(prompt.kind for prompt in prompts):
            photos = [i for i, prompt in enumerate(prompts) if prompt.kind == kind]
            joined = self._joined(prompts, photos, sizes)
            decoded = self._decode(features, joined, multimask)
            start = 0
            for i in photos:
                rows = slice(start, start + prompts[i].num)
                low_res, iou_predictions = (values[rows] for values in decoded)
                masks = self._full(low_res, sizes[i], return_logits)
                answers[i] = (masks, iou_predictions.cpu().numpy(), low_res.cpu().numpy())
                start = rows.stop
        return [answers[i] for i in range(len(prompts))]

    def _joined(self, prompts: Sequence[PhotoPrompt], photos: Sequence[int], sizes: Sequence[tuple[HW, HW]]) -> Prompts:
        """Join the prompts of some photos, which are of one kind, in the prompt frame."""
        points, labels, boxes, masks = [], [], [], []
        for i in photos:
            prompt, hw = prompts[i], sizes[i][0]
            if prompt.points_xy is not None and prompt.labels is not None:
                points.append(self.transform.apply_coords(prompt.points_xy, hw))
                labels.append(prompt.labels)
            if prompt.boxes_xyxy is not None:
                boxes.append(self.transform.apply_boxes(prompt.boxes_xyxy, hw))
            if prompt.mask_logits is not None:
                masks.append(prompt.mask_logits)
        index = np.repeat(photos, [prompts[i].num for i in photos])
        return Prompts(
            torch.as_tensor(index, dtype=torch.long, device=self.device),
            boxes_xyxy=self._joint(boxes),
            points_xy=self._joint(points),
            point_labels=self._joint(labels),
            mask_logits=self._joint(masks),
        )

    def _joint(self, arrays: Sequence[np.ndarray]) -> Tensor | None:
        return self._float(np.concatenate(arrays)) if arrays else None

    def _decode(self, features: Tensor, prompts: Prompts, multimask: bool) -> tuple[Tensor, Tensor]:
        """Return low-res logits (P, M, 4E, 4E) and predicted IoU (P, M) in float32, MOST_PROMPTS at a time."""
        chunks = [
            self.model.decode(features, prompts.take(slice(start, start + MOST_PROMPTS)), multimask=multimask)
            for start in range(0, len(prompts), MOST_PROMPTS)
        ]
        low_res, iou_predictions = (torch.cat(values).float() for values in zip(*chunks, strict=True))
        return low_res, iou_predictions

    def _full(self, low_res: Tensor, sizes: tuple[HW, HW], return_logits: bool) -> np.ndarray:
        """Return masks, or their logits, at the photo's size (N, M, H, W), computed a few at a time."""
        original, resized = sizes
        num_pixels = low_res.shape[1] * max(original[0] * original[1], self.model.prompt_size**2)
        step = max(1, MOST_PIXELS // num_pixels)
        parts = []
        for start in range(0, len(low_res), step):
            logits = self.model.postprocess_masks(low_res[start : start + step], resized, original)
            parts.append((logits if return_logits else logits > self.model.mask_threshold).cpu().numpy())
        full: np.ndarray = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return full


def _without_one(answer: Answer) -> Answer:
    """Drop the first axis of the answer to one prompt."""
    if len(answer[1]) > 1:
        return answer
    masks, iou_predictions, low_res = answer
    return masks[0], iou_predictions[0], low_res[0]


def _to_rgb(image: Any, image_format: str) -> np.ndarray:
    if image_format not in IMAGE_FORMATS:
        raise DistillError(f"image_format is {' or '.join(IMAGE_FORMATS)}, not {image_format!r}")
    photo = check_image(image)
    return photo if image_format == "RGB" else np.ascontiguousarray(photo[..., ::-1])
