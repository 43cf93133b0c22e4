"""The prompt encoder and mask decoder as one module that every runtime can run: many prompts of one photo a call.

The numbers are those of `PromptableModel.decode`. The graph that comes out of tracing has no OneHot, no comparison of
shapes and no arithmetic on shapes in floats, which converters to engines refuse or get wrong.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn

from distill.models.sam import LOW_RES_PER_CELL, NUM_MULTIMASK, PROMPT_PIXELS_PER_CELL, PromptableModel
from distill.prompts.types import BOX_HIGH, BOX_LOW, NEGATIVE, PAD, POSITIVE, paint_boxes, paint_clicks

# ours: a point that the decoder does not see at all, so that prompts of different lengths fit one array
NO_POINT = -2
PROMPT_PIXELS_PER_LOGIT = PROMPT_PIXELS_PER_CELL / LOW_RES_PER_CELL
HIDDEN_SCORE = -1e4  # an attention score whose softmax is 0; half precision still holds it

Masks: TypeAlias = Literal["single", "all"]
NUM_MASKS: dict[Masks, int] = {"single": 1, "all": 1 + NUM_MULTIMASK}


@dataclass(frozen=True)
class DecoderForm:
    """What the decoder takes and gives.

    masks: "single" for token 0 alone, "all" for token 0 and then the three of the multimask output.
    photo_size: True for masks in the photo's own size too, which takes its height and width as `orig_im_size`.
    point_frame: the longest side, in pixels, of the frame of the points. None is the prompt frame, 16 E.
    mask_side: the side of `mask_input`. None is 4E; another one is resized.
    mends_padding: True for clients that append a padding point to every prompt or to none. SAM was trained with one
        where there is no box and with none beside a box, and so is the graph then.
    """

    masks: Masks = "all"
    photo_size: bool = False
    point_frame: int | None = None
    mask_side: int | None = None
    mends_padding: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """Return the names of the inputs, in order."""
        names = ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input")
        return (*names, "orig_im_size") if self.photo_size else names

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the names of the outputs, in order; those of the photo's size are segment-anything's."""
        if self.photo_size:
            return ("masks", "iou_predictions", "low_res_masks")
        return ("low_res_masks", "iou_predictions")


