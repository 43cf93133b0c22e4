"""`distill compare`: what it joins, what it measures itself, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml

from distill.cli.main import main
from distill.evaluation.scoring.bootstrap import paired_difference


def read_csv(out: Path) -> dict[str, dict[str, str]]:
    with (out / "table.csv").open(newline="") as file:
        return {row["model"]: row for row in csv.DictReader(file)}


def evaluation(compared, label: str, protocol: str) -> Path:
    return compared.out / "evaluations" / label / protocol


def refused(capsys, *arguments: object) -> str:
    capsys.readouterr()
    assert main(["compare", *map(str, arguments)]) == 2
    error: str = capsys.readouterr().err
    assert "Traceback" not in error
    return error


@pytest.fixture
def copied(compared, tmp_path: Path) -> dict[str, Path]:
    """Copy two evaluations, so that a test can change them."""
    places = {"teacher": "teacher", "student": "student"}
    for name in places:
        shutil.copytree(evaluation(compared, name, "coco_box"), tmp_path / name)
    return {name: tmp_path / name for name in places}


def change(directory: Path, **values: object) -> None:
    path = directory / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_the_table_is_what_was_measured(compared):
    rows = read_csv(compared.out)
    assert list(rows) == ["teacher", "student", "oracle"]
    for label in ("teacher", "student"):
        metrics = json.loads((evaluation(compared, label, "coco_box") / "metrics.json").read_text())
        assert float(rows[label]["box: miou"]) == metrics["miou"]
        assert float(rows[label]["box: miou low"]) == metrics["intervals"]["miou"][0]
        assert float(rows[label]["box: boundary_iou"]) == metrics["boundary_iou"]
        assert float(rows[label]["encoder GMACs"]) > 0 and float(rows[label]["latency (ms, batch 1, fp32)"]) > 0
    assert float(rows["oracle"]["box: miou"]) == 1.0
    assert rows["oracle"]["1 click: miou"] == rows["oracle"]["encoder GMACs"] == ""
    assert rows["student"]["photos seen"] == "8"  # two stages of two steps of two photos
    assert float(rows["student"]["device hours"]) > 0 and rows["teacher"]["device hours"] == ""
    assert rows["student"]["teacher"].endswith("teacher.safetensors")


def test_differences_are_paired(compared):
    def ious(label: str) -> tuple[list[float], list[str]]:
        lines = (evaluation(compared, label, "coco_box") / "instances.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return [row["iou"] for row in rows], [row["image"] for row in rows]

    (ours, photos), (base, _) = ious("student"), ious("teacher")
    found = paired_difference(ours, base, photos)
    text = (compared.out / "table.md").read_text()
    assert f"| box, single mask | student | {found.mean:+.3f} | [{found.low:+.3f}, {found.high:+.3f}] | 12 |" in text


def test_the_page_names_no_place_on_this_machine(compared, copied, tmp_path, capsys):
    page = (compared.out / "index.html").read_text()
    assert str(compared.place) not in page and "set.json" in page  # which the table of protocols names
    change(copied["teacher"], images=str(tmp_path / "gone"))
    options = ["--no-bench", "--out", str(tmp_path / "out")]
    assert main(["compare", str(copied["teacher"]), f"{compared.place}/runs/feature", *options]) == 0
    assert str(tmp_path / "gone") in capsys.readouterr().err  # the terminal is of this machine
    page = (tmp_path / "out/index.html").read_text()
    assert "no gallery of box, single mask: " in page and "gone" in page
    for place in (tmp_path, compared.place, Path.home(), Path.cwd()):
        assert f"{place}/" not in page


def test_the_page_counts_what_it_scores(compared):
    page = (compared.out / "index.html").read_text()
    assert "<small>4 photos, 12 instances</small>" in page and "<small>4 instances</small>" in page
    assert ">n = 4</text>" in page or "n = 4" in page
    assert "input</a> (pixels)" in page and ">64<" in page


def test_the_page_stands_alone(compared):
    page = (compared.out / "index.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")  # but for SVG's own namespaces
    assert page.count('class="instance"') == 24 and page.count("<svg") >= 10
    assert len(page) < 2_000_000


def test_again_it_measures_nothing(compared, capsys):
    before = {path: path.stat().st_mtime_ns for path in compared.out.rglob("*.json*")}
    models = [f"teacher={compared.place}/teacher.safetensors", f"student={compared.place}/runs/mask"]
    command = ["compare", *models, str(compared.place / "oracle"), *compared.data, "--out", str(compared.out)]
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "student" in capsys.readouterr().out


def test_what_was_interrupted_goes_on(compared, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(compared.out, out)
    cut = out / "evaluations/student/coco_box"
    (cut / "metrics.json").unlink()
    (cut / "instances.jsonl").unlink()
    models = [f"teacher={compared.place}/teacher.safetensors", f"student={compared.place}/runs/mask"]
    # the directory is another one than the evaluation was begun for; the run goes on all the same
    assert main(["compare", *models, *compared.data, "--no-bench", "--out", str(out)]) == 0
    assert read_csv(out)["student"]["box: miou"] == read_csv(compared.out)["student"]["box: miou"]


def test_evaluations_alone_are_joined_by_their_weights(compared, tmp_path):
    folder = compared.out / "evaluations"
    assert main(["compare", "--evaluations", str(folder), "--no-bench", "--out", str(tmp_path / "all")]) == 0
    assert len(read_csv(tmp_path / "all")) == 2
    run = f"ours={compared.place}/runs/mask"
    command = ["compare", run, "--evaluations", str(folder), "--no-bench", "--out", str(tmp_path / "one")]
    assert main(command) == 0
    rows = read_csv(tmp_path / "one")
    assert (
        list(rows) == ["ours"] and rows["ours"]["1 click: miou"] == read_csv(compared.out)["student"]["1 click: miou"]
    )


def limited(compared, tmp_path: Path, num: int) -> Path:
    """Evaluate the student on the first photos alone, by boxes."""
    place = tmp_path / "found"
    command = ["evaluate", f"{compared.place}/runs/mask", "eval/coco_box", f"run={place / 'box'}"]
    data = [f"data.images={compared.place}/photos", f"data.annotations={compared.place}/set.json"]
    assert main([*command, *data, f"data.max_images={num}"]) == 0
    return place


def test_max_images_is_of_found_evaluations_too(compared, tmp_path, capsys):
    models = [f"teacher={compared.place}/teacher.safetensors", f"student={compared.place}/runs/mask"]
    found = ["--evaluations", str(compared.out / "evaluations")]
    only = ["--protocols", "eval/coco_box", "--max-images", "2", "--no-bench", "--out", str(tmp_path / "out")]
    assert main(["compare", *models, *found, *compared.data, *only]) == 0
    assert capsys.readouterr().err.count("is of all photos; evaluated again because of --max-images 2") == 2
    metrics = json.loads((tmp_path / "out/evaluations/student/coco_box/metrics.json").read_text())
    assert metrics["num_images"] == 2
    assert "<small>2 photos, 6 instances</small>" in (tmp_path / "out/index.html").read_text()


def test_other_numbers_of_photos_are_refused_before_the_work(compared, copied, tmp_path, capsys):
    out = ["--no-bench", "--protocols", "eval/coco_box", "--out", tmp_path / "out"]
    alone = [*compared.data, "--max-images", 2, *out]
    change(copied["student"], model=str(tmp_path / "gone"))
    error = refused(capsys, copied["student"], *alone)
    assert "--max-images 2: " in error and "is of all photos, and the weights of gone are not here" in error
    place, teacher = limited(compared, tmp_path, 2), f"{compared.place}/teacher.safetensors"
    error = refused(capsys, teacher, place / "box", *compared.data, *out)
    assert "is of the first 2 photos, and the others would be of all: give --max-images 2" in error
    assert not (tmp_path / "out/evaluations").exists()
    assert "nothing is evaluated without --images" in refused(capsys, copied["student"], "--max-images", 2, *out)


def test_a_run_without_evaluations_is_shown_with_a_note(compared, tmp_path, capsys):
    assert main(["compare", f"{compared.place}/runs/feature", "--no-bench", "--out", str(tmp_path / "out")]) == 0
    assert "no evaluation of feature: --images DIR" in capsys.readouterr().err
    page = (tmp_path / "out/index.html").read_text()
    assert "Training loss" in page and "no evaluation of feature" in page


def test_a_bench_file_gives_latency_at_the_setting_that_all_have(compared, tmp_path, capsys):
    def row(model: str, *runs: tuple[int, bool, float]) -> dict:
        keys = ("batch_size", "precision", "fused", "latency_ms", "images_per_second")
        found = [dict(zip(keys, (b, "fp32", f, ms, b / ms), strict=True)) for b, f, ms in runs]
        return {"model": model, "params": 2_000_000, "macs": 3_000_000_000, "runs": found}

    teacher, student = str(compared.place / "teacher.safetensors"), str(tmp_path / "mask")
    shutil.copytree(compared.place / "runs/mask", student)
    models = [row(teacher, (1, False, 9.0), (4, False, 30.0)), row(student, (4, False, 20.0), (4, True, 10.0))]
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps({"benchmark": "models", "machine": {}, "models": models}))
    sources = [f"teacher={teacher}", f"student={student}", "--evaluations", str(compared.out / "evaluations")]
    assert main(["compare", *sources, "--bench", str(bench), "--out", str(tmp_path / "out")]) == 0
    rows = read_csv(tmp_path / "out")
    assert rows["teacher"]["latency (ms, batch 4, fp32)"] == "30.0"
    assert rows["student"]["latency (ms, batch 4, fp32)"] == "10.0"  # fused
    assert rows["student"]["encoder GMACs"] == "3.0"
    bench.write_text(json.dumps({"benchmark": "models", "models": [row("other")]}))
    assert "measured none" in refused(capsys, *sources, "--bench", bench, "--out", tmp_path / "out")
    bench.write_text(json.dumps({"benchmark": "loader"}))
    assert "no bench of models" in refused(capsys, *sources, "--bench", bench, "--out", tmp_path / "out")


def test_other_photos_are_refused(compared, copied, tmp_path, capsys):
    lines = (copied["student"] / "instances.jsonl").read_text().splitlines(keepends=True)
    (copied["student"] / "instances.jsonl").write_text("".join(lines[3:]))
    error = refused(capsys, copied["teacher"], copied["student"], "--out", tmp_path / "out")
    assert "4 and 3 photos, 3 of them in common" in error and "same photos and annotations" in error
    assert not (tmp_path / "out").exists()


def test_other_instances_of_the_same_photos_are_refused(compared, copied, tmp_path, capsys):
    lines = (copied["student"] / "instances.jsonl").read_text().splitlines(keepends=True)
    (copied["student"] / "instances.jsonl").write_text("".join(lines[1:]))
    assert "other instances" in refused(capsys, copied["teacher"], copied["student"], "--out", tmp_path / "out")


def test_another_policy_is_a_column_of_its_own(copied, tmp_path, capsys):
    change(copied["student"], multimask="oracle")
    command = ["compare", str(copied["teacher"]), str(copied["student"]), "--no-bench", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "other multimask policies" in capsys.readouterr().err
    rows = read_csv(tmp_path / "out")
    assert rows["teacher"]["box, oracle's pick: miou"] == "" and rows["teacher"]["box: miou"]


def test_students_of_different_teachers_are_marked(compared, tmp_path, capsys):
    for name in ("mask", "feature"):
        shutil.copytree(compared.place / "runs" / name, tmp_path / name)
    recipe = tmp_path / "feature/recipe.yaml"
    tree = yaml.safe_load(recipe.read_text())
    tree["teacher"]["name"] = "sam_vit_h"
    recipe.write_text(yaml.safe_dump(tree))
    sources = [str(tmp_path / "feature"), str(tmp_path / "mask")]
    assert main(["compare", *sources, "--no-bench", "--out", str(tmp_path / "out")]) == 0
    assert "different teachers (feature: sam_vit_h; mask:" in capsys.readouterr().err
    assert read_csv(tmp_path / "out")["feature"]["teacher"] == "sam_vit_h"


def test_agreement_with_different_teachers_is_refused(copied, tmp_path, capsys):
    change(copied["teacher"], protocol="agreement", teacher_sha256="1" * 64)
    change(copied["student"], protocol="agreement", teacher_sha256="2" * 64)
    assert "teacher_sha256" in refused(capsys, copied["teacher"], copied["student"], "--out", tmp_path / "out")


def test_photos_that_are_gone_leave_the_gallery_out(copied, tmp_path, capsys):
    change(copied["teacher"], images=str(tmp_path / "gone"))
    command = ["compare", str(copied["teacher"]), str(copied["student"]), "--no-bench", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "no gallery of box" in capsys.readouterr().err
    page = (tmp_path / "out/index.html").read_text()
    assert "no gallery of box, single mask" in page and 'id="filters"' not in page


@pytest.mark.parametrize("option", ["images", "annotations"])
def test_metrics_that_do_not_name_the_photos_leave_the_gallery_out(copied, tmp_path, capsys, option):
    change(copied["teacher"], **{option: None})
    command = ["compare", str(copied["teacher"]), str(copied["student"]), "--no-bench", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "does not say where its photos are; give --images and --annotations" in capsys.readouterr().err


def test_masks_that_are_gone_leave_the_gallery_out(copied, tmp_path, capsys):
    (copied["student"] / "results.json").unlink()
    command = ["compare", str(copied["teacher"]), str(copied["student"]), "--no-bench", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "results.json: the masks of an evaluation cannot be read" in capsys.readouterr().err


def test_unfinished_evaluations(copied, tmp_path, capsys):
    (copied["student"] / "metrics.json").unlink()
    assert "not finished" in refused(capsys, copied["teacher"], copied["student"], "--out", tmp_path / "out")
    both = [str(copied["teacher"]), str(copied["student"])]
    assert main(["compare", "--evaluations", *both, "--no-bench", "--out", str(tmp_path / "out")]) == 0
    assert "not finished, and left out" in capsys.readouterr().err
    assert len(read_csv(tmp_path / "out")) == 1


@pytest.mark.parametrize("damage", ["[]", "{", '{"miou": 1}'])
def test_damaged_metrics(copied, tmp_path, capsys, damage):
    (copied["student"] / "metrics.json").write_text(damage)
    assert "not the metrics" in refused(capsys, copied["student"], "--out", tmp_path / "out")


def test_instances_cut_short(copied, tmp_path, capsys):
    path = copied["student"] / "instances.jsonl"
    path.write_text(path.read_text()[:-20])
    assert "cut short" in refused(capsys, copied["teacher"], copied["student"], "--out", tmp_path / "out")


def test_sources_that_are_none(compared, tmp_path, capsys):
    out = ["--out", tmp_path / "out"]
    (tmp_path / "holiday").mkdir()
    assert "neither a run" in refused(capsys, tmp_path / "holiday", *out)
    assert "no such file" in refused(capsys, tmp_path / "absent", *out)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(compared.place / "runs/mask/recipe.yaml", unfinished)
    assert "this training has not ended" in refused(capsys, unfinished, *out)
    (tmp_path / "released.pth").write_bytes(b"")
    assert "NAME=" in refused(capsys, tmp_path / "released.pth", *out)
    assert "nothing to compare" in refused(capsys, *out)
    assert "no evaluation in it" in refused(capsys, "--evaluations", tmp_path / "holiday", *out)
    mask = compared.place / "runs/mask"
    assert "the same weights" in refused(capsys, f"a={mask}", f"b={mask}", *out)
    feature = compared.place / "runs/feature"
    assert "two models are called 'a'" in refused(capsys, f"a={mask}", f"a={feature}", "--no-bench", *out)
    assert "Did you mean 'mask'" in refused(capsys, mask, "--reference", "masc", *out)


def test_arguments_that_do_not_fit(compared, tmp_path, capsys):
    mask = compared.place / "runs/mask"
    assert "belong together" in refused(capsys, mask, "--images", tmp_path, "--out", tmp_path / "out")
    assert "exclude each other" in refused(capsys, mask, "--bench", "b", "--no-bench", "--out", tmp_path / "out")
    assert "try --device cpu" in refused(capsys, mask, "--device", "cuda:99", "--out", tmp_path / "out")
    (tmp_path / "thesis.txt").write_text("mine")
    assert "holds something else (thesis.txt)" in refused(capsys, mask, "--out", tmp_path)
    assert "this is a file" in refused(capsys, mask, "--out", tmp_path / "thesis.txt")


def test_weights_that_changed_since(compared, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(compared.out, out)
    sources = [f"student={compared.place}/runs/feature", *compared.data, "--no-bench", "--out", out]
    assert "an evaluation of something else (weights_sha256 was" in refused(capsys, *sources)
