"""`distill bench loader`: both formulations make the same sample, and the loader's numbers are complete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from distill.bench.loader import bench_loader, tables
from distill.bench.loader_sample import NUM_DRAWN, ours, published
from distill.bench.photos import NUM_MASKS, write_shards
from distill.cli import main as cli
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
    """Compare areas: our masks have 256 pixels, the published ones 512, and box filter and antialiasing differ."""
    index = ShardIndex.open(shards)
    fields = ours(index)(0).fields
    pixels, masks = published(index)(0)
    assert fields["pixels"].shape == (1, 3, 512, 512) and pixels.shape == (3, 512, 512)
    assert (fields["pixels"][0] - pixels).abs().mean() < 0.05
    assert fields["masks"].shape == (NUM_DRAWN, 256, 256) and masks.shape == (NUM_DRAWN, 512, 512)
    reduced = torch.nn.functional.avg_pool2d(masks[None], 2)[0]  # the published draw is not sorted
    areas, expected = (item.sum((1, 2)).sort().values for item in (fields["masks"], reduced))
    torch.testing.assert_close(areas, expected, rtol=0.05, atol=10)


@pytest.mark.slow
def test_ours_is_faster_and_smaller() -> None:
    """Compare at full size, where the time ratio is above 10; the limit leaves room for a busy machine."""
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
