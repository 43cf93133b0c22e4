"""Trainings. `distill.training.train(recipe)` does what `distill train` does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.training.run import train

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    """Import `train`, and Lightning with it, when it is first used."""
    if name != "train":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from distill.training.run import train

    return train
