"""Which differences between models are more than noise: of latency by the spread of its rounds, of scores by pairs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from distill.bench.spread import Spread, latency_spread, pooled
from distill.comparison.join import Comparison, bench_run
from distill.comparison.models import ComparedModel
from distill.evaluation.finished import FinishedEvaluation, ProtocolKey
from distill.evaluation.scoring.bootstrap import pairwise_intervals

IsBelow = Callable[[str, str], bool]  # of two models by their labels


def latencies(comparison: Comparison) -> dict[str, Spread]:
    """Return the latency of each benched model in milliseconds, by label.

    Models with the same encoder have the same latency, whatever their weights: what was measured of each counts for
    all, so that their difference is none.
    """
    groups: dict[object, list[tuple[str, Spread]]] = {}
    for model in comparison.models:
        if (run := bench_run(model, comparison.setting)) is not None:
            groups.setdefault(_encoder_of(model), []).append((model.label, latency_spread(run)))
    return {label: pooled([spread for _, spread in found]) for found in groups.values() for label, _ in found}


def shared_encoders(comparison: Comparison) -> list[list[str]]:
    """Return the labels of benched models that have the same encoder, one list for each encoder of several models."""
    groups: dict[object, list[str]] = {}
    for model in comparison.models:
        if bench_run(model, comparison.setting) is not None:
            groups.setdefault(_encoder_of(model), []).append(model.label)
    return [labels for labels in groups.values() if len(labels) > 1]


def is_lower_score(comparison: Comparison, protocol: ProtocolKey) -> IsBelow:
    """Return a function that says whether the first model's headline is measurably lower than the second's.

    Where single instances have an IoU, the interval of the paired difference decides; elsewhere, as for AP, each
    score's own interval does, and scores without one differ where they are not equal.
    """
    found = {model.label: evaluation for model, evaluation in comparison.evaluations(protocol)}
    labels = list(found)
    headline = next(iter(found.values())).headline
    ious = [evaluation.instances.ious for evaluation in found.values()] if headline == "miou" else []
    if ious and len(ious[0]) and not np.isnan(np.stack(ious)).any():
        photos = next(iter(found.values())).instances.photos
        highs = pairwise_intervals(np.stack(ious), photos)[:, :, 1]
        return lambda first, second: bool(highs[labels.index(first), labels.index(second)] < 0)

    def is_lower(first: str, second: str) -> bool:
        (_, high), (low, _) = (_range(found[label], headline) for label in (first, second))
        return high is not None and low is not None and high < low

    return is_lower


def _range(evaluation: FinishedEvaluation, key: str) -> tuple[float | None, float | None]:
    """Return the interval of a metric; its value twice where it has no interval."""
    value = evaluation.metrics.get(key)
    return evaluation.interval(key) or (value, value)


def _encoder_of(model: ComparedModel) -> object:
    """Return what tells encoders apart: their input size, parameters and multiply-adds; or the model if one is unknown.

    Two architectures that agree in all three exactly are one.
    """
    row = model.bench or {}
    counts = tuple(row.get(key) for key in ("image_size", "encoder_params", "macs"))
    return model.label if None in counts else counts
