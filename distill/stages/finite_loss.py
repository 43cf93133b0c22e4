"""Checks that stop a run whose loss or weights are no longer numbers; the photos of the loss are named."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from distill.errors import RunError
from distill.text import first_few

MEND = (  # what the user may change; a resumed run obeys all three
    "The last checkpoint from before is kept: go on from it (resume=true) with a lower optim.lr, with "
    "trainer.gradient_clip_val, or with trainer.precision=32-true"
)


class _Step(NamedTuple):
    step: int
    keys: list[str]
    loss: Tensor  # on the host, once `copied` has passed
    copied: torch.cuda.Event


class FiniteLoss:
    """A watch over the losses of the steps. On a GPU no step waits for its loss; a later step checks it."""

    def __init__(self) -> None:
        self._under_way: deque[_Step] = deque()

    def note(self, loss: Tensor, *, keys: list[str], step: int) -> None:
        """Watch the loss () of a batch. Raise RunError at once where that needs no waiting."""
        if loss.device.type != "cuda":
            _raise_unless_finite(loss, keys=keys, step=step)
            return
        on_host = torch.empty((), pin_memory=True)
        on_host.copy_(loss.detach(), non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        self._under_way.append(_Step(step, keys, on_host, copied))

    def check(self, *, wait: bool = False) -> None:
        """Raise RunError for an earlier step whose loss was not finite. `wait` waits for losses on their way."""
        while self._under_way and (wait or self._under_way[0].copied.query()):  # type: ignore[no-untyped-call]
            earlier = self._under_way.popleft()
            earlier.copied.synchronize()
            _raise_unless_finite(earlier.loss, keys=earlier.keys, step=earlier.step)


def _raise_unless_finite(loss: Tensor, *, keys: list[str], step: int) -> None:
    if not torch.isfinite(loss):
        raise RunError(f"the loss of step {step} is {loss.item()}; its photos: {', '.join(keys)}. {MEND}")


def check_weights(weights: Mapping[str, Tensor], *, step: int) -> None:
    """Raise RunError unless all weights are finite. An infinite gradient can follow from a finite loss."""
    broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if broken:
        raise RunError(f"after step {step} these weights are no numbers: {first_few(broken)}. {MEND}")
