"""EfficientSAM's encoders: grids, positions, and the decoder that is not supported. Goldens are in test_goldens.py."""

from __future__ import annotations

import pytest
import torch

from distill.errors import CheckpointError, DistillError
from distill.models.checkpoint import load_model
from distill.students import build_encoder
from distill.students.efficientsam import EfficientSamEncoder


def encoder_of(image_size: int = 64, embedding_size: int = 4) -> EfficientSamEncoder:
    torch.manual_seed(0)
    return build_encoder(
        "efficient_sam_vitt", image_size=image_size, embedding_dim=16, embedding_size=embedding_size
    ).eval()


@pytest.mark.parametrize(("image_size", "embedding_size"), [(64, 2), (64, 4), (80, 5), (80, 7)])
def test_any_grid(image_size: int, embedding_size: int):
    with torch.no_grad():
        out = encoder_of(image_size, embedding_size)(torch.randn(2, 3, image_size, image_size))
    assert out.shape == (2, 16, embedding_size, embedding_size)


def test_image_size_must_fit_the_patches():
    with pytest.raises(DistillError, match="efficient_sam_vits: image_size 72 is not a multiple of 16"):
        build_encoder("efficient_sam_vits", image_size=72)


def test_positions_are_row_by_row_after_the_class_token():
    encoder = encoder_of()
    with torch.no_grad():
        encoder.pos_embed.copy_(torch.arange(197.0)[None, :, None].expand(1, 197, 192))
        assert encoder._positions(14)[0, 0, 0, :3].tolist() == [1, 2, 3]
        assert encoder._positions(14)[0, 0, 1, 0] == 15
        doubled = encoder._positions(28)
    assert doubled.shape == (1, 192, 28, 28)
    # two fine steps are one coarse step: 14 to the next row, 1 to the next column
    torch.testing.assert_close(doubled[0, 0, 12, 10] - doubled[0, 0, 10, 10], torch.tensor(14.0))
    torch.testing.assert_close(doubled[0, 0, 10, 12] - doubled[0, 0, 10, 10], torch.tensor(1.0))


def test_a_released_file_is_refused_with_the_reason(tmp_path):
    state = {f"image_encoder.{name}": tensor for name, tensor in encoder_of().state_dict().items()}
    state["prompt_encoder.invalid_points.weight"] = torch.zeros(1, 256)
    torch.save({"model": state}, tmp_path / "efficient_sam_vitt.pt")
    with pytest.raises(CheckpointError, match="efficient_sam_vitt hold a decoder that is not SAM's.*not supported"):
        load_model(tmp_path / "efficient_sam_vitt.pt", name="efficient_sam_vitt")
