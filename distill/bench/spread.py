"""The spread of a measured latency, which decides whether two latencies differ. Imports no torch.

All encoders of a bench take turns in rounds. If two were equally fast, their medians of rounds would come in any order:
that five of one lie below all five of the other then happens in 2 of 252 orders. So latencies whose ranges of rounds
overlap are not told apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

LEAST_ROUNDS = 4  # with fewer, ranges of equally fast encoders lie apart too often: in 2 of 20 orders with three
# Of a bench that recorded too few rounds: three identical encoders gave 235, 241 and 273 ms on a shared machine.
ASSUMED_SPREAD = 0.08
# A smaller difference is none, whatever the rounds say. Our choice: it changes no decision, and a part of it comes from
# where the weights happen to lie in memory, which no number of rounds shows.
LEAST_DIFFERENCE = 0.03


class Spread(NamedTuple):
    """A median with the range that its noise covers. is_measured: whether the range was, or is ASSUMED_SPREAD."""

    value: float
    low: float
    high: float
    is_measured: bool = True

    def is_below(self, other: Spread) -> bool:
        """Return whether this value is lower by more than the noise of both."""
        return self.high < other.low and self.value * (1 + LEAST_DIFFERENCE) < other.value


def latency_spread(run: Mapping[str, Any]) -> Spread:
    """Return the latency of a bench's run in milliseconds, with its spread."""
    value = float(run["latency_ms"])
    low, high = run.get("latency_low_ms"), run.get("latency_high_ms")
    if low is None or high is None or (run.get("rounds") or 0) < LEAST_ROUNDS:
        return Spread(value, value * (1 - ASSUMED_SPREAD), value * (1 + ASSUMED_SPREAD), is_measured=False)
    return Spread(value, min(low, value), max(high, value))


def pooled(spreads: Sequence[Spread]) -> Spread:
    """Return one spread for several measurements of the same encoder, of which at least one is needed.

    They show the noise better than one does: the range covers them all.
    """
    return Spread(
        median(spread.value for spread in spreads),
        min(spread.low for spread in spreads),
        max(spread.high for spread in spreads),
        all(spread.is_measured for spread in spreads),
    )
