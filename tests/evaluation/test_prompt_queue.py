"""Prompts of several photos in one call of the decoder: the answers of each photo are its own."""

from __future__ import annotations

import asyncio

import pytest
import torch

from distill.evaluation.prompt_queue import PromptQueue
from distill.models.multimask import answer_candidates
from distill.models.sam import ModelSpec, PromptableModel, build_from_spec
from distill.prompts.types import Prompts

SPEC = ModelSpec("efficientvit_sam_t", 64, embedding_dim=32, embedding_size=8, decoder_mlp_dim=64, norm_eps=1e-6)


class CountingModel:
    """A model that keeps how many prompts, of how many photos, each call of its decoder had."""

    def __init__(self, model: PromptableModel) -> None:
        self.model, self.spec, self.device = model, model.spec, model.device
        self.image_size, self.embedding_size = model.image_size, model.embedding_size
        self.prompt_size, self.low_res_size = model.prompt_size, model.low_res_size
        self.encode = model.encode
        self.calls: list[tuple[int, int]] = []

    def decode(self, embeddings, prompts, *, multimask):
        self.calls.append((len(prompts), len(prompts.image_index.unique())))
        return self.model.decode(embeddings, prompts, multimask=multimask)


@pytest.fixture(scope="module")
def model() -> PromptableModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_from_spec(SPEC).requires_grad_(False)


def boxes(count: int, seed: int) -> tuple[torch.Tensor, Prompts]:
    random = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=random) * 60
    embedding = torch.randn(1, 32, 8, 8, generator=random)
    return embedding, Prompts(torch.zeros(count, dtype=torch.long), boxes_xyxy=torch.cat([low, low + 40], 1))


def clicks(count: int, seed: int) -> tuple[torch.Tensor, Prompts]:
    random = torch.Generator().manual_seed(seed)
    points = torch.rand(count, 1, 2, generator=random) * 128
    masks = torch.randn(count, 1, 32, 32, generator=random)
    embedding = torch.randn(1, 32, 8, 8, generator=random)
    index = torch.zeros(count, dtype=torch.long)
    return embedding, Prompts(index, points_xy=points, point_labels=torch.ones(count, 1).long(), mask_logits=masks)


def ask(queue: PromptQueue, asked, policy="single", most=16):
    async def all_of_them():
        return await asyncio.gather(*(queue.answer(*one, policy, most) for one in asked))

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("policy", ["single", "best", "oracle"])
@pytest.mark.parametrize("draw", [boxes, clicks])
def test_answers_are_those_of_each_photo_alone(model, policy, draw):
    asked = [draw(count, seed) for seed, count in enumerate((3, 1, 5))]
    counting = CountingModel(model)
    found = ask(PromptQueue(counting, 8), asked, policy)
    assert counting.calls == [(9, 3)]
    for (embedding, prompts), answers in zip(asked, found, strict=True):
        for one, other in zip(answers, answer_candidates(model, embedding, prompts, policy=policy), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_no_call_has_more_prompts_or_photos_than_it_may(model):
    asked = [boxes(count, seed) for seed, count in enumerate((3, 4, 2, 6, 1))]
    counting = CountingModel(model)
    found = ask(PromptQueue(counting, 8), asked, most=6)
    assert [len(logits) for logits, _ in found] == [3, 4, 2, 6, 1]
    assert sum(prompts for prompts, _ in counting.calls) == 16 and max(counting.calls)[0] <= 6
    assert len(counting.calls) == 3  # 3 + 2 + 1, 4, 6
    counting.calls.clear()
    ask(PromptQueue(counting, 1), asked)
    assert [photos for _, photos in counting.calls] == [1] * 5


def test_prompts_of_different_forms_stay_apart(model):
    counting = CountingModel(model)
    found = ask(PromptQueue(counting, 8), [boxes(2, 0), clicks(3, 1), boxes(1, 2)])
    assert sorted(counting.calls) == [(3, 1), (3, 2)]
    assert [len(logits) for logits, _ in found] == [2, 3, 1]


def test_an_interrupted_evaluation_leaves_no_prompts(model):
    counting = CountingModel(model)
    queue = PromptQueue(counting, 8)

    async def stop() -> None:
        task = asyncio.create_task(queue.answer(*boxes(2, 0), "single", 16))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(stop())
    ask(queue, [boxes(1, 1)])
    assert counting.calls == [(1, 1)]
