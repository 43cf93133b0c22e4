from __future__ import annotations

from typing import Any

import pytest
import yaml

from distill.cards.model_card import USE, card_text

NOTHING: dict[str, Any] = {"evaluations": {}, "bench": None}


@pytest.mark.parametrize(
    ("teacher", "data", "lines"),
    [
        ("sam_vit_h", "/data/sa1b", ["SAM's weights, by Meta AI: Apache-2.0", "SA-1B Dataset Research License"]),
        ("quickstart", "shards/train2017", ["teacher that ships with distill", "CC BY 4.0"]),
    ],
)
def test_licences_that_are_known(trained_run, teacher, data, lines):
    tree = yaml.safe_load((trained_run / "recipe.yaml").read_text())
    tree["teacher"]["name"], tree["data"]["images"] = teacher, data
    (trained_run / "recipe.yaml").write_text(yaml.safe_dump(tree))
    text = card_text(trained_run / "student.safetensors", NOTHING)
    assert all(line in text for line in lines)
    assert ("base_model: facebook/sam-vit-huge" in text) == (teacher == "sam_vit_h")


def test_the_example_of_a_card_imports_what_there_is():
    lines = [line for line in USE.splitlines() if line.startswith(("import ", "from "))]
    assert lines
    exec("\n".join(lines), {})
