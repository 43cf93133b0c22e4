"""The multimask policies, and prompts in batches."""

from __future__ import annotations

import pytest
import torch

from distill.models.multimask import answer, answer_candidates
from distill.models.sam import ModelSpec, PromptableModel, build_from_spec
from distill.prompts.types import Prompts

SPEC = ModelSpec("efficientvit_sam_t", 64, embedding_dim=32, embedding_size=8, decoder_mlp_dim=64, norm_eps=1e-6)


@pytest.fixture(scope="module")
def model() -> PromptableModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_from_spec(SPEC)


@pytest.fixture
def prompts() -> Prompts:
    corners = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)) * 60
    return Prompts(torch.tensor([0, 1, 0, 1, 1]), boxes_xyxy=corners + torch.tensor([0, 0, 60, 60]))


@pytest.fixture
def embeddings() -> torch.Tensor:
    return torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(1))


def test_policies(model, embeddings, prompts):
    with torch.no_grad():
        logits, scores = model.decode_all(embeddings, prompts)
    single, single_score = answer(model, embeddings, prompts, policy="single")
    torch.testing.assert_close((single, single_score), (logits[:, 0], scores[:, 0]))
    best, best_score = answer(model, embeddings, prompts, policy="best")
    torch.testing.assert_close(best_score, scores[:, 1:].amax(1))
    for i in range(5):
        torch.testing.assert_close(best[i], logits[i, 1 + scores[i, 1:].argmax()])


def test_candidates_leave_the_oracle_a_choice(model, embeddings, prompts):
    with torch.no_grad():
        logits, scores = model.decode_all(embeddings, prompts)
    three, three_scores = answer_candidates(model, embeddings, prompts, policy="oracle", prompt_batch_size=2)
    torch.testing.assert_close((three, three_scores), (logits[:, 1:], scores[:, 1:]), rtol=1e-4, atol=1e-4)
    one, _ = answer_candidates(model, embeddings, prompts, policy="best")
    assert one.shape == (5, 1, 32, 32)


def test_batches_do_not_change_the_answers(model, embeddings, prompts):
    whole = answer(model, embeddings, prompts, policy="best")
    parts = answer(model, embeddings, prompts, policy="best", prompt_batch_size=2)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


def test_take_keeps_every_field_together():
    prompts = Prompts(torch.arange(3), points_xy=torch.rand(3, 2, 2), point_labels=torch.tensor([[1, 0]] * 3))
    taken = prompts.take(torch.tensor([2, 0]))
    assert taken.image_index.tolist() == [2, 0]
    assert taken.points_xy is not None and torch.equal(taken.points_xy, prompts.points_xy[[2, 0]])
    assert taken.boxes_xyxy is None and taken.mask_logits is None
