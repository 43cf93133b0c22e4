"""SAM's mask decoder for many prompts over few images: segment-anything's answers and weights, with less work.

segment-anything copies the embedding for every prompt, projects the copies, and keeps every step for the backward pass.
This module differs in four points:

- While all prompts of an image still see the same image tokens, these are projected once for all prompts.
- Later, E x E image tokens of each prompt meet a few prompt tokens. The projections of the image side are then applied
  to those few instead (query . W x = (W' query) . x), so that no projected image is computed or kept.
- Sums, norms and activations are not kept for the backward pass but computed again, which is cheap. Matrix products
  are never computed again.
- The upscaling stays in token order; only the final logits are rearranged into maps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class SharedImages:
    """Image tokens (B, E E, C) that no prompt has changed yet, and their projections in the first layer.

    Args:
        values: (B, E E, C), the embeddings plus what is the same for all prompts.
        positions: (E E, C), the grid's positional encoding.
        decoder: its weights project the tokens.
    """

    def __init__(self, values: Tensor, positions: Tensor, decoder: MaskDecoder) -> None:
        layer = decoder.transformer.layers[0]
        to_image, to_token = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
        placed = values + positions
        self.values = values
        self.keys, self.image_values = to_image.k_proj(placed), to_image.v_proj(values)  # (B, E E, D)
        self.image_queries = to_token.q_proj(placed)  # (B, E E, D)


class SharedImagesOfPrompts:
    """SharedImages for P prompts, laid out as (B, N) slots; N is the largest number of prompts of one image."""

    def __init__(self, images: SharedImages, image_index: Tensor, *, lean: bool) -> None:
        self.lean = lean
        self.image_index = image_index
        self.values = images.values
        present, place = torch.unique(image_index, return_inverse=True)
        # not x[index], whose gradient is summed in any order on several threads: a resumed run would differ
        self.keys, self.image_values, self.image_queries = (
            x.index_select(0, present) for x in (images.keys, images.image_values, images.image_queries)
        )
        counts = torch.bincount(place)
        order = place.argsort(stable=True)
        first = counts.cumsum(0) - counts
        self.num_slots = int(counts.max())
        slot = torch.empty_like(place)
        slot[order] = torch.arange(len(order), device=order.device) - first[place[order]]
        self.slots = place * self.num_slots + slot  # (P,) in 0 .. B N

    def answer(self, attention: Attention, queries: Tensor, positions: Tensor) -> Tensor:
        """Attend from tokens to the image: (P, T, C) -> (P, T, C)."""
        rows = self._by_image(attention.q_proj(queries))
        answers = _attend(attention, rows, self.keys, self.image_values)  # (B, N T, C)
        return self._by_prompt(torch.unflatten(answers, 1, (self.num_slots, -1)))

    def changed_by(self, attention: Attention, keys: Tensor, values: Tensor, positions: Tensor) -> Tensor:
        """Add to the image tokens what they take from prompt tokens: keys, values (P, T, C) -> (P, E E, C)."""
        rows = _scaled_heads(attention, self._by_image(attention.k_proj(keys)))  # (B, heads, N T, D / heads)
        queries = _split_heads(attention, self.image_queries)  # (B, heads, E E, D / heads)
        scores = rows @ queries.transpose(2, 3)  # (B, heads, N T, E E)
        scores = torch.unflatten(scores, 2, (self.num_slots, -1))  # (B, heads, N, T, E E)
        scores = self._by_prompt(scores.transpose(1, 2))  # (P, heads, T, E E)
        before = self.values  # one image serves all prompts without a copy for each
        if len(before) > 1:
            before = before.index_select(0, self.image_index)
        return _add_attended(attention, before, scores, values)

    def _by_image(self, per_prompt: Tensor) -> Tensor:
        """Put all prompts of an image into one row, empty slots zero: (P, T, D) -> (B, N T, D)."""
        num_images = len(self.keys)
        rows = per_prompt.new_zeros(num_images * self.num_slots, *per_prompt.shape[1:])
        return torch.unflatten(rows.index_copy(0, self.slots, per_prompt), 0, (num_images, -1)).flatten(1, 2)

    def _by_prompt(self, slots: Tensor) -> Tensor:
        """Take the slots that hold a prompt, in the prompts' order: (B, N, ...) -> (P, ...)."""
        return slots.flatten(0, 1).index_select(0, self.slots)


