"""The promptable model: an image encoder with segment-anything's prompt encoder and mask decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distill.errors import DistillError, did_you_mean
from distill.geometry import HW, normalize_pad_torch
from distill.models.mask_decoder import SharedImages, decode_prompts, flatten_grid
from distill.models.photo_transform import masks_from_input
from distill.prompts.types import Prompts, paint_prompts
from distill.students import STUDENTS, build_encoder, check_student_name
from distill.students.layers import without_autocast

PROMPT_PIXELS_PER_CELL = 16  # the prompt frame is 16 E wide: 1024 for SAM, whatever the encoder reads
LOW_RES_PER_CELL = 4  # the decoder's two stride-2 upsamplings

# segment_anything/build_sam.py
MASK_IN_CHANNELS = 16
DECODER_DEPTH, DECODER_HEADS = 2, 8
IOU_HEAD_DEPTH, IOU_HEAD_DIM = 3, 256
NUM_MULTIMASK = 3
MASK_THRESHOLD, IMAGE_FORMAT = 0.0, "RGB"  # segment_anything/modeling/sam.py


@dataclass(frozen=True)
class ModelSpec:
    """The description from which a promptable model can be built again.

    encoder: a registered student, a plug-in's, or timm/NAME.
    image_size: S.
    embedding_dim: C.
    embedding_size: E.
    decoder_mlp_dim: hidden width of the decoder's MLPs.
    norm_eps: see students.Student.
    paint_prompts: True if boxes and clicks are also painted as a mask prompt (prompts.paint_prompts). SAM's models do
        not need this: they learn from 11 million photos what a box token means. A model with little training
        understands a painted box at once.
    """

    encoder: str
    image_size: int
    embedding_dim: int = 256
    embedding_size: int = 64
    decoder_mlp_dim: int = 2048
    norm_eps: float | None = None
    paint_prompts: bool = False


class ExactPositions(PositionEmbeddingRandom):  # type: ignore[misc] # segment_anything has no types
    """SAM's positions, in float32 under any autocast: bfloat16 would place a prompt 0.6 pixels of 1024 off on average.

    matrix: frequencies (2, C / 2), in cycles per half a frame.
    """

    def __init__(self, matrix: Tensor) -> None:
        nn.Module.__init__(self)  # not its parent's, which draws a matrix: a seed gives the same model as without this
        self.register_buffer("positional_encoding_gaussian_matrix", matrix)

    def _pe_encoding(self, coords: Tensor) -> Tensor:
        """Encode positions (..., 2), XY as shares of the frame, as (..., C)."""
        with without_autocast(coords):
            encoded: Tensor = super()._pe_encoding(coords.float())
        return encoded


class PromptableModel(nn.Module):
    """An encoder, a prompt encoder and a mask decoder under the names of SAM's published checkpoints.

    mask_threshold: a logit above it is a pixel of the mask. image_format: the order of colours. Both, `device`,
    `preprocess` and `postprocess_masks` are those of segment-anything's Sam.
    """

    mask_threshold = MASK_THRESHOLD
    image_format = IMAGE_FORMAT

    def __init__(self, spec: ModelSpec, image_encoder: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        self.image_encoder = image_encoder
        self.prompt_encoder = PromptEncoder(
            embed_dim=spec.embedding_dim,
            image_embedding_size=(spec.embedding_size, spec.embedding_size),
            input_image_size=(self.prompt_size, self.prompt_size),
            mask_in_chans=MASK_IN_CHANNELS,
        )
        self.prompt_encoder.pe_layer = ExactPositions(self.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix)
        self.mask_decoder = MaskDecoder(
            num_multimask_outputs=NUM_MULTIMASK,
            transformer=TwoWayTransformer(
                depth=DECODER_DEPTH,
                embedding_dim=spec.embedding_dim,
                mlp_dim=spec.decoder_mlp_dim,
                num_heads=DECODER_HEADS,
            ),
            transformer_dim=spec.embedding_dim,
            iou_head_depth=IOU_HEAD_DEPTH,
            iou_head_hidden_dim=IOU_HEAD_DIM,
        )
        if spec.norm_eps is not None:
            set_norm_eps(self, spec.norm_eps)

    @property
    def image_size(self) -> int:
        """Side S of the encoder's input in pixels."""
        return self.spec.image_size

    @property
    def embedding_dim(self) -> int:
        """Channels C of the embedding."""
        return self.spec.embedding_dim

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

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the encoder's weights, in which it takes pixels."""
        return next((p.dtype for p in self.image_encoder.parameters() if p.is_floating_point()), torch.float32)

    @property
    def decoder_dtype(self) -> torch.dtype:
        """The number format of the decoder's weights: float32, but for a model in half or double precision."""
        dtype: torch.dtype = self.mask_decoder.iou_token.weight.dtype
        return dtype

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> PromptableModel:
        """Move or convert the model. The positions of prompts stay in float32, in which segment_anything computes."""
        layer = self.prompt_encoder.pe_layer
        exact = layer.positional_encoding_gaussian_matrix
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call] # torch's own has no types
        moved = layer.positional_encoding_gaussian_matrix
        if moved.dtype != exact.dtype:
            layer.positional_encoding_gaussian_matrix = exact.to(moved.device)
        return self

    def preprocess(self, x: Tensor) -> Tensor:
        """Normalise photos (..., 3, h, w) of the input frame, 0 to 255, and pad them with zeros to (..., 3, S, S)."""
        return normalize_pad_torch(x, self.image_size)

    def postprocess_masks(self, masks: Tensor, input_size: HW, original_size: HW) -> Tensor:
        """Resize logits (P, K, 4E, 4E) to the photo's own resolution (P, K, H, W).

        Args:
            input_size: height and width of the photo in the input frame, without padding.
            original_size: height and width in original pixels.
        """
        sizes = {"image_size": self.image_size, "prompt_size": self.prompt_size}
        return masks_from_input(masks, input_size, original_size, **sizes)

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels (B, 3, S, S) as embeddings (B, C, E, E)."""
        embeddings: Tensor = self.image_encoder(pixels)
        return embeddings

    def decode(self, embeddings: Tensor, prompts: Prompts, *, multimask: bool) -> tuple[Tensor, Tensor]:
        """Answer all prompts of a batch of images.

        Args:
            embeddings: (B, C, E, E).
            prompts: P prompts that name their image.
            multimask: True for three masks per prompt (tokens 1 to 3), False for one (token 0).
        Returns:
            low-res mask logits (P, K, 4E, 4E) and predicted IoU (P, K); K is 3 or 1.
        """
        return self.decode_all(embeddings, prompts, masks=slice(1, None) if multimask else slice(0, 1))

    def decode_all(
        self,
        embeddings: Tensor,
        prompts: Prompts,
        *,
        masks: slice = slice(None),
        prompts_per_chunk: int = 0,
        checkpointing: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Answer all prompts as `decode` does, with all four masks: token 0 (single), then the multimask output.

        Args:
            embeddings: (B, C, E, E).
            prompts: P prompts that name their image.
            masks: which K of the four masks to return.
            prompts_per_chunk: how many prompts the decoder takes at once; 0 means all.
            checkpointing: True to compute a chunk's intermediate results again in the backward pass instead of
                keeping them.
        Returns:
            low-res mask logits (P, K, 4E, 4E) and predicted IoU (P, K).
        """
        positions = flatten_grid(self.prompt_encoder.get_dense_pe())[0].to(self.decoder_dtype)  # (E E, C)
        if self.decoder_dtype != torch.float32:  # with float32 weights the sums below convert; so they do in autocast
            embeddings = embeddings.to(self.decoder_dtype)
        images: SharedImages | Tensor = embeddings
        if not self._has_masks(prompts):
            no_mask = self.prompt_encoder.no_mask_embed.weight[..., None, None]  # (1, C, 1, 1)
            images = SharedImages(flatten_grid(embeddings + no_mask), positions, self.mask_decoder)
        checkpointing = checkpointing and torch.is_grad_enabled()
        answers = []
        for chunk in _chunks(prompts, prompts_per_chunk):
            decode = partial(self._decode_chunk, images, chunk, positions, masks, lean=not checkpointing)
            answers.append(
                checkpoint(decode, use_reentrant=False, preserve_rng_state=False) if checkpointing else decode()
            )
        logits, iou_predictions = zip(*answers, strict=True)
        return torch.cat(logits), torch.cat(iou_predictions)

    def _decode_chunk(
        self, images: SharedImages | Tensor, prompts: Prompts, positions: Tensor, masks: slice, *, lean: bool
    ) -> tuple[Tensor, Tensor]:
        """Answer the prompts of one chunk.

        Args:
            images: image tokens that all prompts share, if no prompt has a mask; else embeddings (B, C, E, E), to
                which the encoded masks are added.
        """
        sparse, dense = self._encode_prompts(prompts)
        if isinstance(images, Tensor):
            # not images[index], whose gradient is summed in any order on several threads: a resumed run would differ
            images = flatten_grid(images.index_select(0, prompts.image_index) + dense)
        return decode_prompts(self.mask_decoder, images, positions, sparse, prompts.image_index, masks=masks, lean=lean)

    def _has_masks(self, prompts: Prompts) -> bool:
        return self.spec.paint_prompts or prompts.mask_logits is not None

    def _encode_prompts(self, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Return the prompt tokens (P, T, C) and the encoded masks (P, C, E, E), which are added to the embedding."""
        points = None
        if prompts.points_xy is not None:
            points = (prompts.points_xy, prompts.point_labels)
        masks = prompts.mask_logits
        if self.spec.paint_prompts:
            painted = paint_prompts(prompts, prompt_size=self.prompt_size, low_res_size=self.low_res_size)
            masks = painted if masks is None else masks + painted
        if masks is not None:
            masks = masks.to(self.decoder_dtype)
        sparse, dense = self.prompt_encoder(points=points, boxes=prompts.boxes_xyxy, masks=masks)
        sparse, dense = sparse.to(self.decoder_dtype), dense.to(self.decoder_dtype)
        if len(sparse) != len(prompts):  # for prompts of only masks segment_anything returns a batch of one
            sparse = sparse.expand(len(prompts), -1, -1)
        return sparse, dense


def _chunks(prompts: Prompts, size: int) -> list[Prompts]:
    """Split prompts in order into chunks of at most `size`; 0 means one chunk."""
    if not 0 < size < len(prompts):
        return [prompts]
    return [prompts.take(slice(start, start + size)) for start in range(0, len(prompts), size)]


def set_norm_eps(model: nn.Module, eps: float) -> None:
    """Set the epsilon of every batch and layer norm."""
    for module in model.modules():
        if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d, LayerNorm2d)):
            module.eps = eps


def build_from_spec(spec: ModelSpec) -> PromptableModel:
    """Build a promptable model with random weights, in eval mode.

    Raises:
        DistillError: a model of this spec cannot be built.
    """
    encoder = build_encoder(
        spec.encoder,
        image_size=spec.image_size,
        embedding_dim=spec.embedding_dim,
        embedding_size=spec.embedding_size,
    )
    return PromptableModel(spec, encoder).eval()


def spec_for(student: str, *, image_size: int | None = None, like: ModelSpec | None = None) -> ModelSpec:
    """Return the spec of a student with SAM's embedding, or with the embedding and decoder of the model `like`.

    Args:
        image_size: S; None selects the student's own.
    """
    entry = check_student_name(student)
    size = entry.image_size if image_size is None else image_size
    if like is None:
        return ModelSpec(student, size, norm_eps=entry.norm_eps)
    return ModelSpec(
        student,
        size,
        embedding_dim=like.embedding_dim,
        embedding_size=like.embedding_size,
        decoder_mlp_dim=like.decoder_mlp_dim,
        norm_eps=entry.norm_eps,
        paint_prompts=like.paint_prompts,
    )


def build_model(name: str) -> PromptableModel:
    """Build a published model by its name (students.STUDENTS), with random weights, in eval mode.

    Raises:
        DistillError: the name is not registered.
    """
    if name not in STUDENTS:
        raise DistillError(f"unknown model '{name}'. {did_you_mean(name, STUDENTS)}")
    return build_from_spec(spec_for(name))
