"""SAM's own encoders as students."""

from __future__ import annotations

import pytest
import torch
from segment_anything import build_sam_vit_b, build_sam_vit_l

from distill.errors import DistillError
from distill.models.sam import build_model
from distill.students import build_encoder


@pytest.mark.parametrize(("name", "build"), [("sam_vit_b", build_sam_vit_b), ("sam_vit_l", build_sam_vit_l)])
def test_names_and_shapes_are_the_official_ones(name, build):
    with torch.device("meta"):
        ours, official = build_model(name).state_dict(), build().state_dict()
    assert {key: t.shape for key, t in ours.items()} == {key: t.shape for key, t in official.items()}


def test_another_size():
    encoder = build_encoder("sam_vit_b", image_size=64, embedding_dim=32, embedding_size=4).eval()
    assert (encoder.image_size, encoder.embedding_dim, encoder.embedding_size) == (64, 32, 4)
    with torch.inference_mode():
        assert encoder(torch.randn(1, 3, 64, 64)).shape == (1, 32, 4, 4)


def test_the_grid_is_a_sixteenth():
    with pytest.raises(DistillError, match="image_size 512 cannot give a 64 x 64 embedding.*Set image_size to 1024"):
        build_encoder("sam_vit_b", image_size=512)