class SharedImage(SharedImagesOfPrompts):
    """SharedImagesOfPrompts for P prompts on one image: all are in its row already, so nothing has to be laid out."""

    def __init__(self, images: SharedImages, *, lean: bool) -> None:
        self.lean = lean
        self.values = images.values
        self.keys, self.image_values, self.image_queries = images.keys, images.image_values, images.image_queries

    def answer(self, attention: Attention, queries: Tensor, positions: Tensor) -> Tensor:
        """Attend from tokens to the image: (P, T, C) -> (P, T, C)."""
        rows = attention.q_proj(queries).flatten(0, 1)[None]  # (1, P T, D)
        answers = _attend(attention, rows, self.keys, self.image_values)  # (1, P T, C)
        return answers.reshape(queries.shape)

    def changed_by(self, attention: Attention, keys: Tensor, values: Tensor, positions: Tensor) -> Tensor:
        """Add to the image tokens what they take from prompt tokens: keys, values (P, T, C) -> (P, E E, C)."""
        rows = _scaled_heads(attention, attention.k_proj(keys).flatten(0, 1)[None])  # (1, heads, P T, D / heads)
        queries = _split_heads(attention, self.image_queries)  # (1, heads, E E, D / heads)
        scores = (rows @ queries.transpose(2, 3))[0]  # (heads, P T, E E)
        scores = scores.reshape(scores.shape[0], keys.shape[0], keys.shape[1], -1)  # (heads, P, T, E E)
        return _add_attended(attention, self.values, scores.transpose(0, 1), values)


class ImagesOfPrompts:
    """Image tokens (P, E E, C) of each prompt, with the methods of SharedImagesOfPrompts."""

    def __init__(self, values: Tensor, *, lean: bool) -> None:
        self.values = values
        self.lean = lean

    def answer(self, attention: Attention, queries: Tensor, positions: Tensor) -> Tensor:
        """Attend from tokens to the image: (P, T, C) -> (P, T, C). The keys' bias is equal for all keys: no effect."""
        heads = attention.num_heads
        projected = _scaled_heads(attention, attention.q_proj(queries))  # (P, heads, T, D / heads)
        absorbed = _absorb(attention, projected, attention.k_proj)  # (P, heads T, C)
        scores = _run(_placed_scores, self.values, positions, absorbed, lean=self.lean)  # (P, heads T, E E)
        weights = scores.softmax(-1)
        mixed = torch.unflatten(weights @ self.values, 1, (heads, -1))  # (P, heads, T, C)
        weight = attention.v_proj.weight.unflatten(0, (heads, -1))  # (heads, D / heads, C)
        values = torch.einsum("phtc,hdc->pthd", mixed, weight).flatten(2) + attention.v_proj.bias
        answers: Tensor = attention.out_proj(values)
        return answers

    def changed_by(self, attention: Attention, keys: Tensor, values: Tensor, positions: Tensor) -> Tensor:
        """Add to the image tokens what they take from prompt tokens: keys, values (P, T, C) -> (P, E E, C)."""
        projected = _scaled_heads(attention, attention.k_proj(keys))  # (P, heads, T, D / heads)
        absorbed = _absorb(attention, projected, attention.q_proj)  # (P, heads T, C)
        bias = attention.q_proj.bias.unflatten(0, (attention.num_heads, -1))  # (heads, D / heads)
        shift = torch.einsum("phtd,hd->pht", projected, bias)[..., None]
        scores = _run(_placed_scores, self.values, positions, absorbed, lean=self.lean)  # (P, heads T, E E)
        scores = torch.unflatten(scores, 1, (attention.num_heads, -1))  # (P, heads, T, E E)
        return _add_attended(attention, self.values, scores + shift, values)


