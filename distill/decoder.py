"""SAM's mask decoder for many prompts over few images: segment-anything's answers and weights, with less work.

segment-anything copies the embedding for every prompt and works on the copies. Here, while all prompts of an image
still see the same image tokens, these are projected and attended to once; later the projections of one input are one
matrix product, and the position term joins after it, where it is narrower and the same for all prompts. The upscaling
stays in token order to the end, where only the logits are put in their places.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn


def decode_prompts(
    decoder: MaskDecoder, embeddings: Tensor, positions: Tensor, sparse: Tensor, dense: Tensor, image_index: Tensor
) -> tuple[Tensor, Tensor]:
    """All four masks of every prompt.

    Args:
        decoder: whose weights answer. embeddings: (B, C, E, E). positions: (1, C, E, E), the grid's encoding.
        sparse: (P, T, C) prompt tokens. image_index: (P,) the image of each prompt.
        dense: (1, C, E, E), the same for all prompts, or (P, C, E, E).
    Returns:
        mask logits (P, 4, 4E, 4E): token 0 (single), then the three of the multimask output; predicted IoU (P, 4).
    """
    grid = embeddings.shape[-1]
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])  # (5, C)
    tokens = torch.cat([output_tokens.expand(len(sparse), -1, -1), sparse], 1)  # (P, 5 + T, C)
    if len(dense) == 1:
        image = ImageTokens(_flatten(embeddings + dense), image_index)
    else:
        # not embeddings[index]: on several threads its gradient is summed in any order, and a resumed run would differ
        image = ImageTokens(_flatten(embeddings.index_select(0, image_index) + dense), None)
    queries, keys = _two_way(decoder, tokens, image, _flatten(positions)[0])
    filters = torch.stack(
        [mlp(queries[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], 1
    )  # (P, 4, C/8)
    return _upscale(decoder.output_upscaling, keys, filters, grid), decoder.iou_prediction_head(queries[:, 0])


def _flatten(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2)  # (B, C, E, E) -> (B, E E, C)


class ImageTokens:
    """The image side: one row of tokens per prompt, or one per image as long as its prompts have not changed it.

    values: (P, E E, C) with image_index None, else (B, E E, C) shared by the prompts that name the image.
    """

    def __init__(self, values: Tensor, image_index: Tensor | None) -> None:
        self.values = values
        self.image_index = image_index
        if image_index is not None:
            # prompts are laid out as (B, N) slots, N the most prompts of an image, so that they attend in one call
            counts = torch.bincount(image_index, minlength=len(values))
            order = image_index.argsort(stable=True)
            first = counts.cumsum(0) - counts
            self.num_slots = int(counts.max())
            slot = torch.empty_like(image_index)
            slot[order] = torch.arange(len(order), device=order.device) - first[image_index[order]]
            self.slots = image_index * self.num_slots + slot  # (P,) in 0 .. B N

    def group(self, per_prompt: Tensor) -> Tensor:
        """(P, L, D) -> (B, N, L, D), empty slots zero."""
        slots = per_prompt.new_zeros(len(self.values) * self.num_slots, *per_prompt.shape[1:])
        slots = slots.index_copy(0, self.slots, per_prompt)
        return slots.unflatten(0, (len(self.values), self.num_slots))

    def ungroup(self, grouped: Tensor) -> Tensor:
        """(B, N, L, D) -> (P, L, D)."""
        return grouped.flatten(0, 1).index_select(0, self.slots)


def _two_way(decoder: MaskDecoder, tokens: Tensor, image: ImageTokens, positions: Tensor) -> tuple[Tensor, Tensor]:
    """TwoWayTransformer: (P, 5 + T, C) tokens and the image's -> tokens (P, 5 + T, C), image tokens (P, E E, C)."""
    transformer = decoder.transformer
    queries = tokens
    for layer in transformer.layers:
        queries, image = _two_way_layer(layer, queries, tokens, image, positions)
    final = transformer.final_attn_token_to_image
    keys, values = _project(image.values, positions, (final.k_proj, True), (final.v_proj, False))
    queries = queries + _attend(final, final.q_proj(queries + tokens), keys, values)
    return transformer.norm_final_attn(queries), image.values


