"""The sentence on top of a comparison's page."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from distill.comparison.conclusion import by_size, circumstances, conclusion, counts_of
from distill.comparison.page import render_page
from distill.evaluation.scoring.bootstrap import paired_ratio
from tests.fixtures.evaluations import bench_row, compared_of, some_ious, write_evaluation

TEACHER = bench_row("teacher", 225, 229, 230, 231, 240, encoder_params=90_000_000, macs=50e9)
STUDENT = bench_row("student", 22, 22.5, 23, 23.5, 24)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return write_evaluation(tmp_path / "teacher", some_ious(0.80))


def test_the_closest_student_its_interval_and_its_cost(tmp_path, teacher):
    student = write_evaluation(tmp_path / "student", some_ious(0.74, seed=1))
    other = write_evaluation(tmp_path / "other", some_ious(0.60, seed=2))
    comparison = compared_of([teacher, student, other], [TEACHER, STUDENT])
    ours, theirs = (model.evaluations[comparison.protocols[0]].instances for model in comparison.models[1::-1])
    low, high = paired_ratio(ours.ious, theirs.ious, ours.photos) or (0.0, 0.0)
    sentence = conclusion(comparison)
    assert sentence == (
        "student comes closest to teacher: 92.5 % of its mIoU by box, single mask (95 % interval "
        f"{100 * low:.1f} to {100 * high:.1f} %; 0.740 and 0.800), with 8.0 % of its encoder's multiply-adds and 10 "
        "times its speed (9.4 to 11)."
    )
    page = render_page(comparison, num_rows=0)
    assert page.index(sentence.replace("'", "&#39;")) < page.index("<nav")


def test_of_equals_the_cheapest_stands_for_all(tmp_path, teacher):
    dear = write_evaluation(tmp_path / "dear", some_ious(0.741, seed=3))
    student = write_evaluation(tmp_path / "student", some_ious(0.74, seed=1))
    rows = [TEACHER, STUDENT, bench_row("dear", 90, 91, 92, 93, 94, encoder_params=5, macs=20e9)]
    assert conclusion(compared_of([teacher, dear, student], rows)).startswith("student comes closest")


@pytest.mark.parametrize(
    ("mean", "seed", "verdict"),
    [(0.70, 1, "is behind"), (0.80, 1, "is not measurably different from"), (0.90, 1, "is ahead of")],
)
def test_the_verdict_follows_the_interval(tmp_path, teacher, mean, seed, verdict):
    student = write_evaluation(tmp_path / "student", some_ious(mean, seed=seed))
    assert conclusion(compared_of([teacher, student])).startswith(f"student {verdict} teacher: ")
    assert conclusion(compared_of([teacher, student])).endswith("; no cost was measured.")


def test_each_protocol_has_its_share_and_the_verdict_is_of_all(tmp_path):
    click = {"protocol": "coco_point", "prompt": "point", "num_clicks": 1, "multimask": "best"}
    places = []
    for name, seed, by_box, by_click in (
        ("teacher", 0, 0.80, 0.60),
        ("student", 1, 0.80, 0.40),
        ("weak", 2, 0.70, 0.39),
    ):
        sha256 = {"weights_sha256": f"{name:0>64}"}
        places.append(write_evaluation(tmp_path / name, some_ious(by_box, seed=seed), **sha256))
        places.append(write_evaluation(tmp_path / f"{name}_click", some_ious(by_click, seed=seed), **sha256, **click))
    sentence = conclusion(compared_of(places))
    assert sentence.startswith("student comes closest to teacher: 100.0 % of its mIoU by box, single mask (95 %")
    assert ", 66.7 % of its mIoU by 1 click, best of three (95 % interval " in sentence
    only_better = conclusion(compared_of([*places[2:4], *places[:2]]))
    assert only_better.startswith("teacher is ahead of student: 100.0 %")


def test_baselines_are_no_student(tmp_path, teacher):
    perfect = write_evaluation(tmp_path / "oracle", some_ious(0.99), weights_sha256=None, model="oracle")
    student = write_evaluation(tmp_path / "student", some_ious(0.70, seed=1))
    assert conclusion(compared_of([teacher, perfect, student])).startswith("student ")


def test_nothing_to_compare_with(teacher):
    assert conclusion(compared_of([teacher])) == (
        "mIoU by box, single mask: teacher 0.800; nothing to compare it with."
    )


def test_one_photo_has_no_interval(tmp_path):
    places = [write_evaluation(tmp_path / name, [0.5, value]) for name, value in (("a", 0.6), ("b", 0.7))]
    assert conclusion(compared_of(places)) == (
        "b stands beside a: 109.1 % of its mIoU by box, single mask (0.600 and 0.550); no cost was measured."
    )


def test_what_it_is_about_stands_beside_it(tmp_path):
    place = write_evaluation(tmp_path / "a", some_ious(0.5), date="2026-03-01")
    comparison = compared_of([place], [bench_row("a", 1, 2, 3, 4, 5)])
    comparison.bench_date = "2026-03-02"
    assert circumstances(comparison, date(2026, 3, 9)) == [
        "Page of 9 March 2026",
        "evaluated 1 March 2026",
        "protocol: box, single mask",
        "40 photos, 120 instances",
        "40 large, 40 medium, 40 small",
        "latency at batch 1, fp32 on a processor, 2 CPUs, measured 2 March 2026",
    ]


def test_instances_are_counted_by_the_rules_of_the_protocol(tmp_path):
    ious, rules = some_ious(0.5), 'instances.sizes="closed"'
    places = [write_evaluation(tmp_path / "a", ious), write_evaluation(tmp_path / "b", ious, rules=rules)]
    for place in places:
        lines = place / "instances.jsonl"
        lines.write_text(lines.read_text().replace('"area": 500.0', '"area": 1024.0'))
    coco, closed = (next(iter(compared_of([place]).models[0].evaluations.values())) for place in places)
    assert counts_of(coco) == "40 photos, 120 instances"
    assert by_size(coco) == "40 large, 80 medium, 0 small" and by_size(closed) == "40 large, 80 medium, 40 small"
