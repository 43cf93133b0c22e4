from __future__ import annotations

import torch

from distill.prompts.seeded_noise import SampleNoise, stable_seed, step_generator


def noise(keys: list[str], counts: list[int], **options) -> SampleNoise:  # type: ignore[no-untyped-def]
    return SampleNoise(keys, counts, **{"seed": 0, "step": 3, "purpose": "prompts", **options})


def test_a_photos_numbers_do_not_depend_on_its_batch() -> None:
    """Compare two ranks with a photo each to one rank with both photos, call by call."""
    both, first, second = noise(["a", "b"], [2, 3]), noise(["a"], [2]), noise(["b"], [3])
    for draw in (lambda n: n.uniform(4), lambda n: n.normal(2, 2), lambda n: n.uniform()):
        assert torch.equal(draw(both), torch.cat([draw(first), draw(second)]))
    swapped = noise(["b", "a"], [3, 2]).uniform(4)
    assert torch.equal(swapped[:3], noise(["b"], [3]).uniform(4))


def test_seed_step_key_and_purpose_all_matter() -> None:
    one = noise(["a"], [5]).uniform()
    assert torch.equal(one, noise(["a"], [5]).uniform())
    for other in (
        noise(["b"], [5]),
        noise(["a"], [5], seed=1),
        noise(["a"], [5], step=4),
        noise(["a"], [5], purpose="loss"),
    ):
        assert not torch.equal(one, other.uniform())


def test_seeds_are_the_same_in_every_process() -> None:
    """Compare with the values of this version of the code, because a resumed run is another process."""
    assert stable_seed(0, 3, "prompts", "a") == 5607989823801217290
    assert 0 <= stable_seed("x") < 2**63
    assert torch.equal(torch.rand(2, generator=step_generator(1, 2)), torch.rand(2, generator=step_generator(1, 2)))


def test_photos_without_instances_draw_nothing() -> None:
    assert noise(["a", "b"], [0, 2]).uniform(3).shape == (2, 3)
    assert noise(["a"], [0]).normal(4).shape == (0, 4)