def decode_prompts(
    decoder: MaskDecoder,
    images: SharedImages | Tensor,
    positions: Tensor,
    sparse: Tensor,
    image_index: Tensor,
    *,
    masks: slice = slice(None),
    lean: bool = True,
) -> tuple[Tensor, Tensor]:
    """Compute the masks of every prompt.

    Args:
        decoder: the weights.
        images: images that the prompts share; or the tokens (P, E E, C) of each prompt if prompt masks were added.
        positions: (E E, C), the grid's positional encoding.
        sparse: prompt tokens (P, T, C).
        image_index: (P,) the image of each prompt.
        masks: which K of the four masks: token 0 (single), then the three of the multimask output.
        lean: True to compute cheap steps again in the backward pass instead of keeping them. False is for callers
            whose own checkpoint computes everything again.
    Returns:
        mask logits (P, K, 4E, 4E) and predicted IoU (P, K).
    """
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])  # (5, C)
    tokens = torch.cat([output_tokens.expand(sparse.shape[0], -1, -1), sparse], 1)  # (P, 5 + T, C)
    laid_out: SharedImagesOfPrompts | ImagesOfPrompts
    if isinstance(images, SharedImages) and len(images.values) == 1:
        laid_out = SharedImage(images, lean=lean)
    elif isinstance(images, SharedImages):
        laid_out = SharedImagesOfPrompts(images, image_index, lean=lean)
    else:
        laid_out = ImagesOfPrompts(images, lean=lean)
    queries, image_tokens = _two_way(decoder, tokens, laid_out, positions)
    mlps = list(enumerate(decoder.output_hypernetworks_mlps))[masks]
    filters = torch.stack([mlp(queries[:, 1 + token]) for token, mlp in mlps], 1)  # (P, K, C/8)
    logits = _upscale(decoder.output_upscaling, image_tokens, filters, lean=lean)
    return logits, decoder.iou_prediction_head(queries[:, 0])[:, masks]


def flatten_grid(maps: Tensor) -> Tensor:
    """Flatten maps (B, C, E, E) to tokens (B, E E, C), each contiguous because all later steps go token by token."""
    return maps.flatten(2).transpose(1, 2).contiguous()


