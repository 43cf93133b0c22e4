"""TinyViT with SAM's neck: MobileSAM's image encoder (5M, which TinySAM shares), and the 11M and 21M sizes.

This is written from the papers (TinyViT, Wu et al. 2022; MobileSAM, Zhang et al. 2023). Tensor names and the computed
function are those of the released checkpoints; golden numbers test both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.students.layers import ConvNorm, SamNeck, check_image_size, init_linear, to_grid

# TinyViT, section 3.3: these are the same for every size.
DEPTHS = (2, 2, 6, 2)
WINDOWS = (7, 7, 14, 7)  # side of a window in positions; the first stage has no attention
EXPAND = 4  # hidden width of MBConv and of the MLPs, as a multiple of their input's
MERGE_STRIDES = (2, 2, 1)  # MobileSAM: the last merge keeps the resolution, so that the last map has stride 16
STRIDE = 16
NUM_CLASSES = 1000  # of the ImageNet classifier that the released checkpoints still hold


@dataclass(frozen=True)
class Size:
    """Widths and attention heads of the four stages. The first stage has no attention."""

    widths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]


SIZES = {
    "mobile_sam": Size((64, 128, 160, 320), (2, 4, 5, 10)),
    "tinyvit_sam_11m": Size((64, 128, 256, 448), (2, 4, 8, 14)),
    "tinyvit_sam_21m": Size((96, 192, 384, 576), (3, 6, 12, 18)),
}


class PatchEmbed(nn.Module):
    """Two 3x3 convolutions of stride 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(
            ConvNorm(3, width // 2, 3, stride=2), nn.GELU(), ConvNorm(width // 2, width, 3, stride=2)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, S, S) to patches (B, width, S/4, S/4)."""
        out: Tensor = self.seq(pixels)
        return out


class MBConv(nn.Module):
    """An inverted bottleneck whose activation follows the residual sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = EXPAND * width
        self.conv1 = ConvNorm(width, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvNorm(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x))))))


class PatchMerging(nn.Module):
    """The change from one stage's width to the next; the depthwise convolution in the middle takes the stride."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels)
        self.conv2 = ConvNorm(out_channels, out_channels, 3, stride=stride, groups=out_channels)
        self.conv3 = ConvNorm(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))
        return out


class Attention(nn.Module):
    """Attention inside a window, with one learned bias per head and distance (|dy|, |dx|).

    Each pass gathers the bias matrix again, which is cheap, and never keeps it. The released code keeps a copy, which
    is stale after a checkpoint is loaded or averaged weights are swapped in.
    """

    relative_index: Tensor

    def __init__(self, width: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window * window))
        self.register_buffer("relative_index", _relative_index(window), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend inside each window: (windows, N, width) -> the same shape, with N positions per window."""
        qkv = torch.unflatten(self.qkv(self.norm(x)), 2, (self.num_heads, -1))  # (W, N, heads, 3d)
        query, key, value = qkv.transpose(1, 2).chunk(3, -1)  # (W, heads, N, d) each
        bias = self.attention_biases[:, self.relative_index]  # (heads, N, N)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None].to(query.dtype))
        projected: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return projected


def _relative_index(window: int) -> Tensor:
    """Return window * |dy| + |dx| for each pair of positions, as (N, N); positions are numbered row by row."""
    position = torch.arange(window * window)
    y, x = position // window, position % window
    return window * (y[:, None] - y[None]).abs() + (x[:, None] - x[None]).abs()


class Mlp(nn.Module):
    """A norm, then two linear layers with a GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, EXPAND * width)
        self.fc2 = nn.Linear(EXPAND * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(self.norm(x))))
        return out


class TinyViTBlock(nn.Module):
    """Attention in windows, a depthwise convolution across their borders, and an MLP."""

    def __init__(self, width: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn = Attention(width, num_heads, window)
        self.mlp = Mlp(width)
        self.local_conv = ConvNorm(width, width, 3, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (B, width, h, w) to the same shape."""
        x = x + self._attend(x)
        x = self.local_conv(x)
        mixed: Tensor = self.mlp(x.permute(0, 2, 3, 1))  # (B, h, w, width)
        return x + mixed.permute(0, 3, 1, 2)

    def _attend(self, x: Tensor) -> Tensor:
        """Attend in windows that begin at the top left.

        The windows at the right and bottom are padded with zeros, which take part in the attention.
        """
        height, width = x.shape[2:]
        side = self.window
        x = F.pad(x, (0, -width % side, 0, -height % side))
        rows, columns = x.shape[2] // side, x.shape[3] // side
        x = torch.unflatten(x, 3, (columns, side))
        x = torch.unflatten(x, 2, (rows, side))  # (B, c, rows, side, columns, side)
        windows = x.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(0, 2)  # (B * rows * columns, N, c)
        out: Tensor = torch.unflatten(self.attn(windows), 0, (-1, rows, columns))
        out = torch.unflatten(out, 3, (side, side))  # (B, rows, columns, side, side, c)
        out = out.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # (B, c, rows * side, columns * side)
        return out[:, :, :height, :width]


class Layer(nn.Module):
    """The blocks of one stage, then the merging into the next."""

    def __init__(self, blocks: list[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return x if self.downsample is None else self.downsample(x)


class TinyViTEncoder(nn.Module):
    """TinyViT and SAM's neck: normalised pixels (B, 3, S, S) -> embeddings (B, C, E, E), float32.

    `norm_head` and `head` are the ImageNet classifier of the released checkpoints. They are loaded and saved, but
    never run and never trained.
    """

    def __init__(self, size: Size, *, image_size: int, embedding_dim: int, embedding_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.embedding_dim = embedding_dim
        self.embedding_size = embedding_size
        self.patch_embed = PatchEmbed(size.widths[0])
        self.layers = nn.ModuleList(_layer(size, stage) for stage in range(len(size.widths)))
        self.norm_head = nn.LayerNorm(size.widths[-1]).requires_grad_(False)
        self.head = nn.Linear(size.widths[-1], NUM_CLASSES).requires_grad_(False)
        self.neck = SamNeck(size.widths[-1], embedding_dim)
        self.apply(init_linear)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed(pixels)  # (B, c, S/4, S/4)
        for layer in self.layers:
            x = layer(x)
        embedding: Tensor = self.neck(to_grid(x, self.embedding_size))  # (B, C, E, E)
        return embedding


def _layer(size: Size, stage: int) -> Layer:
    width = size.widths[stage]
    blocks: list[nn.Module] = [
        MBConv(width) if stage == 0 else TinyViTBlock(width, size.heads[stage], WINDOWS[stage])
        for _ in range(DEPTHS[stage])
    ]
    if stage == len(MERGE_STRIDES):
        return Layer(blocks, None)
    return Layer(blocks, PatchMerging(width, size.widths[stage + 1], MERGE_STRIDES[stage]))


def build(name: str, *, image_size: int, embedding_dim: int, embedding_size: int) -> TinyViTEncoder:
    """Build a member of the family with random weights.

    Args:
        image_size: S, a multiple of 16.
        embedding_dim: C.
        embedding_size: E, any size; the last map of side S/16 is resized to it before the neck.
    Raises:
        DistillError: the image size is not a multiple of the stride.
    """
    check_image_size(name, image_size, STRIDE, "its stride")
    return TinyViTEncoder(
        SIZES[name], image_size=image_size, embedding_dim=embedding_dim, embedding_size=embedding_size
    )
