"""Prompts of several photos that wait for one call of the decoder."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from distill.models.inference import InferenceModel
from distill.models.multimask import Policy, answer_candidates
from distill.prompts.types import Prompts

Answers = tuple[Tensor, Tensor]


@dataclass(eq=False)
class _Request:
    """Prompts on one photo, whose embedding is (1, C, E, E), and the answers once they are there."""

    embedding: Tensor
    prompts: Prompts
    policy: Policy
    answers: Answers | None = None

    @property
    def form(self) -> tuple[object, ...]:
        """What two requests must share to be decoded together: the kinds of prompts, the clicks of each, the policy."""
        kinds = [None if value is None else tuple(value.shape[1:]) for value in vars(self.prompts).values()]
        return (self.policy, *kinds)


class PromptQueue:
    """The decoder of a model, which answers the prompts of all photos that wait for it in one call.

    Requests of coroutines that are ready at the same time go together if they are of the same form. So a call is full
    even where each photo has few instances, and no coroutine waits for photos that are not read yet.

    Args:
        photos_at_once: the largest number of photos in one call. The memory is bounded by the number of prompts in it.
    """

    def __init__(self, model: InferenceModel, photos_at_once: int) -> None:
        self.model, self.photos_at_once = model, photos_at_once
        self._waiting: list[_Request] = []

    async def answer(self, embedding: Tensor, prompts: Prompts, policy: Policy, most: int) -> Answers:
        """Return the masks that a policy allows, as `answer_candidates` does for one photo.

        Args:
            embedding: (1, C, E, E).
            prompts: P prompts on it.
            most: the largest number of prompts in one call of the decoder.
        """
        request = _Request(embedding, prompts, policy)
        self._waiting.append(request)
        try:
            while True:
                await asyncio.sleep(0)  # coroutines that are ready now add their prompts, or use their masks
                if request.answers is None:
                    self._answer_some(most)
                if request.answers is not None:
                    return request.answers
        finally:
            if request in self._waiting:  # its evaluation was interrupted
                self._waiting.remove(request)

    @torch.inference_mode()
    def _answer_some(self, most: int) -> None:
        """Answer the request that waits longest, and others of its form."""
        taken: list[_Request] = []
        total = 0
        for request in self._waiting:
            if len(taken) == self.photos_at_once:
                break
            if taken and (request.form != taken[0].form or total + len(request.prompts) > most):
                continue
            taken.append(request)
            total += len(request.prompts)
        answers = self._decode(taken, most)
        for request, answer in zip(taken, answers, strict=True):
            request.answers = answer
            self._waiting.remove(request)

    def _decode(self, requests: Sequence[_Request], most: int) -> list[Answers]:
        embeddings = torch.cat([request.embedding for request in requests])  # (B, C, E, E)
        logits, scores = answer_candidates(
            self.model, embeddings, _joined(requests), policy=requests[0].policy, prompt_batch_size=most
        )
        counts = [len(request.prompts) for request in requests]
        return list(zip(torch.split(logits, counts), torch.split(scores, counts), strict=True))


def _joined(requests: Sequence[_Request]) -> Prompts:
    """Join the prompts of B photos. Each names its photo by its place."""
    joined: dict[str, Tensor] = {}
    for field in fields(Prompts):
        values = [getattr(request.prompts, field.name) for request in requests]
        if values[0] is not None:
            joined[field.name] = torch.cat(values)
    counts = torch.tensor([len(request.prompts) for request in requests])
    places = torch.arange(len(requests)).repeat_interleave(counts)
    joined["image_index"] = places.to(joined["image_index"].device)
    return Prompts(**joined)
