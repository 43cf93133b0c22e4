"""`distill train --dry-run`: what it reports is so, and it writes nothing; and every shipped recipe gets through it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from distill.bench.photos import write_shards
from distill.cli import main as cli
from distill.config.loading import load_recipe, packaged_recipes, recipe_kind
from distill.config.schema import CacheConfig, FeatureRecipe, MaskRecipe, StudentConfig, TeacherConfig
from distill.data.cache.job import build_cache
from distill.data.shards.index import ShardIndex
from distill.errors import DataError
from distill.models.checkpoint import save_model
from distill.models.initialization import build_student
from distill.models.teacher import load_teacher
from distill.training import dry_run
from distill.training.run import train

HW = (48, 64)
TEACHER = "teacher.safetensors"
TRAININGS = [name for name in packaged_recipes() if recipe_kind(name) in ("feature", "mask")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, teacher_file: Path) -> Path:
    """Write shards of two photos, a tiny teacher and its embeddings of them, and a tiny student as a model."""
    directory = tmp_path_factory.mktemp("dry")
    write_shards(directory / "shards", 2, hw=HW)
    (directory / TEACHER).symlink_to(teacher_file)
    teacher = load_teacher(TeacherConfig(str(directory / TEACHER)))
    build_cache(teacher, ShardIndex.open(directory / "shards"), CacheConfig(dir=str(directory / "cache")))
    save_model(build_student(StudentConfig("efficientvit_sam_t", 64), teacher), directory / "start.safetensors")
    return directory


def overrides(place: Path, name: str) -> list[str]:
    """Fill a recipe's blanks with a tiny teacher, a tiny student, and few masks and rounds."""
    text = [
        "student.name=efficientvit_sam_t",
        "student.image_size=64",
        "student.init_from=null",
        f"run={place / 'run'}",
    ]
    text += [f"teacher.name={place / TEACHER}", f"data.images={place / 'shards'}", f"cache.dir={place / 'cache'}"]
    text += ["data.batch_size=1", "data.num_workers=0", "trainer.accelerator=cpu"]
    text += ["data.hflip=false", "cache.views=[identity]"]  # as the cache is
    if recipe_kind(name) == "mask":
        text += [f"student.init_from={place / 'start.safetensors'}", "data.max_instances=2", "prompts.refine_clicks=1"]
        text += ["loss.num_points=32", "prompts.mask_only_rounds=0"]
    return text


@pytest.mark.parametrize("name", TRAININGS)
def test_every_shipped_recipe_gets_through_a_step(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "STEPS", 2)
    monkeypatch.setitem(dry_run.FEW_STEPS, "max_steps", 2)
    recipe = load_recipe(name, overrides(place, name))
    assert isinstance(recipe, FeatureRecipe | MaskRecipe)
    found = dry_run.dry_run(recipe)
    loss = found["terms"]["loss"]
    assert loss["value"] > 0 and loss["gradient_norms"]["image_encoder"] > 0
    assert found["run"]["steps"] > 0 and found["run"]["hours"] > 0


@pytest.fixture
def recipe_file(place: Path, tmp_path: Path) -> str:
    """Write a mask stage of two steps an epoch with a frozen prompt encoder, as a file."""
    tree = {
        "kind": "mask",
        "run": str(tmp_path / "run"),
        "teacher": {"name": str(place / TEACHER)},
        "student": {"name": "efficientvit_sam_t", "init_from": str(place / "start.safetensors")},
        "data": {
            "images": str(place / "shards"),
            "val_images": str(place / "shards"),
            "batch_size": 1,
            "max_instances": 2,
        },
        "optim": {"lr": 1e-4, "prompt_encoder_lr_scale": 0, "mask_decoder_lr_scale": 0.1},
        "validation": {"every_n_steps": 3},
        "trainer": {"max_epochs": 5, "accelerator": "cpu"},
    }
    tree["data"]["num_workers"] = 0
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def test_the_report_says_what_is_so(recipe_file: str, place: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert isinstance(recipe, MaskRecipe)
    spec = load_teacher(TeacherConfig(str(place / TEACHER))).model.spec
    grid, low_res = [spec.embedding_size] * 2, [4 * spec.embedding_size] * 2
    found = dry_run.dry_run(recipe)
    assert found["shapes"]["pixels"] == [1, 3, 64, 64] and found["shapes"]["masks"] == [2, *low_res]
    assert found["shapes"]["embeddings"] == [1, spec.embedding_dim, *grid]
    parts = {row["part"]: row for row in found["parts"]}
    assert parts["prompt_encoder"]["trained"] == 0 < parts["prompt_encoder"]["frozen"]
    assert parts["image_encoder"]["frozen"] == 0 < parts["image_encoder"]["trained"]
    assert parts["image_encoder"]["lr"] == 1e-4 and parts["mask_decoder"]["lr"] == pytest.approx(1e-5)
    terms, loss = found["terms"], recipe.loss
    weighted = {"mask": loss.mask_weight, "dice": loss.dice_weight, "iou": loss.iou_weight}
    total = sum(weight * terms[name]["value"] for name, weight in weighted.items())
    assert terms["loss"]["value"] == pytest.approx(total, rel=1e-4)
    assert set(terms["loss"]["gradient_norms"]) == {"image_encoder", "mask_decoder"}
    whole = terms["loss"]["gradient_norms"]["mask_decoder"]  # at most the sum of its parts', by the triangle inequality
    assert 0 < whole <= sum(w * terms[name]["gradient_norms"]["mask_decoder"] for name, w in weighted.items()) * 1.001
    assert found["run"] | {"hours": 0} == {
        "devices": 1,
        "steps": 10,
        "epochs": 5.0,
        "photos": 10,
        "validations": 4,  # after steps 3, 6 and 9, and after the last one
        "hours": 0,
    }
    assert 0 <= found["step"]["data_wait_share"] < 1
    assert found["memory"]["peak_bytes"] >= found["memory"]["idle_bytes"] > 0


def test_an_epoch_may_be_one_batch(recipe_file: str) -> None:
    recipe = load_recipe(recipe_file, ["data.batch_size=8"])  # of two photos
    assert isinstance(recipe, MaskRecipe)
    assert dry_run.dry_run(recipe)["step"]["seconds"] > 0


def test_a_batch_far_larger_than_the_set_is_refused(recipe_file: str) -> None:
    recipe = load_recipe(recipe_file, ["data.batch_size=17"])
    assert isinstance(recipe, MaskRecipe)
    refusal = r"data\.batch_size=17: .* has 2 photos, .* all of them at once; give fewer photos a step, at most 16"
    for call in (dry_run.dry_run, train):
        with pytest.raises(DataError, match=refusal):
            call(recipe)
    assert not Path(recipe.run).exists()


def test_nothing_is_written(recipe_file: str, place: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    before = [sorted(folder.rglob("*")) for folder in (place, tmp_path)]
    assert cli.main(["train", recipe_file, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "image_encoder" in shown and "10 steps (5.00 epochs, 10 photos) on 1 device(s)" in shown
    assert [sorted(folder.rglob("*")) for folder in (place, tmp_path)] == before


def test_a_mistake_is_one_line(recipe_file: str, capsys) -> None:
    assert cli.main(["train", recipe_file, "--dry-run", "trainer.precision=9-bit"]) == 2
    error = capsys.readouterr().err
    assert "trainer.precision: expected one of 32-true" in error and "Traceback" not in error
