"""The list of students: which names match, what is counted, and what is said of a student that cannot be built."""

from __future__ import annotations

import pytest

from distill.models.student_list import find_students, summarise_student
from distill.students import STUDENTS, Student


def test_names():
    assert find_students("*") == list(STUDENTS)
    assert find_students("sam_vit_b") == ["sam_vit_b"]
    assert find_students("tinyvit") == ["tinyvit_sam_11m", "tinyvit_sam_21m"]
    assert find_students("*_vit?") == find_students("efficient_sam_vit[st]")
    assert set(find_students("timm/resnet1?")) >= {"timm/resnet18"}
    assert find_students("timm/resnet18.a1_in1k@16+sam") == ["timm/resnet18.a1_in1k@16+sam"]


# Published encoders: parameters and MACs, attention products included
@pytest.mark.parametrize(
    ("name", "millions", "gmacs"),
    [("mobile_sam", 6.07, 38.8), ("edge_sam", 5.52, 20.0), ("efficient_sam_vitt", 6.16, 102.3)],
)
def test_counts(name: str, millions: float, gmacs: float):
    student = summarise_student(name)
    assert student.problem is None
    assert student.num_parameters / 1e6 == pytest.approx(millions, abs=0.01)
    assert student.macs / 1e9 == pytest.approx(gmacs, abs=0.1)


def test_what_cannot_be_built_is_listed_with_its_reason(monkeypatch):
    monkeypatch.setitem(STUDENTS, "bad", Student("distill.students.vit", 1000, "a grid that does not fit"))
    student = summarise_student("bad")
    assert student.num_parameters is None and "image_size 1000 cannot give" in student.problem
