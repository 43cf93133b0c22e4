"""The long run: `make fuzz FUZZ_INPUTS=100000`. It prints a table of what became of the inputs, by format.

The same seed draws the same inputs. They are drawn in chunks, and a fault is named by its format, chunk and number, so
that `--only FORMAT --chunk CHUNK` draws it again. Faulty inputs are kept below --keep.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.formats import FORMATS
from tests.fuzz.oracles import broken_rules, outward_rules, reason
from tests.fuzz.reading import ReadingProcess, Verdict

CHUNK = 500  # inputs drawn by one run of Hypothesis
FAULTS = ("traceback", "memory", "killed", "hung")


@dataclass
class Tally:
    """What became of the inputs of one format.

    faults: by kind, error and place. accepted: the combinations of broken rules, joined by "; ", of accepted inputs.
    examples: the first input of each, with its error.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def note(self, form: str, case: dict[str, bytes], verdict: Verdict, where: str) -> str:
        """Count an input. Return a name for it if it is the first of its kind of fault, else ""."""
        self.counts["inputs"] += 1
        self.counts[verdict.kind] += 1
        if verdict.is_fault:
            error = verdict.text.partition(":")[0]
            name = f"{verdict.kind}: {error} [{verdict.place}]"
            self.faults[name] += 1
        else:
            rules = found_rules(form, case, verdict)
            if not rules:
                return ""
            name = "; ".join(sorted(rules))
            self.accepted[name] += 1
        if name in self.examples:
            return ""
        self.examples[name] = f"{where} {verdict.text[:200]}".strip()
        return name

    def silent(self, form: str) -> tuple[int, int]:
        """Return how many acceptances nobody means, and how many are meant."""
        unmeant = sum(count for rules, count in self.accepted.items() if not is_meant(form, rules))
        return unmeant, sum(self.accepted.values()) - unmeant


def found_rules(form: str, case: dict[str, bytes], verdict: Verdict) -> list[str]:
    """Return the rules that an input breaks that was accepted, or whose refusal says what it must not."""
    if verdict.kind == "accepted":
        return broken_rules(form, case, verdict.found)
    return list(outward_rules(verdict.found))


def unmeant_rules(form: str, case: dict[str, bytes], verdict: Verdict) -> list[str]:
    """Return the broken rules of an input that nobody means to be broken."""
    return [rule for rule in found_rules(form, case, verdict) if reason(form, rule) is None]


def is_meant(form: str, rules: str) -> bool:
    """Return whether each of some broken rules, joined by "; ", is accepted knowingly."""
    return all(reason(form, rule) for rule in rules.split("; "))


def fuzz(form: str, num_inputs: int, *, base: int, reading: ReadingProcess, keep: Path | None, first: int = 0) -> Tally:
    """Read `num_inputs` damaged files of a format, in chunks that each have a seed of their own."""
    tally, started = Tally(), time.monotonic()
    for chunk in range(first, first + -(-num_inputs // CHUNK)):
        size = min(CHUNK, num_inputs - (chunk - first) * CHUNK)
        for number, case in enumerate(draw_cases(form, size, f"{base}/{form}/{chunk}")):
            where = f"{form}-{chunk}-{number}"
            verdict = reading.read(form, case)
            name = tally.note(form, case, verdict, where)
            if name and keep is not None:
                keep_case(keep / where, case, name)
    tally.seconds = time.monotonic() - started
    return tally


def draw_cases(form: str, num_inputs: int, seed_text: str) -> list[dict[str, bytes]]:
    """Draw cases of a format. The same seed draws the same cases."""
    found: list[dict[str, bytes]] = []

    @seed(seed_text)
    @settings(
        max_examples=num_inputs,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(FORMATS[form].strategy())
    def collect(case: dict[str, bytes]) -> None:
        found.append(case)

    collect()
    return found


def keep_case(folder: Path, case: dict[str, bytes], name: str) -> None:
    """Write the files of a case, and what became of it, for a person who wants to read it again."""
    for file, data in case.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "VERDICT").write_text(name, encoding="utf-8")


def table(tallies: dict[str, Tally]) -> str:
    """Return the table by format, in Markdown, and below it the faults and the acceptances that break a rule."""
    names = ("inputs", "accepted", "refused", *FAULTS)
    header = ["format", *names, "places", "silent", "meant", "seconds"]
    lines = [f"| {' | '.join(header)} |", "| --- |" + " ---: |" * (len(header) - 1)]
    sums: Counter[str] = Counter()
    for form, tally in tallies.items():
        silent, meant = tally.silent(form)
        row = {**{name: tally.counts[name] for name in names}, "places": len(tally.faults)}
        row |= {"silent": silent, "meant": meant, "seconds": round(tally.seconds)}
        sums.update(row)
        lines.append(f"| {form} | " + " | ".join(f"{row[name]:,}" for name in header[1:]) + " |")
    lines.append("| all | " + " | ".join(f"{sums[name]:,}" for name in header[1:]) + " |")
    for form, tally in tallies.items():
        for name, count in (tally.faults + tally.accepted).most_common():
            if name in tally.faults:
                what = name
            else:
                whys = dict.fromkeys(filter(None, (reason(form, rule) for rule in name.split("; "))))
                what = f"meant: {name} ({'; '.join(whys)})" if is_meant(form, name) else f"silent: {name}"
            lines.append(f"{form}: {count} x {what} (first: {tally.examples[name]})")
    return "\n".join(lines)


def shares(num_inputs: int, forms: list[str]) -> dict[str, int]:
    """Return how many inputs each format gets: more where one costs less."""
    weights = {form: FORMATS[form].cost ** -0.7 for form in forms}
    return {form: max(1, round(num_inputs * weight / sum(weights.values()))) for form, weight in weights.items()}


def main() -> int:
    """Run, print the table, and return 1 if there was a fault or an acceptance that nobody means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="of all formats together; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(FORMATS), default=list(FORMATS), metavar="FORMAT")
    parser.add_argument("--chunk", type=int, default=0, help="the first chunk; with --only, to draw a fault again")
    parser.add_argument("--keep", type=Path, help="where to keep the first input of each fault")
    parser.add_argument("--json", type=Path, help="where to write the counts")
    arguments = parser.parse_args()
    reading, tallies = ReadingProcess(), {}
    try:
        for form, number in shares(arguments.inputs, arguments.only).items():
            tallies[form] = fuzz(
                form, number, base=arguments.seed, reading=reading, keep=arguments.keep, first=arguments.chunk
            )
            print(f"{form}: {dict(tallies[form].counts)} in {tallies[form].seconds:.0f} s", file=sys.stderr, flush=True)
            if arguments.json:
                rows = {name: [t.counts, t.faults, t.accepted, t.examples, t.seconds] for name, t in tallies.items()}
                arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    finally:
        reading.close()
    print(table(tallies))
    return int(any(tally.faults or tally.silent(form)[0] for form, tally in tallies.items()))


if __name__ == "__main__":
    sys.exit(main())
