"""Random numbers that belong to a photo: they depend on the seed, the step and the photo's key, and on nothing else."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def stable_seed(*parts: int | str) -> int:
    """Return a seed for a torch.Generator from the parts that it depends on, the same in every process."""
    digest = hashlib.blake2b("\n".join(str(part) for part in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # generators take 63 bits on every device


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the generator for what is drawn once for a step. It is the same on every rank."""
    return torch.Generator().manual_seed(stable_seed(seed, step))


def seed_generators(*parts: int | str) -> None:
    """Seed the global generators of torch, numpy and Python. Dropout draws from them."""
    seed = stable_seed(*parts)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # as many bits as numpy takes
    random.seed(seed)


class SampleNoise:
    """Random numbers for the N instances of a batch, in the order of their photos.

    Each photo has its own generator. So a step of two ranks draws what one rank draws for twice the batch, and a
    resumed run draws what it would have drawn. A draw is always for all instances: a draw for some of them alone would
    change the next numbers of the others.

    Args:
        keys: of the B photos.
        counts: instances of each photo, N in all.
        purpose: two objects of different purpose draw independently.
    """

    def __init__(
        self,
        keys: Sequence[str],
        counts: Sequence[int],
        *,
        seed: int,
        step: int,
        purpose: str,
        device: torch.device | str = "cpu",
    ) -> None:
        assert len(keys) == len(counts)
        self.counts = counts
        self.device = torch.device(device)
        self.generators = [
            torch.Generator(self.device).manual_seed(stable_seed(seed, step, purpose, key)) for key in keys
        ]

    def uniform(self, *shape: int) -> Tensor:
        """Draw uniform numbers (N, *shape) in [0, 1)."""
        draws = zip(self.counts, self.generators, strict=True)
        return torch.cat([torch.rand(n, *shape, generator=own, device=self.device) for n, own in draws])

    def normal(self, *shape: int) -> Tensor:
        """Draw normal numbers (N, *shape) of mean 0 and deviation 1."""
        draws = zip(self.counts, self.generators, strict=True)
        return torch.cat([torch.randn(n, *shape, generator=own, device=self.device) for n, own in draws])
