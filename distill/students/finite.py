"""The last look at weights from a file before a model takes them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from distill.errors import CheckpointError
from distill.text import first_few


def check_finite_weights(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise CheckpointError if a tensor holds NaN or an infinity.

    Args:
        source: where the tensors come from, for the error.
    """
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise CheckpointError(
            f"{source}: {len(broken)} tensors hold NaN or infinities: {first_few(broken)}; the training that wrote "
            "them failed, or the file is damaged: take an earlier checkpoint, or copy it again"
        )
