"""The benches run through on small things and say what they measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from distill.bench import cache as bench_cache
from distill.bench.codecs import STEP_SHARES, bounds, trials
from distill.bench.loader import bench_loader, tables
from distill.bench.loader_sample import NUM_DRAWN, ours, peak_memory, published
from distill.bench.photos import NUM_MASKS, write_shards
from distill.cli import main as cli
from distill.data.cache.codecs import CODECS
from distill.data.shards.index import ShardIndex

HW = (150, 200)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bench") / "shards"
    write_shards(directory, 5, hw=HW)
    return directory


def test_drawn_photos_have_masks_of_every_size(shards: Path) -> None:
    index = ShardIndex.open(shards)
    rows = json.loads(index.read_annotation(index.member(4)))["annotations"]
    areas = sorted(row["area"] for row in rows)
    assert len(index) == 5 and len(rows) == NUM_MASKS
    assert 0 < areas[0] < 1000 < areas[-1] < HW[0] * HW[1]


def test_both_formulations_make_the_same_sample(shards: Path) -> None:
    """Ours has its masks at 256 pixels, the published one at 512; antialiasing and box filter differ a little."""
    index = ShardIndex.open(shards)
    fields = ours(index)(0).fields
    pixels, masks = published(index)(0)
    assert fields["pixels"].shape == (1, 3, 512, 512) and pixels.shape == (3, 512, 512)
    assert (fields["pixels"][0] - pixels).abs().mean() < 0.05
    assert fields["masks"].shape == (NUM_DRAWN, 256, 256) and masks.shape == (NUM_DRAWN, 512, 512)
    reduced = torch.nn.functional.avg_pool2d(masks[None], 2)[0]  # the published draw is not sorted
    areas, expected = (item.sum((1, 2)).sort().values for item in (fields["masks"], reduced))
    torch.testing.assert_close(areas, expected, rtol=0.05, atol=10)


def test_peak_memory_grows_with_what_is_held() -> None:
    before = peak_memory()
    held = bytearray(200 << 20)
    held[:: 1 << 12] = bytes(len(held[:: 1 << 12]))
    assert peak_memory() - before >= 0 and peak_memory() >= len(held)


@pytest.mark.slow
def test_ours_is_faster_and_smaller() -> None:
    """At full size the time ratio is above 10 and the share of the memory below a fifth; here with room for a busy
    machine."""
    found = bench_loader(num_photos=2, num_workers=1, batch_size=1)
    assert found["sample"]["times_faster"] > 4 and found["sample"]["share_of_memory"] < 0.2
    whats = [(row["what"], row["workers"]) for row in found["loader"]]
    assert whats[0] == ("plain sequential read", 0) and whats[-1] == ("loader: photos with 64 masks", 1)
    assert all(row["photos_per_second"] > 0 for row in found["loader"]) and len(tables(found)) == 2


def test_shards_of_one_s_own(shards: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("distill.bench.photos.PHOTO_HW", HW)
    arguments = ["bench", "loader", "--images", str(shards), "--num-photos", "4", "--num-workers", "1", "--json"]
    assert cli.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["machine"]["cores"] and [row["photos"] for row in found["loader"][:2]] == [5, 5]


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


def test_an_evaluation_and_its_encoders_share(teacher_file: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["bench", "evaluate", "--student", str(teacher_file), "--photos", "2", "--prompts", "3", "--rounds", "2"]
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    seconds = found["seconds_per_photo"]
    assert 0 < seconds["encoder"] < seconds["evaluation"]
    assert found["on_top_of_encoder"] > 0 and (found["photos"], found["prompts"]) == (2, 3)
    assert cli.main(words) == 0
    assert "on top of the encoder" in " ".join(capsys.readouterr().out.split())
