"""Published rows in a comparison: marked, without intervals, in a column only if it is of their protocol."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from distill.cli.main import main
from distill.comparison.join import Comparison, add_benches, build_comparison
from distill.comparison.models import read_models
from distill.comparison.published_rows import split_published
from distill.comparison.tables import difference_rows, to_csv, to_markdown
from distill.errors import DistillError

COCO_VAL = {"annotations": "annotations/instances_val2017.json", "num_images": 4952, "max_images": 0}
RULES = "instances.crowds=true instances.min_area=1.0 instances.empty=true instances.clip_boxes=false instances.sizes="
BY_THE_SOURCE = {"protocol": "efficientvit_sam/coco_box", "multimask": "best", "rules": f'{RULES}"closed"'}
COLUMN = "box by EfficientViT-SAM's rules, best of three"


@pytest.fixture
def box(compared, tmp_path: Path) -> Path:
    """Copy an evaluation by boxes, so that a test can change what it says of itself."""
    shutil.copytree(compared.out / "evaluations/student/coco_box", tmp_path / "student")
    return tmp_path / "student"


def change(directory: Path, **values: object) -> None:
    path = directory / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def joined(*sources: object) -> Comparison:
    """Join what is there, without files."""
    others, published = split_published([str(source) for source in sources])
    return build_comparison(read_models(others)[0], reference=None, published=published)


def lines(comparison: Comparison) -> dict[str, dict[str, str]]:
    """Return the lines of the CSV by their label."""
    return {row["model"]: row for row in csv.DictReader(io.StringIO(to_csv(comparison)))}


def test_a_score_of_another_protocol_stands_alone(box, tmp_path, capsys):
    command = ["compare", str(box), "published:efficientvit_sam_l0", "--no-bench", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    rows = {row["model"]: row for row in csv.DictReader((tmp_path / "out/table.csv").read_text().splitlines())}
    published = rows["efficientvit_sam_l0 (published)"]
    assert published["origin"] == "published" and rows["mask"]["origin"] == "measured"
    assert published["box: miou"] == published["box: miou low"] == ""
    assert published["parameters (M)"] == "34.8" and published["encoder GMACs"] == "35.0"
    shown = capsys.readouterr()
    assert "match no column and stand under 'Published numbers' alone" in shown.err
    assert "efficientvit_sam_coco_vitdet: no evaluation by such prompts" in shown.err
    assert "34.8 (published)" in shown.out
    text = (tmp_path / "out/table.md").read_text()
    assert "| efficientvit_sam_l0 (published) | AP | 45.7 % | ViTDet's boxes, coco_vitdet.json, best of three" in text
    assert "| in no column: no evaluation by such prompts | EfficientViT-SAM's README, table 1 |" in text
    page = (tmp_path / "out/index.html").read_text()
    assert "Published numbers" in page and "45.7 %" in page and "Below them: 1 published." in page


def test_a_score_of_the_same_protocol_stands_in_its_column(box):
    change(box, **BY_THE_SOURCE, **COCO_VAL)
    comparison = joined(box, "target=published:efficientvit_sam_xl1")
    published = lines(comparison)["target (published)"]
    assert float(published[f"{COLUMN}: miou"]) == pytest.approx(0.79927)
    assert published[f"{COLUMN}: miou low"] == published[f"{COLUMN}: miou_small"] == ""
    (note,) = [note for note in comparison.notes if note.startswith("target (published)")]
    assert f"the score in the column '{COLUMN}' is from EfficientViT-SAM's README" in note
    text = to_markdown(comparison)
    assert "0.799 (published)" in text and difference_rows(comparison)[1] == []
    assert f"in the column '{COLUMN}'" in text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "the rules here are those of eval/coco_box, and there those of eval/efficientvit_sam/coco_box"),
        ({**BY_THE_SOURCE, "multimask": "single"}, "the mask here is single, and there best of three"),
        ({**BY_THE_SOURCE, "rules": RULES}, "options of eval/efficientvit_sam/coco_box were changed here"),
        (BY_THE_SOURCE, "the photos here are not those of coco2017/val"),
        ({**BY_THE_SOURCE, **COCO_VAL, "num_images": 99}, "the photos here are not those of coco2017/val"),
        ({**BY_THE_SOURCE, **COCO_VAL, "max_images": 4952}, "the photos here are not those of coco2017/val"),
    ],
)
def test_it_is_said_why_a_score_is_in_no_column(box, changes, reason):
    change(box, **changes)
    comparison = joined(box, "published:efficientvit_sam_xl1")
    row = lines(comparison)["efficientvit_sam_xl1 (published)"]
    assert not any(value for key, value in row.items() if key.endswith("miou"))
    assert f"efficientvit_sam_coco_box: {reason}" in " ".join(comparison.notes)


def test_an_unstated_choice_of_the_mask_matches_nothing(box):
    change(box, **COCO_VAL)
    assert "its source does not say how the mask is chosen" in " ".join(joined(box, "published:nano_sam").notes)


def test_detections_must_be_of_the_published_boxes(box):
    ap = {"ap": 0.4, "prompt": "detection", "multimask": "best", **COCO_VAL, "num_images": 5000}
    metrics = json.loads((box / "metrics.json").read_text())
    del metrics["miou"]
    (box / "metrics.json").write_text(json.dumps(metrics))
    rules = {"protocol": "efficientvit_sam/coco_vitdet", "rules": "instances.clip_boxes=false"}
    change(box, **ap, **rules, detections="boxes/coco_vitdet.json", num_outside=3, num_foreign=1200)
    comparison = joined(box, "published:efficientvit_sam_l0", "published:tiny_sam")
    rows, column = lines(comparison), "detector boxes by EfficientViT-SAM's rules, best of three: ap"
    assert rows["efficientvit_sam_l0 (published)"][column] == "0.457"
    assert rows["tiny_sam (published)"][column] == ""
    assert "the boxes here are not those of coco_instances_results_vitdet.json" in " ".join(comparison.notes)
    (note,) = [note for note in comparison.notes if note.startswith("detector boxes")]
    assert "3 have no pixel inside their photo and 1,200 lie on photos that the annotations do not list" in note
    assert not any("num_outside" in key for key in rows["tiny_sam (published)"])


def test_it_is_never_measured(box):
    """A bench of a student of its name leaves a published row as it is."""
    comparison = joined(box, "published:mobile_sam")
    run = {"batch_size": 1, "precision": "fp32", "fused": False, "latency_ms": 1.0, "images_per_second": 1000.0}
    rows = [{"model": name, "params": 1, "macs": 1, "runs": [run]} for name in ("mask", "mobile_sam")]
    add_benches(comparison, {"models": rows}, "bench.json")
    found = lines(comparison)
    assert found["mask"]["latency (ms, batch 1, fp32)"] == "1.0"
    assert found["mobile_sam (published)"]["latency (ms, batch 1, fp32)"] == ""
    assert found["mobile_sam (published)"]["parameters (M)"] == "10.13"


def test_mistakes(box, tmp_path, capsys):
    def refused(*sources: object) -> str:
        capsys.readouterr()
        assert main(["compare", *map(str, sources), "--no-bench", "--out", str(tmp_path / "out")]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "no published numbers of 'mobil_sam'. Did you mean 'mobile_sam'" in refused(box, "published:mobil_sam")
    assert "`distill tables edge_sam` shows the published row alone" in refused("published:edge_sam")
    assert "give it once" in refused(box, "published:edge_sam", "published:edge_sam")
    reference = ["--reference", "edge_sam (published)"]
    assert "no instances to take differences to" in refused(box, "published:edge_sam", *reference)


def test_sources_are_split():
    others, rows = split_published(["runs/a", "published:edge_sam", "b=runs/b", "paper=published:edge_sam"])
    assert others == ["runs/a", "b=runs/b"]
    assert [row.label for row in rows] == ["edge_sam (published)", "paper (published)"]
    with pytest.raises(DistillError, match="no published numbers of ''"):
        split_published(["published:"])