def _two_way_layer(
    layer: TwoWayAttentionBlock, queries: Tensor, tokens: Tensor, image: ImageTokens, positions: Tensor
) -> tuple[Tensor, ImageTokens]:
    if layer.skip_first_layer_pe:
        queries = _self_attend(layer.self_attn, queries, queries)
    else:
        queries = queries + _self_attend(layer.self_attn, queries + tokens, queries)
    queries = layer.norm1(queries)

    to_image, to_token = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
    keys, values, image_queries = _project(
        image.values, positions, (to_image.k_proj, True), (to_image.v_proj, False), (to_token.q_proj, True)
    )
    token_queries = to_image.q_proj(queries + tokens)
    if image.image_index is None:
        seen = _attend(to_image, token_queries, keys, values)
    else:
        grouped = image.group(token_queries)  # (B, N, L, D)
        seen = _attend(to_image, grouped.flatten(1, 2), keys, values)  # all prompts of an image in one row
        seen = image.ungroup(seen.unflatten(1, grouped.shape[1:3]))
    queries = layer.norm2(queries + seen)
    queries = layer.norm3(queries + layer.mlp(queries))

    token_keys, token_values = to_token.k_proj(queries + tokens), to_token.v_proj(queries)
    before = image.values
    if image.image_index is not None:
        image_queries = image_queries.index_select(0, image.image_index)
        before = before.index_select(0, image.image_index)
    return queries, ImageTokens(layer.norm4(before + _attend(to_token, image_queries, token_keys, token_values)), None)


def _project(inputs: Tensor, positions: Tensor, *projections: tuple[nn.Linear, bool]) -> tuple[Tensor, ...]:
    """Several projections of (B, E E, C) in one product; those marked True see inputs + positions (E E, C)."""
    weight = torch.cat([linear.weight for linear, _ in projections])
    shift = torch.cat(
        [linear(positions) if placed else linear.bias.expand(len(positions), -1) for linear, placed in projections], 1
    )
    projected = F.linear(inputs, weight) + shift
    return projected.split([linear.out_features for linear, _ in projections], -1)


def _self_attend(attention: Attention, queries_and_keys: Tensor, values: Tensor) -> Tensor:
    keys = attention.k_proj(queries_and_keys)
    return _attend(attention, attention.q_proj(queries_and_keys), keys, attention.v_proj(values))


def _attend(attention: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Multi-head attention of projected inputs (B, L, D) and the projection of its output."""
    queries, keys, values = (
        x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in (queries, keys, values)
    )
    # one side is a handful of tokens, so the weights are small; a fused kernel would only slow the backward down
    weights = (queries @ keys.transpose(2, 3) / queries.shape[-1] ** 0.5).softmax(-1)  # (B, heads, L, M)
    mixed: Tensor = attention.out_proj((weights @ values).transpose(1, 2).flatten(2))
    return mixed


def _upscale(upscaling: nn.Sequential, tokens: Tensor, filters: Tensor, grid: int) -> Tensor:
    """Image tokens (P, E E, C) through two stride-2 upsamplings, dotted with filters (P, K, C/8) -> (P, K, 4E, 4E).

    A transposed convolution whose kernel is its stride maps each cell to its own 2 x 2 block: a matrix product.
    """
    first, norm, activation, second, last_activation = upscaling
    assert isinstance(first, nn.ConvTranspose2d) and isinstance(second, nn.ConvTranspose2d)
    assert isinstance(norm, LayerNorm2d)
    cells = _to_blocks(first, tokens)  # (P, E E, 4, C/4)
    cells = activation(F.layer_norm(cells, cells.shape[-1:], norm.weight, norm.bias, norm.eps))
    cells = last_activation(_to_blocks(second, cells))  # (P, E E, 4, 4, C/8)
    logits = filters @ cells.flatten(1, 3).transpose(1, 2)  # (P, K, E E 16)
    # rows: grid, first block, second block; columns the same
    logits = logits.unflatten(2, (grid, grid, 2, 2, 2, 2)).permute(0, 1, 2, 4, 6, 3, 5, 7)
    return logits.reshape(*filters.shape[:2], 4 * grid, 4 * grid)


def _to_blocks(conv: nn.ConvTranspose2d, cells: Tensor) -> Tensor:
    """(..., C) -> (..., 4, C'): the 2 x 2 block of every cell, row by row."""
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (C, C', 2, 2) -> (4 C', C)
    assert conv.bias is not None
    return F.linear(cells, weight, conv.bias.repeat(4)).unflatten(-1, (4, conv.out_channels))