class ExportDecoder(nn.Module):
    """The decoder of a model: B prompts of one photo, each of N points, to masks and predicted IoU.

    Inputs:
        image_embeddings: (1, C, E, E).
        point_coords: (B, N, 2) XY in the prompt frame, unless the form says otherwise.
        point_labels: (B, N). 1 is on the object, 0 off it; 2 and 3 are the corners of a box. A prompt without a box
            ends with one point of the label -1. Points of the label -2 do not exist: they fill the shorter prompts.
        mask_input: (B, 1, 4E, 4E) low-res logits of earlier answers; or one for all prompts.
        has_mask_input: (B,) 1 to use the mask of a prompt, 0 to ignore it; or one for all prompts.
        orig_im_size: (2,) H and W of the photo, if the form asks for masks of its size.

    Outputs, of K masks:
        low_res_masks: (B, K, 4E, 4E) logits.
        iou_predictions: (B, K).
        masks: (B, K, H, W) logits in original pixels, if the form asks for them.
    """

    positions: Tensor
    no_mask: Tensor
    output_tokens: Tensor

    def __init__(self, model: PromptableModel, form: DecoderForm) -> None:
        super().__init__()
        self.form = form
        self.embedding_dim, self.embedding_size = model.embedding_dim, model.embedding_size
        self.prompt_size, self.low_res_size = model.prompt_size, model.low_res_size
        self.paints_prompts = model.spec.paint_prompts
        self.reader = PromptReader(form, model.prompt_size)
        self.points = PointEncoder(model)
        self.painter = PromptPainter(model.prompt_size, model.low_res_size)
        self.to_photo = ToPhoto(model.prompt_size)
        prompt_encoder = copy.deepcopy(model.prompt_encoder)
        self.mask_downscaling = prompt_encoder.mask_downscaling
        positions = prompt_encoder.get_dense_pe().detach().float()  # (1, C, E, E)
        self.register_buffer("positions", positions.flatten(2).transpose(1, 2))  # (1, E E, C)
        self.register_buffer("no_mask", prompt_encoder.no_mask_embed.weight.detach()[..., None, None])  # (1, C, 1, 1)
        decoder = copy.deepcopy(model.mask_decoder)
        tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).detach()
        self.register_buffer("output_tokens", tokens[None])  # (1, 5, C)
        self.layers = nn.ModuleList(TwoWayLayer(layer) for layer in decoder.transformer.layers)
        self.final_attention = TokenAttention(decoder.transformer.final_attn_token_to_image)
        self.final_norm = decoder.transformer.norm_final_attn
        self.upscaling = decoder.output_upscaling
        self.filters = decoder.output_hypernetworks_mlps[: NUM_MASKS[form.masks]]
        self.iou_head = decoder.iou_prediction_head

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        orig_im_size: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        point_coords, point_labels = self.reader(point_coords, point_labels)
        sparse, hidden = self.points(point_coords, point_labels)
        dense = self._dense(point_coords, point_labels, mask_input, has_mask_input)  # (B or 1, C, E, E)
        images = (image_embeddings + dense).reshape(-1, self.embedding_dim, self.embedding_size**2)
        queries, images = self._two_way(sparse, images.transpose(1, 2), hidden)
        low_res = self._upscale(images, queries)
        iou = self.iou_head(queries[:, 0])[:, : NUM_MASKS[self.form.masks]]
        if orig_im_size is None:
            return low_res, iou
        return self.to_photo(low_res, orig_im_size), iou, low_res

    def _dense(self, coords: Tensor, labels: Tensor, mask: Tensor, has_mask: Tensor) -> Tensor:
        """Encode earlier masks, and the painted prompts of models that read them: (B or 1, C, E, E)."""
        if self.form.mask_side not in (None, self.low_res_size):
            size = (self.low_res_size, self.low_res_size)
            mask = F.interpolate(mask, size, mode="bilinear", align_corners=False)
        given = has_mask.clamp(0, 1).reshape(-1, 1, 1, 1)  # osam says -1 where segment-anything says 0
        if self.paints_prompts:
            painted: Tensor = self.mask_downscaling(given * mask + self.painter(coords, labels))
            return painted
        encoded: Tensor = self.mask_downscaling(mask)
        return given * encoded + (1 - given) * self.no_mask

    def _two_way(self, sparse: Tensor, images: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Run SAM's transformer: prompt tokens (B, N, C), image tokens (B or 1, E E, C) -> both, changed.

        Args:
            hidden: (B, 1, 1, 5 + N) what is added to the scores of each token as a key.
        """
        # `hidden` is 0 for SAM's own tokens, so adding it repeats them for each prompt, without a look at shapes
        output_tokens = self.output_tokens + hidden[:, 0, 0, : self.output_tokens.shape[1], None]  # (B, 5, C)
        tokens = torch.cat([output_tokens, sparse], 1)  # (B, 5 + N, C)
        queries = tokens
        for layer in self.layers:
            queries, images = layer(queries, images, tokens, self.positions, hidden)
        attended = self.final_attention(queries + tokens, images + self.positions, images)
        return self.final_norm(queries + attended), images

    def _upscale(self, images: Tensor, queries: Tensor) -> Tensor:
        """Compute the logits (B, K, 4E, 4E) from image tokens (B, E E, C) and tokens (B, 5 + N, C)."""
        size, side = self.embedding_size, self.low_res_size
        maps = images.transpose(1, 2).reshape(-1, self.embedding_dim, size, size)
        maps = self.upscaling(maps)  # (B, C / 8, 4E, 4E)
        filters = torch.stack([mlp(queries[:, 1 + i]) for i, mlp in enumerate(self.filters)], 1)  # (B, K, C / 8)
        logits: Tensor = filters @ maps.reshape(-1, filters.shape[-1], side * side)
        return logits.reshape(-1, len(self.filters), side, side)


class PromptReader(nn.Module):
    """The client's points as SAM's: in the prompt frame, with the padding that SAM was trained with."""

    keeps_float32 = True

    def __init__(self, form: DecoderForm, prompt_size: int) -> None:
        super().__init__()
        self.scale = prompt_size / (form.point_frame or prompt_size)
        self.mends_padding = form.mends_padding

    def forward(self, coords: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coordinates (B, N, 2) and labels (B, N) in SAM's form.

        If the form mends padding, the client's padding is hidden; one point is appended, and hidden beside a box.
        """
        if self.scale != 1:
            coords = coords * self.scale
        if self.mends_padding:
            labels = torch.where(labels < 0, float(NO_POINT), labels)
            has_box = (labels == BOX_LOW).float().amax(1, keepdim=True)  # (B, 1)
            labels = torch.cat([labels, has_box * NO_POINT + (1 - has_box) * PAD], 1)
            coords = F.pad(coords, (0, 0, 0, 1))
        return coords, labels


class PromptPainter(nn.Module):
    """Points and boxes as a mask, for models that read their prompts so too (prompts.paint_prompts)."""

    keeps_float32 = True

    def __init__(self, prompt_size: int, low_res_size: int) -> None:
        super().__init__()
        self.sizes = {"prompt_size": prompt_size, "low_res_size": low_res_size}

    def forward(self, coords: Tensor, labels: Tensor) -> Tensor:
        """Paint points (B, N, 2) with labels (B, N) as mask logits (B, 1, 4E, 4E)."""
        is_low, is_high = ((labels == label).float()[..., None] for label in (BOX_LOW, BOX_HIGH))  # (B, N, 1)
        low, high = (coords * is_low).sum(1), (coords * is_high).sum(1)  # (B, 2)
        box = paint_boxes(torch.cat([low, high], 1), **self.sizes)
        box = box * is_low.sum(1)[..., None]  # 0 for a prompt without a box
        signs = (labels == POSITIVE).float() - (labels == NEGATIVE).float()  # (B, N)
        return (box + paint_clicks(coords, signs, **self.sizes))[:, None]


class ToPhoto(nn.Module):
    """Logits in the photo's own resolution, as `geometry.masks_to_original` computes them.

    Sizes are computed in whole numbers: engines refuse floats, and half precision would lose pixels.
    """

    keeps_float32 = True

    def __init__(self, prompt_size: int) -> None:
        super().__init__()
        self.prompt_size = prompt_size

    def forward(self, low_res: Tensor, orig_im_size: Tensor) -> Tensor:
        """Resize logits (B, K, 4E, 4E) to (B, K, H, W); orig_im_size is (2,), H and W."""
        size = orig_im_size.to(torch.int64)  # (2,)
        longest = size.max()
        # the longest side at prompt_size, rounded half up
        inner = torch.div(2 * size * self.prompt_size + longest, 2 * longest, rounding_mode="trunc")
        rows, columns = inner.clamp(min=1).unbind()
        masks = F.interpolate(low_res, scale_factor=PROMPT_PIXELS_PER_LOGIT, mode="bilinear", align_corners=False)
        masks = masks[..., :rows, :columns]
        height, width = size.unbind()
        return F.interpolate(masks, (height, width), mode="bilinear", align_corners=False)  # type: ignore[arg-type]


class PointEncoder(nn.Module):
    """SAM's encoding of labelled points: (B, N, 2) and (B, N) -> tokens (B, N, C), and which of them are hidden."""

    LABELS = (PAD, NEGATIVE, POSITIVE, BOX_LOW, BOX_HIGH)
    keeps_float32 = True  # half precision would place a point half a pixel off
    frequencies: Tensor
    embeddings: Tensor

    def __init__(self, model: PromptableModel) -> None:
        super().__init__()
        encoder = model.prompt_encoder
        self.prompt_size = model.prompt_size
        frequencies = encoder.pe_layer.positional_encoding_gaussian_matrix.detach().float()  # (2, C / 2)
        self.register_buffer("frequencies", 2 * torch.pi * frequencies)
        embeddings = [encoder.not_a_point_embed, *encoder.point_embeddings]
        self.register_buffer("embeddings", torch.cat([e.weight.detach() for e in embeddings]))  # (5, C)

    def forward(self, coords: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode points.

        Returns:
            tokens (B, N, C), and what is added to the scores of the decoder's tokens as keys, (B, 1, 1, 5 + N).
        """
        angles = (2 * (coords + 0.5) / self.prompt_size - 1) @ self.frequencies  # (B, N, C / 2)
        placed = torch.cat([angles.sin(), angles.cos()], -1) * (labels >= 0).float()[..., None]  # (B, N, C)
        is_label = torch.stack([(labels == label).float() for label in self.LABELS], -1)  # (B, N, 5)
        hidden = F.pad((labels < PAD).float() * HIDDEN_SCORE, (2 + NUM_MULTIMASK, 0))  # (B, 5 + N)
        return placed + is_label @ self.embeddings, hidden[:, None, None]


class TwoWayLayer(nn.Module):
    """A layer of SAM's transformer, whose attentions can leave prompt tokens out."""

    def __init__(self, layer: TwoWayAttentionBlock) -> None:
        super().__init__()
        self.is_first = layer.skip_first_layer_pe
        self.self_attention = TokenAttention(layer.self_attn)
        self.to_image = TokenAttention(layer.cross_attn_token_to_image)
        self.from_image = TokenAttention(layer.cross_attn_image_to_token)
        self.mlp = layer.mlp
        self.norm1, self.norm2, self.norm3, self.norm4 = layer.norm1, layer.norm2, layer.norm3, layer.norm4

    def forward(
        self, queries: Tensor, images: Tensor, tokens: Tensor, positions: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Change tokens (B, 5 + N, C) by each other and by the image tokens (B or 1, E E, C), and these by them."""
        if self.is_first:
            queries = self.self_attention(queries, queries, queries, hidden)
        else:
            placed = queries + tokens
            queries = queries + self.self_attention(placed, placed, queries, hidden)
        queries = self.norm1(queries)
        queries = self.norm2(queries + self.to_image(queries + tokens, images + positions, images))
        queries = self.norm3(queries + self.mlp(queries))
        changed = self.from_image(images + positions, queries + tokens, queries, hidden)
        return queries, self.norm4(images + changed)


class TokenAttention(nn.Module):
    """SAM's attention with a bias on its keys. Queries are scaled before the product, so that half precision holds."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.num_heads: int = attention.num_heads
        self.head_dim: int = attention.internal_dim // attention.num_heads
        self.q_proj, self.k_proj = attention.q_proj, attention.k_proj
        self.v_proj, self.out_proj = attention.v_proj, attention.out_proj

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Attend from (B or 1, L, C) to (B or 1, M, C); `hidden`, (B, 1, 1, M), is added to the scores."""
        query = self._heads(self.q_proj(queries) * self.head_dim**-0.5)  # (B, heads, L, D / heads)
        key, value = self._heads(self.k_proj(keys)), self._heads(self.v_proj(values))
        scores = query @ key.transpose(2, 3)  # (B, heads, L, M)
        if hidden is not None:
            scores = scores + hidden
        mixed = (scores.softmax(-1) @ value).transpose(1, 2)  # (B, L, heads, D / heads)
        attended: Tensor = self.out_proj(mixed.reshape(mixed.shape[0], -1, self.num_heads * self.head_dim))
        return attended

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1, self.num_heads, self.head_dim).transpose(1, 2)
