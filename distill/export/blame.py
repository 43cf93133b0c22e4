"""Which layers of a file cost it its masks: found by bisection over the layers in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from distill.export.trace import Graph, scope_of

MOST_BLAMED = 8  # layers that one search names


@dataclass(frozen=True)
class Blame:
    """The layers without which the rest would pass, in the order in which they were found.

    complete: whether the rest passes with those layers in float32.
    """

    layers: tuple[str, ...]
    complete: bool


def steps_by_layer(graph: Graph, steps: Collection[str]) -> dict[str, list[str]]:
    """Return the names of some steps by the module to which they belong, in the order in which modules first run."""
    layers: dict[str, list[str]] = {}
    chosen = set(steps)
    for node in graph.model.graph.node:
        if node.name in chosen:
            layers.setdefault(scope_of(node), []).append(node.name)
    return layers


def bisect(layers: Sequence[str], passes: Callable[[Sequence[str]], bool], *, most: int = MOST_BLAMED) -> Blame:
    """Find layers that are to blame.

    The first layers pass and all of them fail, so there is a layer with which they begin to fail. It is taken out, and
    the search goes on with the rest.

    Args:
        layers: in order. `passes` is asked for parts of them, and must hold for none of them.
        passes: tells whether the gate is passed when those layers are in the smaller format, and no others.
        most: how many layers to name at most.
    """
    rest, blamed = list(layers), list[str]()
    while not passes(rest):
        if len(blamed) == most:
            return Blame(tuple(blamed), complete=False)
        good, bad = 0, len(rest)
        while bad - good > 1:
            middle = (good + bad) // 2
            if passes(rest[:middle]):
                good = middle
            else:
                bad = middle
        blamed.append(rest.pop(bad - 1))
    return Blame(tuple(blamed), complete=True)
