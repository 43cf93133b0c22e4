"""tools/make_references.py: a file with the stored fields, the comparison with stored files, and absent sources."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

from tests.fixtures.references import REFERENCE

SCRIPT = Path(__file__).parents[2] / "tools" / "make_references.py"
MODEL = "edge_sam"  # the least work of all


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(SCRIPT))["main"]


def test_our_numbers_are_those_of_the_stored_file(main, tmp_path: Path, capsys):
    assert main([MODEL, "--from", "distill", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / f"{MODEL}.json")
    ours, stored = (json.loads((folder / f"{MODEL}.json").read_text()) for folder in (tmp_path, REFERENCE))
    assert list(ours) == list(stored)
    assert ours["state_dict"] == stored["state_dict"]
    assert list(ours["predictor"]) == list(stored["predictor"])
    cases = ours["predictor"]["results"], stored["predictor"]["results"]
    assert list(cases[0]) == list(cases[1])
    assert all(list(cases[0][case]) == list(cases[1][case]) for case in cases[0])


def test_the_check_names_what_differs(main, tmp_path: Path, capsys):
    stored = json.loads((REFERENCE / f"{MODEL}.json").read_text())
    stored["sample_values"][3] += 0.25
    stored["predictor"]["results"]["box_single"]["iou_predictions"][0] += 0.5
    (tmp_path / f"{MODEL}.json").write_text(json.dumps(stored))
    assert main([MODEL, "--from", "distill", "--check", "--stored", str(tmp_path)]) == 1
    lines = {line.split()[0]: line.split(maxsplit=2)[1:] for line in capsys.readouterr().out.splitlines()}
    for field, difference in (("sample_values", "0.25"), ("box_single.iou_predictions", "0.5")):
        found, verdict = lines.pop(field)
        assert found == difference and verdict.startswith("more than ")
    assert lines.pop("sample_values.rms")[1].startswith("more than ")
    assert {verdict for _, verdict in lines.values()} == {"ok"}
    assert list(tmp_path.iterdir()) == [tmp_path / f"{MODEL}.json"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("edge_sam", "edge_sam cannot be imported .* It is published at https://github.com/chongzhou96/EdgeSAM"),
        ("mobile_sam", "mobile_sam has no edge_sam; give --from distill or edge_sam"),
    ],
)
def test_sources_that_cannot_be_used(main, capsys, source: str, message: str):
    with pytest.raises(SystemExit) as caught:
        main([MODEL, "--from", source])
    assert caught.value.code == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.slow
def test_segment_anything_gives_the_stored_numbers(main, capsys):
    assert main(["sam_vit_b", "--from", "segment-anything", "--check"]) == 0
    assert "more than" not in capsys.readouterr().out
