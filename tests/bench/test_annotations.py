"""`distill bench annotations`: the readers read what it writes, and its numbers are complete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.bench.annotations import READERS, read, write_coco, write_sa1b
from distill.cli import main as cli


def test_every_reader_reads_all(tmp_path: Path):
    write_coco(tmp_path, 10)
    write_sa1b(tmp_path, 2)
    found = {reader: read(reader, tmp_path) for reader in READERS}
    assert [row["id"] for row in found["json.load"]["annotations"]] == list(range(1, 11))
    assert found["CocoFile"].annotations[9].segmentation == found["json.load"]["annotations"][9]["segmentation"]
    photos = list(found["CocoSet"])
    assert [len(photo.instances) for photo in photos] == [7, 3]
    assert [len(content["annotations"]) for content in found["json.loads"]] == [100, 100]
    for plain, ours in zip(found["json.loads"], found["parse_annotations"], strict=True):
        assert ours.areas == [row["area"] for row in plain["annotations"]]


def test_the_command(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["bench", "annotations", "--annotations", "50", "--files", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seconds"].keys() == found["ratios"].keys() == READERS.keys()
    assert all(value > 0 for value in found["seconds"].values())
    assert found["ratios"]["json.load"] == found["ratios"]["json.loads"] == 1
