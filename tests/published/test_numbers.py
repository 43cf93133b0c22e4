"""The published numbers: each has a source, scores a protocol, and where sources disagree it is said why."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.config.loading import load_recipe
from distill.data.catalogue import load_dataset
from distill.errors import DistillError
from distill.published.numbers import NUMBERS, published_numbers, read_numbers
from distill.students import STUDENTS

NAMES = {
    *("efficientvit_sam_l0", "efficientvit_sam_l1", "efficientvit_sam_l2", "efficientvit_sam_xl0"),
    *("efficientvit_sam_xl1", "mobile_sam", "edge_sam", "edge_sam_3x", "efficient_sam_ti", "efficient_sam_s"),
    *("repvit_sam", "tiny_sam", "nano_sam", "sam_vit_b", "sam_vit_l", "sam_vit_h"),
}


def test_the_models_are_there_and_can_be_built():
    models = published_numbers().models
    assert {model.name for model in models} >= NAMES
    assert all(model.student is None or model.student in STUDENTS for model in models)
    assert all(list(model.values) for model in models)


def test_every_source_and_protocol_is_used():
    numbers = published_numbers()
    assert {value.source for model in numbers.models for value in model.values} == set(numbers.sources)
    assert {score.protocol for model in numbers.models for score in model.scores} == set(numbers.protocols)


def test_no_number_stands_twice():
    for model in published_numbers().models:
        values = list(model.values)
        assert len(values) == len(set(values)), model.name


def test_where_sources_disagree_it_is_said_why():
    numbers = published_numbers()
    for model in numbers.models:
        found = defaultdict(set)
        for score in model.scores:
            protocol = numbers.protocols[score.protocol]
            found[score.measure, protocol.prompt, protocol.num_clicks, protocol.image_set].add(score.value)
        for count in model.counts:
            if not count.note:
                found[count.measure, count.of].add(count.value)
        if any(len(values) > 1 for values in found.values()):
            assert model.why, model.name
    assert {str(score.value) for score in numbers.model("mobile_sam").scores} >= {"39.4", "41.0", "42.7"}


def test_protocols_name_photos_of_the_catalogue_and_recipes():
    protocols = published_numbers().protocols
    coco, lvis = (load_dataset(name).split("val") for name in ("coco2017", "lvis_v1"))
    assert protocols["efficientvit_sam_coco_box"].split == coco
    assert protocols["efficientvit_sam_lvis_box"].split == lvis
    assert protocols["edge_tam_sa23_point1"].split is None
    for protocol in protocols.values():
        if protocol.recipe:
            paths = ["data.images=.", "run=out"] + ["data.annotations=a.json"] * (protocol.prompt != "pair")
            recipe: Any = load_recipe(protocol.recipe, [*protocol.options, *paths], check_paths=False)
            assert recipe.prompt.kind == protocol.prompt
            assert protocol.multimask in (recipe.multimask, None)
            assert protocol.num_clicks is None or protocol.num_clicks == recipe.prompt.num_clicks
            assert protocol.publisher == protocol.recipe.removeprefix("eval/").rpartition("/")[0]
    assert protocols["efficientvit_sam_coco_box"].publisher == "efficientvit_sam"
    assert protocols["nano_sam_coco_box"].publisher == ""


def damaged(tmp_path: Path, change: Any) -> str:
    content = yaml.safe_load(NUMBERS.read_text())
    change(content)
    path = tmp_path / "numbers.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(DistillError) as caught:
        read_numbers(path)
    return str(caught.value)


def test_damage_is_named(tmp_path):
    def value(**changes: object) -> Any:
        return lambda content: content["models"][0]["scores"][0].update(changes)

    assert "no source 'hearsay'" in damaged(tmp_path, value(source="hearsay"))
    assert "no protocol 'guess'" in damaged(tmp_path, value(protocol="guess"))
    assert "ap 101 is out of range" in damaged(tmp_path, value(value=101))
    assert "no finite number" in damaged(tmp_path, value(value=float("nan")))
    assert "sauce" in damaged(tmp_path, value(sauce="x"))
    assert "two models are called" in damaged(tmp_path, lambda content: content["models"].append(content["models"][0]))
    assert "url" in damaged(tmp_path, lambda content: content["sources"]["edge_sam"].update(url="somewhere"))


def test_models_are_found_by_a_part_of_their_names():
    numbers = published_numbers()
    assert [model.name for model in numbers.find("edge_sam")] == ["edge_sam"]
    assert [model.name for model in numbers.find("edge")] == ["edge_sam", "edge_sam_3x", "edge_sam_10x"]
    assert [model.name for model in numbers.find("*_xl?")] == ["efficientvit_sam_xl0", "efficientvit_sam_xl1"]
    with pytest.raises(DistillError, match="Did you mean 'mobile_sam'"):
        numbers.find("mobil_sam")
