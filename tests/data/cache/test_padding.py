"""The summary of padding: what it restores exactly, what nearly, and photos that have no padding."""

from __future__ import annotations

import pytest
import torch

from distill.data.cache.padding import restore_padding, summarize_padding


@pytest.mark.parametrize("grid", [8, 32, 40, 36])
@pytest.mark.parametrize("is_wide", [True, False])
def test_means_of_lines_come_back(grid: int, is_wide: bool):
    embedding = torch.randn(3, grid, grid)
    num_valid = grid - 5
    valid_hw = (num_valid, grid) if is_wide else (grid, num_valid)
    summary = summarize_padding(embedding, valid_hw)
    assert summary.shape == (3, 5 + -(-grid // 8))
    restored = embedding.clone()
    restore_padding(restored, summary, valid_hw)
    axis = 2 if is_wide else 1
    torch.testing.assert_close(restored.mean(axis), embedding.mean(axis))
    block = restored[:, : valid_hw[0], : valid_hw[1]]
    assert torch.equal(block, embedding[:, : valid_hw[0], : valid_hw[1]])


def test_it_is_nearer_than_one_mean():
    """Use padding that fades with the distance from the photo, and differs along its edge."""
    y, x = torch.arange(32.0)[:, None], torch.arange(32.0)
    embedding = (torch.exp(-(y - 21) / 4) + torch.sin(x / 8))[None]
    restored = embedding.clone()
    restore_padding(restored, summarize_padding(embedding, (21, 32)), (21, 32))
    exact = embedding[:, 21:]
    assert (restored[:, 21:] - exact).norm() < 0.3 * (exact.mean() - exact).norm()


def test_no_padding():
    embedding = torch.randn(3, 8, 8)
    summary = summarize_padding(embedding, (8, 8))
    assert summary.shape == (3, 0)
    restored = embedding.clone()
    restore_padding(restored, summary, (8, 8))
    assert torch.equal(restored, embedding)
