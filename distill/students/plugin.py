"""Students of other packages: each is built and run once, so that its mistakes show before a training begins."""

from __future__ import annotations

import importlib

import torch
from torch import nn

from distill.errors import DistillError
from distill.students import Student


def build_plugin(name: str, entry: Student, *, image_size: int, embedding_dim: int, embedding_size: int) -> nn.Module:
    """Build a plug-in's encoder and run it once in eval mode, on zeros (1, 3, S, S).

    If the encoder lacks one of the attributes image_size, embedding_dim and embedding_size, it is set.

    Raises:
        DistillError: the module cannot be imported, the build or the forward pass fails, or the output has another
            shape than (1, C, E, E).
    """
    origin = f"student '{name}' ({entry.module})"
    sizes = {"image_size": image_size, "embedding_dim": embedding_dim, "embedding_size": embedding_size}
    try:
        encoder = importlib.import_module(entry.module).build(name, **sizes)
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"build returned a {type(encoder).__name__}, not an nn.Module")
        training = encoder.training
        with torch.no_grad():
            embedding = encoder.eval()(torch.zeros(1, 3, image_size, image_size))
        encoder.train(training)
    except DistillError:
        raise
    except Exception as error:  # another package's code: the user needs its name and its error
        raise DistillError(f"{origin} fails at {sizes}: {type(error).__name__}: {error}") from error
    shape, expected = tuple(getattr(embedding, "shape", ())), (1, embedding_dim, embedding_size, embedding_size)
    if shape != expected:
        raise DistillError(f"{origin} gives an embedding of shape {shape} at {sizes}; it must be {expected}")
    for attribute, value in sizes.items():
        if not hasattr(encoder, attribute):
            setattr(encoder, attribute, value)
    return encoder
