"""The conclusion of a comparison in one sentence: which model comes how close to the reference, and at which cost."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

from distill.bench.spread import Spread
from distill.comparison.join import Comparison
from distill.comparison.models import ComparedModel
from distill.comparison.noise import is_lower_score, latencies
from distill.evaluation.finished import HEADLINE_WORDS, FinishedEvaluation, ProtocolKey
from distill.evaluation.scoring.bootstrap import Interval, paired_ratio
from distill.evaluation.scoring.metrics import SIZE_NAMES, count_sizes

MOST_PROTOCOLS = 3  # that the sentence names
AROUND_ONE = 0.995, 1.005  # ratios that two digits do not tell from 1


def conclusion(comparison: Comparison) -> str:
    """Return the sentence. It is about the first protocols by which the reference and other models were evaluated.

    Of the models that no other beats measurably, the cheapest stands for all. Baselines that are no model are left out.
    """
    reference = comparison.reference
    protocols = [key for key in comparison.protocols if key in reference.evaluations][:MOST_PROTOCOLS]
    others = [
        model
        for model in comparison.models
        if model is not reference and model.sha256 is not None and any(key in model.evaluations for key in protocols)
    ]
    if not others:
        return _alone(comparison)
    closest = _closest(comparison, protocols, others)
    return _sentence(comparison, [key for key in protocols if key in closest.evaluations], closest)


def circumstances(comparison: Comparison, today: date) -> list[str]:
    """Return when, on what and by which protocol the conclusion was measured, as short phrases."""
    words = [f"Page of {_day(today)}"]
    evaluations = [found for model in comparison.models for found in model.evaluations.values()]
    days = sorted({found.metrics["date"] for found in evaluations if found.metrics.get("date")})
    if days:
        words.append("evaluated " + _days(days))
    if (protocol := next(iter(comparison.protocols), None)) is not None:
        _, evaluation = comparison.evaluations(protocol)[0]
        words.append(f"protocol: {protocol.full_title}")
        words += [text for text in (counts_of(evaluation), by_size(evaluation)) if text]
    if comparison.setting is not None:
        machine = machine_words(comparison.machine)
        measured = f", measured {_days([comparison.bench_date])}" if comparison.bench_date else ""
        words.append(f"latency at {comparison.setting}" + (f" on {machine}" if machine else "") + measured)
    return words


def counts_of(evaluation: FinishedEvaluation) -> str:
    """Return how many photos and instances an evaluation scored, in words; a number that it lacks is left out."""
    words = []
    for key, unit in (("num_images", "photo"), ("num_instances", "instance")):
        if (count := evaluation.metrics.get(key)) is not None:
            words.append(f"{count:,} {unit}{'s' if count != 1 else ''}")
    return ", ".join(words)


def size_counts(evaluation: FinishedEvaluation) -> dict[str, int]:
    """Return the number of instances of each of COCO's sizes; nothing where there are no truths to measure."""
    if evaluation.headline != "miou" or not evaluation.instances.keys:
        return {}
    is_closed = 'instances.sizes="closed"' in str(evaluation.metrics.get("rules"))
    return count_sizes(evaluation.instances.areas, closed=is_closed)


def by_size(evaluation: FinishedEvaluation) -> str:
    """Return the number of instances of each size in words."""
    counts = size_counts(evaluation)
    return ", ".join(f"{counts[name]:,} {name}" for name in SIZE_NAMES) if counts else ""


def machine_words(machine: dict[str, Any]) -> str:
    """Return what a machine computes with, in words; without that, its platform, as far as it is known."""
    gpus = machine.get("gpus") or machine.get("cuda") or []
    shown = [*(gpus if isinstance(gpus, list) else [gpus]), machine.get("processor") or machine.get("platform")]
    for key, unit in (("cpus", "CPU"), ("cores", "core"), ("threads", "thread")):
        if machine.get(key):
            shown.append(f"{machine[key]} {unit}{'s' if machine[key] != 1 else ''}")
    return ", ".join(str(word) for word in shown if word)


def _closest(
    comparison: Comparison, protocols: Sequence[ProtocolKey], others: Sequence[ComparedModel]
) -> ComparedModel:
    """Return the cheapest of the models that no other beats: in one protocol measurably better, and in none worse."""
    is_lower = {protocol: is_lower_score(comparison, protocol) for protocol in protocols}
    found = latencies(comparison)

    def is_beaten(model: ComparedModel, other: ComparedModel) -> bool:
        shared = [key for key in protocols if key in model.evaluations and key in other.evaluations]
        worse = any(is_lower[key](model.label, other.label) for key in shared)
        return worse and not any(is_lower[key](other.label, model.label) for key in shared)

    def cost(model: ComparedModel) -> tuple[float, ...]:
        bench, latency = model.bench or {}, found.get(model.label)
        costs = (bench.get("macs"), latency and latency.value, bench.get("params"))
        scores = [score for key in protocols if (score := _score(model, key)) is not None]
        return (*(float("inf") if value is None else float(value) for value in costs), -sum(scores))

    best = [model for model in others if not any(is_beaten(model, other) for other in others)]
    return min(best or others, key=cost)


