"""`distill datasets`, and recipes that name a prepared set in the place of paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from distill.cli.main import main
from distill.config.loading import load_recipe
from distill.config.named_data import ROOT_VARIABLE
from distill.errors import RecipeError
from tests.fixtures.datasets import TinySets

TRAIN = {
    "kind": "mask",
    "run": "run",
    "student": {"name": "efficientvit_sam_t", "image_size": 64},
    "data": {"batch_size": 1, "num_workers": 0, "max_instances": 1},
    "trainer": {"max_steps": 1, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False},
}


@pytest.fixture
def prepared(tiny_sets: TinySets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinySets:
    """COCO in little, prepared; the working directory is another one."""
    monkeypatch.chdir(tmp_path)
    tiny_sets.coco()
    assert main(["datasets", "prepare", "tiny_coco"]) == 0
    return tiny_sets


def test_ls_as_table_and_as_json(capsys):
    assert main(["datasets", "ls"]) == 0
    table = capsys.readouterr().out
    assert all(word in table for word in ("coco2017", "123,287", "unpublished"))
    assert main(["datasets", "ls", "--json"]) == 0
    sets = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert sets["coco2017"]["splits"]["val"]["num_photos"] == 5000
    assert sets["coco2017"]["files"]["val2017.zip"]["md5"] == "442b8da7639aecaf257c1dceb8ba8c80"
    assert sets["sa1b"]["photo_licence"]["name"] == "SA-1B Dataset Research License"


def test_show(capsys):
    assert main(["datasets", "show", "lvis_v1"]) == 0
    shown = capsys.readouterr().out
    assert "licence of the annotations: CC BY 4.0" in shown
    assert (
        "lvis_v1_train.json.zip: 350,264,821 bytes; md5 4410d837f71203af226950447ef9d422; sha256 unpublished" in shown
    )
    assert "distill datasets prepare lvis_v1 --split train" in shown and "see distill datasets show coco2017" in shown
    assert main(["datasets", "show", "sginw"]) == 0
    assert "Bottles/valid: photos unpublished, masks unpublished" in capsys.readouterr().out


def test_prepare_and_prepare_again(tiny_sets, capsys):
    folder = tiny_sets.coco()
    assert main(["datasets", "prepare", "tiny_coco", "--split", "val"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{folder}/shards/val: 2 photos with 2 masks",
        "use it with: data.images=tiny_coco/val",
    ]
    assert main(["datasets", "prepare", "tiny_coco", "--split", "val", "--verify"]) == 0
    assert f"{folder}/shards/val: finished" in capsys.readouterr().out


def test_prepare_below_another_root(tiny_sets, tmp_path, monkeypatch, capsys):
    tiny_sets.coco()
    monkeypatch.delenv(ROOT_VARIABLE)
    assert main(["datasets", "prepare", "coco2017", "--split", "val"]) == 2
    assert f"{ROOT_VARIABLE} is not set" in capsys.readouterr().err
    out = tmp_path / "out"
    command = ["datasets", "prepare", "tiny_coco", "--split", "val", "--root", str(tiny_sets.root), "--out", str(out)]
    assert main(command) == 0
    assert f"use it with: data.images={out}/val" in capsys.readouterr().out


def test_mistakes_end_with_2(tiny_sets, capsys):
    assert main(["datasets", "prepare", "coco2017", "--split", "vall"]) == 2
    assert "has no split 'vall'. Did you mean 'val'?" in capsys.readouterr().err
    assert main(["datasets", "show", "coco207"]) == 2
    assert "unknown set 'coco207'. Did you mean 'coco2017'?" in capsys.readouterr().err
    assert main(["datasets", "prepare", "coco2017", "--split", "val"]) == 2
    error = capsys.readouterr().err
    assert "2 files are missing or wrong" in error and "http://images.cocodataset.org/zips/val2017.zip" in error


def test_a_recipe_trains_on_a_named_set(prepared, teacher_file, capsys):
    recipe = {**TRAIN, "teacher": {"name": str(teacher_file), "source": "online"}}
    recipe["data"] |= {"images": "tiny_coco/train", "val_images": "tiny_coco/val"}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["check", "recipe.yaml"]) == 0
    assert main(["train", "recipe.yaml"]) == 0, capsys.readouterr().err
    assert yaml.safe_load(Path("run/recipe.yaml").read_text())["data"]["images"] == "tiny_coco/train"


def test_a_caching_job_reads_a_named_set(prepared, teacher_file, capsys):
    recipe = {"kind": "cache", "teacher": {"name": str(teacher_file)}, "cache": {"dir": "cache"}}
    recipe["data"] = {"images": "tiny_coco/val"}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["cache", "build", "recipe.yaml"]) == 0, capsys.readouterr().err
    assert list(Path("cache").glob("*.tar"))


@pytest.mark.parametrize("annotations", [[], ["data.annotations=tiny_coco/val"]])
def test_an_evaluation_finds_photos_and_annotations(prepared, annotations, capsys):
    command = ["evaluate", "oracle", "eval/coco_box", "data.images=tiny_coco/val", "run=run", *annotations]
    assert main(command) == 0, capsys.readouterr().err
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["num_instances"] == 2 and metrics["images"] == metrics["annotations"] == "tiny_coco/val"


def test_an_evaluation_over_lvis(prepared, capsys):
    prepared.lvis()
    assert main(["datasets", "prepare", "tiny_lvis", "--split", "val"]) == 0
    assert main(["evaluate", "oracle", "eval/lvis_box", "data.images=tiny_lvis/val", "run=run"]) == 0
    assert json.loads(Path("run/metrics.json").read_text())["num_instances"] == 4


def test_sets_of_the_wild_by_name(tiny_sets, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_sets.sginw()
    assert main(["datasets", "prepare", "tiny_sginw", "--split", "Bottles/valid"]) == 0
    row = {"image_id": 0, "category_id": 1, "bbox": [5, 3, 20, 7], "score": 0.9}
    Path("boxes.json").write_text(json.dumps([row]))
    sets = {"Bottles": {"images": "tiny_sginw/Bottles/valid", "detections": "boxes.json"}}
    Path("recipe.yaml").write_text(yaml.safe_dump({"kind": "evaluate_sets", "run": "run", "sets": sets}))
    assert main(["evaluate", "fill-box", "recipe.yaml"]) == 0, capsys.readouterr().err
    assert json.loads(Path("run/metrics.json").read_text())["num_sets"] == 1


def test_a_name_that_is_not_prepared_is_a_mistake_in_the_recipe(tiny_sets, monkeypatch):
    overrides = ["data.images=coco2017/train", "student.init_from=null", "run=run"]
    message = "data.images: no such directory: 'coco2017/train'; the public set of this name is not prepared: run "
    with pytest.raises(RecipeError, match=f"{message}'distill datasets prepare coco2017 --split train'"):
        load_recipe("quickstart/mask", overrides)
    evaluation = ["data.images=sginw/Bottles/valid", "run=run"]
    with pytest.raises(RecipeError, match="1 error\n.*data.images: .*datasets prepare sginw --split Bottles/valid'"):
        load_recipe("eval/coco_box", evaluation)
    monkeypatch.delenv(ROOT_VARIABLE)
    with pytest.raises(RecipeError, match=f"for the public set of this name, {ROOT_VARIABLE} is not set"):
        load_recipe("eval/coco_box", evaluation)


def test_annotations_of_paths_are_still_required(tmp_path):
    with pytest.raises(RecipeError, match="data.annotations: missing; give a COCO-format instances"):
        load_recipe("eval/coco_box", [f"data.images={tmp_path}", "run=run"])
