"""Values of the environment: their references travel with them, and messages show no more."""

from __future__ import annotations

import copy
import pickle
from dataclasses import asdict, dataclass, replace

import pytest

from distill.config.loading import load_recipe, resolved_yaml
from distill.errors import RecipeError
from distill.secret import FromEnvironment, conceal, is_same, recorded
from distill.text import terminal


@dataclass
class Options:
    place: str


@pytest.fixture
def token(monkeypatch) -> str:
    monkeypatch.setenv("KEY_OF_TEST", "v3ry-secret")
    return "v3ry-secret"


def test_a_copy_keeps_the_reference(token):
    place = FromEnvironment(f"/data/{token}", "/data/${oc.env:KEY_OF_TEST}")
    options = replace(Options(place), place=place)
    for found in (copy.deepcopy(options).place, asdict(options)["place"], pickle.loads(pickle.dumps(place))):
        assert found == f"/data/{token}" and recorded(found) == "/data/${oc.env:KEY_OF_TEST}"
    nested = {"a": [place, 1], "b": {"c": place}, "d": (place,)}
    assert token not in str(recorded(nested)) and recorded(nested)["a"][1] == 1


def test_messages_show_the_reference(token):
    FromEnvironment(f"/data/{token}", "/data/${oc.env:KEY_OF_TEST}")
    assert terminal(f"no such directory: '/data/{token}/x'") == "no such directory: '/data/${oc.env:KEY_OF_TEST}/x'"
    assert conceal(f"403 for key {token}") == "403 for key ${oc.env:KEY_OF_TEST}"


def test_the_same_value_by_reference_and_by_text(token):
    place = FromEnvironment(f"/data/{token}", "/data/${oc.env:KEY_OF_TEST}")
    for before in ("/data/${oc.env:KEY_OF_TEST}", f"/data/{token}"):
        assert is_same(before, place)
    assert is_same("/data/${oc.env:KEY_OF_TEST}", f"/data/{token}")
    assert not is_same("/data/${oc.env:KEY_OF_TEST}", "/data/other") and not is_same("/data/other", place)
    assert is_same([1, 2], [1, 2]) and is_same(None, None) and not is_same(None, 0)


@pytest.mark.parametrize(
    "written",
    [
        "${oc.env:KEY_OF_TEST}",
        "a/${oc.env:KEY_OF_TEST}/b",
        "${oc.env:KEY_OF_TEST,else}",
        "${cache.dir}",
        "${cache.dir}/x",
    ],
)
def test_a_recipe_reads_back_from_its_record(token, tmp_path, written):
    options = [
        f"data.images='{written}'",
        "cache.dir=${oc.env:KEY_OF_TEST}",
        "run=out",
        "student.name=efficientvit_sam_t",
    ]
    recipe = load_recipe("quickstart/feature", options, check_paths=False)
    assert token in recipe.data.images
    text = resolved_yaml(recipe)
    assert token not in text and "oc.env:KEY_OF_TEST" in text
    (tmp_path / "recipe.yaml").write_text(text)
    assert load_recipe(tmp_path / "recipe.yaml", check_paths=False) == recipe


def test_options_that_lead_elsewhere_are_written_out(token):
    options = ["data.images=photos", "run=runs/${student.name}", "cache.dir=${oc.env:KEY_OF_TEST}"]
    recipe = load_recipe("quickstart/feature", options, check_paths=False)
    assert "run: runs/timm" in resolved_yaml(recipe)


def test_numbers_of_the_environment_are_written(monkeypatch):
    monkeypatch.setenv("BATCH_OF_TEST", "3")
    options = ["data.images=photos", "run=out", "cache.dir=cache", "data.batch_size=${oc.env:BATCH_OF_TEST}"]
    assert "batch_size: 3" in resolved_yaml(load_recipe("quickstart/feature", options, check_paths=False))


def test_a_list_of_texts_is_given_item_by_item(monkeypatch):
    monkeypatch.setenv("LOGGERS_OF_TEST", "[csv]")
    options = ["data.images=photos", "run=out", "cache.dir=cache", "logger=${oc.decode:${oc.env:LOGGERS_OF_TEST}}"]
    with pytest.raises(RecipeError, match="write each item"):
        load_recipe("quickstart/feature", options, check_paths=False)


def test_values_in_lists_and_sections_are_references_too(token):
    sets = ["run=out", "sets.a={images: '${oc.env:KEY_OF_TEST}/a', annotations: b, detections: c}"]
    recipe = load_recipe("eval/in_the_wild", sets, check_paths=False)
    assert recipe.sets["a"]["images"] == f"{token}/a"
    text = resolved_yaml(recipe)
    assert token not in text and "${oc.env:KEY_OF_TEST}/a" in text