def _two_way(
    decoder: MaskDecoder, tokens: Tensor, images: SharedImagesOfPrompts | ImagesOfPrompts, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Run TwoWayTransformer: tokens (P, 5 + T, C) and images -> tokens (P, 5 + T, C), image tokens (P, E E, C)."""
    transformer = decoder.transformer
    queries = tokens
    for layer in transformer.layers:
        queries, images = _two_way_layer(layer, queries, tokens, images, positions)
    assert isinstance(images, ImagesOfPrompts)
    queries = queries + images.answer(transformer.final_attn_token_to_image, queries + tokens, positions)
    return transformer.norm_final_attn(queries), images.values


def _two_way_layer(
    layer: TwoWayAttentionBlock,
    queries: Tensor,
    tokens: Tensor,
    images: SharedImagesOfPrompts | ImagesOfPrompts,
    positions: Tensor,
) -> tuple[Tensor, ImagesOfPrompts]:
    if layer.skip_first_layer_pe:
        queries = _self_attend(layer.self_attn, queries, queries)
    else:
        queries = queries + _self_attend(layer.self_attn, queries + tokens, queries)
    queries = layer.norm1(queries)
    queries = layer.norm2(queries + images.answer(layer.cross_attn_token_to_image, queries + tokens, positions))
    queries = layer.norm3(queries + layer.mlp(queries))
    changed = images.changed_by(layer.cross_attn_image_to_token, queries + tokens, queries, positions)
    return queries, ImagesOfPrompts(layer.norm4(changed), lean=images.lean)


def _self_attend(attention: Attention, queries_and_keys: Tensor, values: Tensor) -> Tensor:
    keys = attention.k_proj(queries_and_keys)
    return _attend(attention, attention.q_proj(queries_and_keys), keys, attention.v_proj(values))


def _attend(attention: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend with several heads over projected inputs (B, L, D), then project the output."""
    queries = _scaled_heads(attention, queries)
    keys, values = _split_heads(attention, keys), _split_heads(attention, values)
    # one side has few tokens, so the weights are small; a fused kernel would only slow the backward pass
    weights = (queries @ keys.transpose(2, 3)).softmax(-1)  # (B, heads, L, M)
    mixed: Tensor = attention.out_proj((weights @ values).transpose(1, 2).flatten(2))
    return mixed


def _split_heads(attention: Attention, x: Tensor) -> Tensor:
    return torch.unflatten(x, -1, (attention.num_heads, -1)).transpose(1, 2)  # (B, L, D) -> (B, heads, L, D / heads)


def _scaled_heads(attention: Attention, x: Tensor) -> Tensor:
    """Split into heads and divide by the root of D / heads. The tokens are few, so this is cheaper than on scores."""
    heads = _split_heads(attention, x)
    scale: float = heads.shape[-1] ** -0.5
    return heads * scale


def _absorb(attention: Attention, projected: Tensor, other: nn.Linear) -> Tensor:
    """Apply the other side's projection to the tokens: (P, heads, T, D / heads) -> (P, heads T, C).

    A product of the result with the other side's inputs equals the product of the tokens with its projections, apart
    from `other`'s bias.
    """
    weight = torch.unflatten(other.weight, 0, (attention.num_heads, -1))  # (heads, D / heads, C)
    return (projected @ weight).flatten(1, 2)


def _placed_scores(values: Tensor, positions: Tensor, absorbed: Tensor) -> Tensor:
    return absorbed @ (values + positions).transpose(1, 2)  # (P, L, C) and (P, E E, C) -> (P, L, E E)


def _add_attended(attention: Attention, before: Tensor, scores: Tensor, values: Tensor) -> Tensor:
    """Add to image tokens (P, E E, C) what they take from T tokens: scores (P, heads, T, E E), values (P, T, C)."""
    weights = scores.softmax(2).flatten(1, 2)  # (P, heads T, E E)
    projected = _split_heads(attention, attention.v_proj(values))  # (P, heads, T, D / heads)
    weight = attention.out_proj.weight.unflatten(1, (attention.num_heads, -1))  # (C, heads, D / heads)
    taken = torch.einsum("phtd,chd->phtc", projected, weight).flatten(1, 2)  # (P, heads T, C)
    # the weights of a head sum to one, so each head adds its share of the bias
    taken = taken + attention.out_proj.bias / attention.num_heads
    changed: Tensor = before + weights.transpose(1, 2) @ taken  # not baddbmm: under autocast it rounds `before` too
    return changed


def _upscale(upscaling: nn.Sequential, tokens: Tensor, filters: Tensor, *, lean: bool) -> Tensor:
    """Upsample image tokens (P, E E, C) twice by 2 and multiply by filters (P, K, C/8) -> logits (P, K, 4E, 4E).

    A transposed convolution whose kernel equals its stride maps each cell to its own 2 x 2 block. That is a matrix
    product. It is computed as a 1 x 1 convolution over channels-last maps, which on a CPU adds the bias in the same
    pass.
    """
    first, norm, activation, second, last_activation = upscaling
    assert isinstance(first, nn.ConvTranspose2d) and isinstance(second, nn.ConvTranspose2d)
    assert isinstance(norm, LayerNorm2d)

    def to_finer_blocks(cells: Tensor) -> Tensor:
        normed = F.layer_norm(cells, cells.shape[-1:], norm.weight, norm.bias, norm.eps)
        return _to_blocks(second, activation(normed).flatten(1, 2))  # (P, 4 E E, 4, C/8)

    def to_logits(cells: Tensor, filters: Tensor) -> Tensor:
        logits: Tensor = last_activation(cells).flatten(1, 2) @ filters.transpose(1, 2)  # (P, E E 16, K)
        return logits

    cells = _run(to_finer_blocks, _to_blocks(first, tokens), lean=lean)
    logits = _run(to_logits, cells, filters, lean=lean)
    # rows: grid, first block, second block; columns the same
    grid = int(tokens.shape[1] ** 0.5)
    logits = torch.unflatten(logits, 1, (grid, grid, 2, 2, 2, 2)).permute(0, 7, 1, 3, 5, 2, 4, 6)
    return logits.reshape(*filters.shape[:2], 4 * grid, 4 * grid)


def _to_blocks(conv: nn.ConvTranspose2d, cells: Tensor) -> Tensor:
    """Map each cell to its 2 x 2 block, row by row: (P, L, C) -> (P, L, 4, C')."""
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)[..., None, None]  # (C, C', 2, 2) -> (4 C', C, 1, 1)
    assert conv.bias is not None
    maps = F.conv2d(cells[:, :, None].permute(0, 3, 1, 2), weight, conv.bias.repeat(4))  # (P, 4 C', L, 1)
    return torch.unflatten(maps.squeeze(-1).transpose(1, 2), -1, (4, conv.out_channels))


def _run(function: Callable[..., Tensor], *tensors: Tensor, lean: bool) -> Tensor:
    """Run a function whose last step is a matrix product.

    If `lean`, the backward pass computes the steps before the product again. It does not repeat the product, because
    recomputing stops once the product's inputs exist.
    """
    if not lean or not torch.is_grad_enabled():
        return function(*tensors)
    result: Tensor = checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)
    return result