def _score(model: ComparedModel, protocol: ProtocolKey) -> float | None:
    """Return the headline of a model by a protocol, or None without one."""
    found = model.evaluations.get(protocol)
    return None if found is None else found.metrics.get(found.headline)


def _sentence(comparison: Comparison, protocols: Sequence[ProtocolKey], model: ComparedModel) -> str:
    reference = comparison.reference
    intervals = [_ratio(model, reference, protocol) for protocol in protocols]
    shares = []
    for protocol, interval in zip(protocols, intervals, strict=True):
        word = HEADLINE_WORDS[model.evaluations[protocol].headline]
        score, base = _score(model, protocol), _score(reference, protocol)
        if score is None or base is None:
            continue
        what = f"{100 * score / base:.1f} % of its {word}" if base else f"its {word}"
        range_words = f"95 % interval {100 * interval.low:.1f} to {100 * interval.high:.1f} %; " if interval else ""
        shares.append(f"{what} by {protocol.full_title} ({range_words}{score:.3f} and {base:.3f})")
    if not shares:
        return f"No score of {model.label} and {reference.label} by one protocol, so nothing can be concluded."
    costs = _costs(comparison, model)
    verdict = _verdict([interval for interval in intervals if interval], is_one_of_many=len(comparison.models) > 2)
    return (
        f"{model.label} {verdict} {reference.label}: {', '.join(shares)}"
        f"{', with ' + ' and '.join(costs) if costs else '; no cost was measured'}."
    )


def _verdict(intervals: Sequence[Interval], *, is_one_of_many: bool) -> str:
    """Return how a model stands to the reference, by the intervals of its shares of the reference's scores."""
    is_better, is_worse = any(found.low > 1 for found in intervals), any(found.high < 1 for found in intervals)
    if not intervals:
        return "stands beside"
    if is_better and is_worse:
        return "is better in one and worse in another way than"
    if is_better:
        return "is ahead of"
    if not is_worse:
        return "is not measurably different from"
    return "comes closest to" if is_one_of_many else "is behind"


def _ratio(model: ComparedModel, reference: ComparedModel, protocol: ProtocolKey) -> Interval | None:
    """Return the interval of a model's share of the reference's mIoU; None where instances have none."""
    ours, theirs = model.evaluations[protocol], reference.evaluations[protocol]
    if ours.headline != "miou" or not len(ours.instances.ious):
        return None
    return paired_ratio(ours.instances.ious, theirs.instances.ious, ours.instances.photos)


def _costs(comparison: Comparison, model: ComparedModel) -> list[str]:
    """Return a model's costs beside the reference's: multiply-adds and speed, or parameters if neither is known."""
    ours, theirs = model.bench or {}, comparison.reference.bench or {}
    words = []
    if ours.get("macs") and theirs.get("macs"):
        words.append(_share(ours["macs"] / theirs["macs"], "its encoder's multiply-adds"))
    found = latencies(comparison)
    if model.label in found and comparison.reference.label in found:
        words.append(_speed(found[model.label], found[comparison.reference.label]))
    if not words and ours.get("params") and theirs.get("params"):
        words.append(_share(ours["params"] / theirs["params"], "its parameters"))
    return words


def _share(ratio: float, of: str) -> str:
    if AROUND_ONE[0] < ratio < AROUND_ONE[1]:
        return f"as many as {of}"
    return f"{_brief(100 * ratio)} % of {of}" if ratio < 1 else f"{_brief(ratio)} times {of}"


def _speed(ours: Spread, theirs: Spread) -> str:
    """Return how many times as fast a model is, with the range of the noise; or that no difference is measured."""
    if not (ours.is_below(theirs) or theirs.is_below(ours)):
        return "no measured difference in speed"
    low, high = theirs.low / ours.high, theirs.high / ours.low
    assumed = "" if ours.is_measured and theirs.is_measured else ", an assumed spread"
    return f"{_brief(theirs.value / ours.value)} times its speed ({_brief(low)} to {_brief(high)}{assumed})"


def _brief(number: float) -> str:
    """Return a positive number with two digits, and with all of a larger one before its point."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}" if number >= 1 else f"{number:.2g}"


def _alone(comparison: Comparison) -> str:
    """Return the sentence where nothing can be compared: each score of the first protocol, or that there is none."""
    for protocol in comparison.protocols:
        words = []
        for model, evaluation in comparison.evaluations(protocol):
            score, interval = evaluation.metrics.get(evaluation.headline), evaluation.interval(evaluation.headline)
            if score is not None:
                shown = f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
                words.append(f"{model.label} {score:.3f}{shown}")
        if words:
            word = HEADLINE_WORDS[comparison.evaluations(protocol)[0][1].headline]
            return f"{word} by {protocol.full_title}: {', '.join(words)}; nothing to compare it with."
    return "No scores yet, so nothing can be concluded."


def _day(day: date) -> str:
    return f"{day.day} {day:%B} {day.year}"


def _days(days: list[str]) -> str:
    try:
        shown = [_day(date.fromisoformat(day)) for day in (days[0], days[-1])]
    except ValueError:  # of a stranger's file
        shown = [days[0], days[-1]]
    return " to ".join(dict.fromkeys(shown))
