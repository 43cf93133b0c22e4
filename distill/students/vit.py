"""SAM's own image encoders, ViT-B, ViT-L and ViT-H: segment_anything's ImageEncoderViT, imported."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

from distill.errors import DistillError

# segment_anything/build_sam.py
PATCH_SIZE = 16
WINDOW_SIZE = 14
NORM_EPS = 1e-6


@dataclass(frozen=True)
class Size:
    """Width, depth and heads of a ViT, and the indices of its blocks with global attention."""

    width: int
    depth: int
    num_heads: int
    global_blocks: tuple[int, ...]


SIZES = {
    "sam_vit_b": Size(768, 12, 12, (2, 5, 8, 11)),
    "sam_vit_l": Size(1024, 24, 16, (5, 11, 17, 23)),
    "sam_vit_h": Size(1280, 32, 16, (7, 15, 23, 31)),
}


class SamViTEncoder(ImageEncoderViT):  # type: ignore[misc] # segment_anything ships no types
    """ImageEncoderViT with the attributes of a student: pixels (B, 3, S, S) -> embeddings (B, C, S/16, S/16)."""

    def __init__(self, size: Size, *, image_size: int, embedding_dim: int) -> None:
        super().__init__(
            img_size=image_size,
            patch_size=PATCH_SIZE,
            embed_dim=size.width,
            depth=size.depth,
            num_heads=size.num_heads,
            mlp_ratio=4,
            out_chans=embedding_dim,
            norm_layer=partial(nn.LayerNorm, eps=NORM_EPS),
            use_rel_pos=True,
            window_size=WINDOW_SIZE,
            global_attn_indexes=size.global_blocks,
        )
        self.image_size = image_size
        self.embedding_dim = embedding_dim
        self.embedding_size = image_size // PATCH_SIZE

    def forward(self, pixels: Tensor) -> Tensor:
        embedding: Tensor = super().forward(pixels)
        return embedding


def build(name: str, *, image_size: int, embedding_dim: int, embedding_size: int) -> SamViTEncoder:
    """Build SAM's ViT-B, ViT-L or ViT-H with random weights.

    Args:
        image_size: S.
        embedding_dim: C.
        embedding_size: E, which must be S / 16.
    Raises:
        DistillError: the sizes do not fit each other.
    """
    if image_size != PATCH_SIZE * embedding_size:
        raise DistillError(
            f"{name}: image_size {image_size} cannot give a {embedding_size} x {embedding_size} embedding: its patches "
            f"are {PATCH_SIZE} pixels wide. Set image_size to {PATCH_SIZE * embedding_size}"
        )
    return SamViTEncoder(SIZES[name], image_size=image_size, embedding_dim=embedding_dim)
