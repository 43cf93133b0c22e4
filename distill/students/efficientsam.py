"""EfficientSAM's image encoders, tiny and small: a plain ViT with global attention and SAM's neck.

EfficientSAM's own decoder is not supported: these encoders are combined with SAM's decoder and must be trained with it.
Their input is the letterboxed photo, as for every student; the published code squashes the photo to a square instead.

This is written from the paper (EfficientSAM, Xiong et al. 2024). Tensor names and the computed function are those of
the encoder in the released checkpoints; golden numbers test both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.students.layers import SamNeck, check_image_size, init_linear, to_grid

PATCH_SIZE = 16
DEPTH = 12
EXPAND = 4  # hidden width of the MLPs
NORM_EPS = 1e-6
PRETRAINED_GRID = 14  # side of the position embedding, which was pre-trained on ImageNet at 224 pixels


@dataclass(frozen=True)
class Size:
    """Width and attention heads of a ViT."""

    width: int
    num_heads: int


SIZES = {"efficient_sam_vitt": Size(192, 3), "efficient_sam_vits": Size(384, 6)}


class PatchEmbed(nn.Module):
    """One linear map, applied to each patch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, S, S) to patches (B, width, S/16, S/16)."""
        out: Tensor = self.proj(pixels)
        return out


class Attention(nn.Module):
    """Attention of every position to every other."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = torch.unflatten(self.qkv(x), 2, (3, self.num_heads, -1))  # (B, N, 3, heads, d)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, d) each
        out = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return projected


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, EXPAND * width)
        self.fc2 = nn.Linear(EXPAND * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Attention and an MLP, each after its norm."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, NORM_EPS)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, NORM_EPS)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, width) to the same shape."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class EfficientSamEncoder(nn.Module):
    """A plain ViT and SAM's neck: normalised pixels (B, 3, S, S) -> embeddings (B, C, E, E), float32."""

    def __init__(self, size: Size, *, image_size: int, embedding_dim: int, embedding_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.embedding_dim = embedding_dim
        self.embedding_size = embedding_size
        self.patch_embed = PatchEmbed(size.width)
        # The first row belongs to the class token, which pre-training used and this encoder does not.
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + PRETRAINED_GRID**2, size.width))
        self.blocks = nn.ModuleList(Block(size.width, size.num_heads) for _ in range(DEPTH))
        self.neck = SamNeck(size.width, embedding_dim)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)  # the usual initialisation of ViTs
        self.apply(init_linear)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embed(pixels)  # (B, c, S/16, S/16)
        side = patches.shape[2]
        x = (patches + self._positions(side)).flatten(2).transpose(1, 2)  # (B, N, c)
        for block in self.blocks:
            x = block(x)
        x = torch.unflatten(x.transpose(1, 2), 2, (side, side))  # (B, c, S/16, S/16)
        embedding: Tensor = self.neck(to_grid(x, self.embedding_size))  # (B, C, E, E)
        return embedding

    def _positions(self, side: int) -> Tensor:
        """Interpolate the 14 x 14 position embedding to (1, c, side, side), bicubic."""
        grid = torch.unflatten(self.pos_embed[:, 1:].transpose(1, 2), 2, (PRETRAINED_GRID, PRETRAINED_GRID))
        if side == PRETRAINED_GRID:
            return grid
        return F.interpolate(grid, (side, side), mode="bicubic", align_corners=False)


def build(name: str, *, image_size: int, embedding_dim: int, embedding_size: int) -> EfficientSamEncoder:
    """Build one of the encoders with random weights.

    Args:
        image_size: S, a multiple of 16.
        embedding_dim: C.
        embedding_size: E, any size; the last map of side S/16 is resized to it before the neck.
    Raises:
        DistillError: the image size is not a multiple of the patches' width.
    """
    check_image_size(name, image_size, PATCH_SIZE, "the width of its patches")
    return EfficientSamEncoder(
        SIZES[name], image_size=image_size, embedding_dim=embedding_dim, embedding_size=embedding_size
    )
