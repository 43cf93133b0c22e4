"""`distill bench cache`: codecs, the alternatives to them, and steps from the cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from distill.bench import cache as bench_cache
from distill.bench.codecs import STEP_SHARES, bounds, trials
from distill.cli import main as cli
from distill.data.cache.codecs import CODECS


def test_what_is_tried_beside_the_codecs_gives_the_values_back() -> None:
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(16, 32, 32, generator=generator) * torch.rand(16, 1, 1, generator=generator)
    found = {trial.name: trial.decode(trial.encode(embedding)) for trial in trials()}
    num_bytes = {trial.name: len(trial.encode(embedding)) for trial in trials()}
    for codec in CODECS:
        for name, decoded in found.items():
            if name.startswith(f"{codec} +"):
                assert torch.equal(decoded, found[codec]) and num_bytes[name] < num_bytes[codec]
    ideal = {bound.name: bound.measure(embedding) for bound in bounds()}
    assert ideal["int8, bound"][0] < num_bytes["int8"] and torch.allclose(ideal["int8, bound"][1], found["int8"])
    errors = [float((decoded - embedding).norm() / embedding.norm()) for _, decoded in ideal.values()]
    assert errors[0] < 0.01 and all(a < b for a, b in zip(errors[:5], errors[1:5], strict=False))  # fewer bits, more
    for share in STEP_SHARES:
        name = f"one step of {share} rms"
        error = float((found[f"{name} + zlib"] - embedding).norm() / embedding.norm())
        assert error == pytest.approx(share / 12**0.5, rel=0.05)
        assert ideal[f"{name}, bound"][0] < num_bytes[f"{name} + zlib"]


def test_maps_are_made_of_real_values() -> None:
    parts = [torch.full((100, 30, 30), float(number)) for number in range(3)]
    whole = bench_cache.sam_map(parts)
    assert whole.shape == bench_cache.MAP_SHAPE and set(whole.unique().tolist()) == {0.0, 1.0, 2.0}


@pytest.mark.slow
def test_bench_cache_runs_through(teacher_file: Path, photo_shards, monkeypatch, capsys) -> None:
    monkeypatch.setattr(bench_cache, "SECONDS", 0.01)
    images = photo_shards(3).directory
    arguments = ["bench", "cache", "--teacher", str(teacher_file), "--images", str(images), "--json"]
    assert cli.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["photos"] == 3 and [row["codec"] for row in found["tar"]] == list(CODECS)
    by_name = {row["name"]: row for row in found["codecs"]}
    assert by_name["fp16"]["relative_l2"] < by_name["int8"]["relative_l2"] < 0.015
    assert [row["source"] for row in found["steps"]] == ["online", "cache"]
    assert by_name["int8"]["mask_iou"] > 0.9
    ious = [row["mask_iou"] for row in found["padding"]]
    assert [row["share"] for row in found["padding"]] == sorted(row["share"] for row in found["padding"])
    assert ious[-1] == max(ious) and ious[0] < ious[3]
    assert len(bench_cache.tables(found)) == 4
