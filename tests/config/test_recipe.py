"""Recipes: merge order, every mistake at once with its origin, and packaged recipes that parse."""

from __future__ import annotations

import inspect
import os
import re
import typing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.config.loading import (
    complete_yaml,
    find_recipe,
    load_recipe,
    packaged_recipes,
    recipe_kind,
    resolved_yaml,
    stated_value,
)
from distill.config.schema import EVALUATIONS, FeatureRecipe, MaskRecipe
from distill.config.trainer import PRECISIONS, SHORT_PRECISIONS, STRATEGIES, TRAINER, TRAINER_TAKEN
from distill.errors import RecipeError

FEATURE = """\
kind: feature
run: out
student: {name: efficientvit_sam_t}
data: {images: shards}
teacher: {source: online}
trainer: {max_steps: 5}
"""


# recipe.yaml of run directories that were written before recipes had a common base, by kind
BEFORE = Path(__file__).with_name("written_before")


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a recipe file into an empty working directory that has one image shard."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "sa_000000.tar").touch()

    def write_file(text: str, name: str = "recipe.yaml") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return name

    return write_file


def problems(source: str, *overrides: str, **options) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(source, list(overrides), **options)
    assert str(caught.value).startswith(source)
    return caught.value.problems


def test_a_sound_recipe_gives_typed_values(write):
    recipe = load_recipe(write(FEATURE))
    assert isinstance(recipe, FeatureRecipe)
    assert recipe.data.images == "shards"
    assert recipe.optim.lr == 1e-3
    assert recipe.optim.betas == (0.9, 0.999)
    assert recipe.trainer == {"max_steps": 5}


def test_merge_order(write):
    write(FEATURE + "optim: {lr: 1, weight_decay: 1, warmup_steps: 1}\n", "parents/base.yaml")
    child = write("extends: parents/base.yaml\noptim: {weight_decay: 2, warmup_steps: 2}\n")
    recipe = load_recipe(child, ["optim.warmup_steps=3"])
    assert isinstance(recipe, FeatureRecipe)
    assert recipe.optim.final_lr_share == 0.0  # default
    assert (recipe.optim.lr, recipe.optim.weight_decay, recipe.optim.warmup_steps) == (1.0, 2.0, 3)


def test_free_sections_merge_key_by_key(write):
    write(FEATURE, "base.yaml")
    child = write("extends: base.yaml\ntrainer: {precision: bf16-mixed}\n")
    recipe = load_recipe(child, ["trainer.devices=2", "trainer.gradient_clip_val=0.5"])
    assert recipe.trainer == {  # type: ignore[union-attr]
        "max_steps": 5,
        "precision": "bf16-mixed",
        "devices": 2,
        "gradient_clip_val": 0.5,
    }


def test_a_packaged_recipe_can_be_a_parent(write):
    recipe = load_recipe(
        write("extends: quickstart/feature\nrun: out\ndata: {images: shards}\n"), ["teacher.source=online"]
    )
    assert recipe.student.name == "timm/tf_efficientnet_lite2@16+slim"  # type: ignore[union-attr]


def test_all_mistakes_at_once_with_origin_and_hint(write):
    source = write(FEATURE + "optim:\n  lrr: 1\n  lr: fast\nloss: {mse: 0}\nstudnet: {name: x}\nlr: 4\nseed: -1\n")
    found = problems(
        source,
        "student.name=efficientvit_sam_l9",
        "teacher.source=onlin",
        "optim.betas=[0.9]",
        "data.images=nowhere",
        "data.batch_size=0",
        "oops",
        "run.x=1",
        "trainer.max_stepz=4",
    )
    expected = [
        "recipe.yaml:8: optim.lrr: unknown key. Did you mean 'optim.lr' or 'optim.lr_rule'?",
        "recipe.yaml:9: optim.lr: expected a number, got 'fast'",
        "recipe.yaml:11: studnet.name: unknown key. Did you mean 'student'?",
        "recipe.yaml:12: lr: unknown key. Did you mean 'optim.lr'?",
        "recipe.yaml:13: seed: must be between 0 and 4294967295, got -1",
        "loss: every weight is 0, so nothing is learned; set one of mse, cosine, huber, relation",
        "override 'oops': an override is written dotted.key=value",
        "override 'teacher.source=onlin': teacher.source: expected one of cache, online, got 'onlin'. "
        "Did you mean 'online'?",
        "override 'optim.betas=[0.9]': optim.betas: expected a list of 2 values, each a number, got [0.9]",
        "override 'data.images=nowhere': data.images: no such directory: 'nowhere'",
        "override 'data.batch_size=0': data.batch_size: must be at least 1, got 0",
        "override 'run.x=1': run: expected text, got a section",
    ]
    assert set(expected) <= set(found)
    assert any("student.name: unknown student 'efficientvit_sam_l9'. Did you mean" in line for line in found)
    assert any("trainer.max_stepz" in line and "'max_steps'" in line for line in found)
    assert len(found) == len(expected) + 2


def test_missing_values_name_the_mend(write):
    found = problems(write("kind: mask\n"))
    assert "run: missing; give the directory to write: run=DIR" in found
    assert "student.name: missing; give the encoder to train: student.name=NAME" in found
    assert any(line.startswith("data.images: missing") for line in found)
    assert any(line.startswith("trainer: says no length") for line in found)


@pytest.mark.parametrize("missing", ["???", "null", ""])
def test_a_required_value_cannot_be_taken_away(write, missing):
    assert any("run" in line for line in problems(write(FEATURE), f"run={missing}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "kind: missing"),
        ("kind: featur\n", "Did you mean 'feature'?"),
        ("a: [1\n", "not YAML"),
        ("- 1\n", "a recipe is a mapping"),
        ("just text\n", "a recipe is a mapping"),
        ("run: a\nrun: b\n", "duplicate key"),
        ("extends: nowhere/base\n", "extends: no file nowhere/base"),
        ("extends: recipe.yaml\n", "extends: a circle"),
    ],
)
def test_files_that_are_no_recipe(write, text, message):
    assert any(message in line for line in problems(write(text)))


def test_unknown_source_lists_the_near_ones():
    assert "Did you mean 'quickstart/feature'" in problems("quickstart/featur")[0]


def test_a_command_refuses_other_kinds(write):
    assert "the command needs one of kind 'evaluate'" in problems(write(FEATURE), kinds=("evaluate",))[0]


def test_a_section_without_lines_is_empty(write):
    assert load_recipe(write(FEATURE + "loss:\ncache:\n"))
    assert load_recipe(write(FEATURE + "loss: {}\n"))


def test_an_empty_section_is_no_value(write):
    found = problems(write(FEATURE + "loss: {mse: {}}\nlosses: {}\n"), "data.batch_size={}", "optim.betas={}")
    assert [line.partition(": ")[2].partition(".  ")[0] for line in found] == [
        "loss.mse: expected a number, got {}",
        "losses: unknown key. Did you mean 'loss'?",
        "data.batch_size: expected a whole number, got {}",
        "optim.betas: expected a list of 2 values, each a number, got {}",
    ]
    many = "kind: evaluate_sets\nrun: out\nmodel: sam_vit_b\nsets: {a: {}}\n"
    assert any("sets.a.images" in line for line in problems(write(many)))


def test_interpolation(write):
    recipe = load_recipe(write(FEATURE.replace("run: out", "run: runs/${student.name}")))
    assert recipe.run == "runs/efficientvit_sam_t"  # type: ignore[union-attr]
    assert any("nothing" in line for line in problems(write(FEATURE.replace("run: out", "run: ${nothing}"))))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=0", "optim.lr: must be above 0"),
        ("optim.lr=-1e-3", "optim.lr: must be above 0"),
        ("optim.lr=.nan", "optim.lr: must be above 0"),
        ("loss.cosine=-1", "loss.cosine: must be at least 0"),
        ("data.max_bad_share=1.5", "data.max_bad_share: must be between 0 and 1"),
        ("optim.ema_decay=1", "optim.ema_decay: must be at least 0 and below 1"),
        ("optim.betas=[0.9, 1.0]", "optim.betas[1]"),
        ("optim.encoder_lr_scale=0", "every part is frozen"),
        ("data.batch_size=1.5", "expected a whole number"),
        ("resume=maybe", "expected true or false"),
        ("student.image_size=big", "expected a whole number or null"),
        ("student=efficientvit_sam_t", "expected a section of options"),
        ("trainer=5", "expected a section of options"),
        ("trainer.logger=wandb", "trainer.logger: is set by distill"),
        ("trainer.val_check_interval=5", "use validation.every_n_steps"),
        ("teacher.source=cache", "teacher.source=online"),
        ("teacher.name=sam_vit_x", "Did you mean 'sam_vit_l'"),
        ("teacher.name=sam_vit_h", "sam_vit_h_4b8939.pth (sha256 a7bf3b02"),
        ("teacher.name=runs/none", "no such file or run directory: 'runs/none'"),
        ("teacher.checkpoint=none.pth", "no such file: 'none.pth'"),
        ("student.init_from=none", "no such file or run directory"),
        ("student.pretrained=timm", "student.pretrained: is for students named timm/NAME"),
        ("data.val_images=none", "data.val_images: no such directory"),
        ("data.images=.", "no .tar in '.'"),
    ],
)
def test_values_and_combinations(write, override, message):
    found = problems(write(FEATURE), override)
    assert len(found) == 1 and message in found[0], found


def test_weights_that_are_divided_among_devices_have_no_average(write):
    given = ["trainer.strategy=fsdp", "trainer.accelerator=gpu", "optim.ema_decay=0.9"]
    found = problems(write(FEATURE), *given, check_paths=False)
    assert len(found) == 1 and "optim.ema_decay: lightning cannot average weights that 'fsdp' divides" in found[0]


def test_remote_shards_are_looked_for_when_they_are_opened(write):
    recipe = load_recipe(write(FEATURE), ["data.images=s3://bucket/sa1b"])
    assert recipe.data.images == "s3://bucket/sa1b"  # type: ignore[union-attr]


def test_the_cache_must_be_there(write):
    found = problems(write(FEATURE), "teacher.source=cache", "cache.dir=none")
    assert len(found) == 1 and "`distill cache build` makes it" in found[0]


@pytest.mark.parametrize(
    "asking",
    ["loss.feature_weight=1", "loss.logit_weight=1", "loss.teacher_iou_weight=1", "targets.teacher_weight=1"],
)
def test_a_mask_stage_that_asks_the_teacher_needs_its_embeddings(write, asking):
    source = write(FEATURE.replace("kind: feature", "kind: mask"))
    assert isinstance(load_recipe(source, [asking]), MaskRecipe)  # the teacher is online
    found = problems(source, asking, "teacher.source=cache")
    assert len(found) == 1 and found[0].startswith(f"cache.dir: missing; {asking.split('=')[0]} needs")
    assert "`distill cache build` makes it" in problems(source, asking, "teacher.source=cache", "cache.dir=none")[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prompts.min_points=4"], "prompts.min_points: must be at most prompts.max_points=3, got 4"),
        (["prompts.min_error_cells=0"], "prompts.min_error_cells: must be at least 1"),
        (["prompts.box_points_share=2"], "prompts.box_points_share: must be between 0 and 1"),
        (["prompts.click=center"], "prompts.click: expected one of uniform, centre, got 'center'"),
        (["data.instance_draw=all"], "data.instance_draw: expected one of distinct, repeat, replacement"),
        (["targets.truth_weight=0"], "targets: both weights are 0"),
        (["prompts.teacher_instances=8"], "prompts.teacher_instances: the instances are the teacher's"),
        (["loss.mask_weight=0", "loss.dice_weight=0", "loss.iou_weight=0"], "loss: every weight is 0"),
        (["optim.batch_norm=eval"], "optim.batch_norm: expected one of train, frozen"),
    ],
)
def test_mistakes_of_the_mask_stage(write, overrides, message):
    found = problems(write(FEATURE.replace("kind: feature", "kind: mask")), *overrides)
    assert len(found) == 1 and message in found[0], found


def test_resolved_yaml_reads_back(write, tmp_path):
    recipe = load_recipe(write(FEATURE), ["optim.betas=[0.8, 0.9]", "trainer.precision=16-mixed"])
    again = load_recipe(write(resolved_yaml(recipe), "resolved.yaml"))
    assert asdict(again) == asdict(recipe)


BLANKS = {
    "feature": ["run=r", "data.images=i", "cache.dir=c"],
    "mask": ["run=r", "data.images=i", "student.init_from=f", "cache.dir=c"],
    "cache": ["data.images=i", "cache.dir=c"],
    "evaluate": ["run=r", "data.images=i", "data.annotations=a"],
    "evaluate_sets": ["run=r", "sets={one: {images: i, annotations: a, detections: d}}"],
    "everything": ["run=r", "data.images=i", "data.annotations=a"],
    "agreement": ["run=r", "data.images=i"],
}
LAUNCH = {"feature": "train", "mask": "train", "cache": "cache build", **dict.fromkeys(EVALUATIONS, "evaluate MODEL")}

LISTED = {"eval/in_the_wild": "my_sets.yaml"}  # a copy that lists sets is what is launched


def test_the_published_recipes_are_there():
    sizes = ("l0", "l1", "l2", "xl0", "xl1")
    published = {f"efficientvit_sam/{size}_{stage}" for size in sizes for stage in ("feature", "mask")}
    published |= {f"efficient_sam/{size}_{stage}" for size in ("vitt", "vits") for stage in ("feature", "mask")}
    published |= {f"{name}/feature" for name in ("mobile_sam", "edge_sam", "repvit_sam", "nano_sam", "distill")}
    published |= {"edge_sam/prompt_loop", "distill/prompt_loop", "distill/mask"}
    ours = {"quickstart/cache", "quickstart/feature", "quickstart/mask", "eval/coco_box", "eval/coco_point"}
    presets = {f"{name}_10k" for name in published}
    assert published | presets | ours <= set(packaged_recipes())


@pytest.mark.parametrize("name", packaged_recipes())
def test_a_packaged_recipe_is_sound_once_its_blanks_are_filled(name):
    kind = recipe_kind(name)
    blanks = [*BLANKS[kind], *(["data.detections=d"] if stated_value(name, "prompt.kind") == "detection" else [])]
    recipe = load_recipe(name, blanks, check_paths=False)
    assert recipe.kind == kind
    text = find_recipe(name).read_text()
    assert text.startswith("# "), "opens with a summary"
    assert f"distill {LAUNCH[kind]} {LISTED.get(name, name)}" in text, "gives its launch command"


def test_trainer_arguments_are_those_of_lightning():
    import lightning
    from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT_STR, _PRECISION_INPUT_STR_ALIAS
    from lightning.pytorch.strategies import StrategyRegistry

    arguments = set(inspect.signature(lightning.Trainer.__init__).parameters) - {"self"}
    assert set(TRAINER) | set(TRAINER_TAKEN) == arguments and not set(TRAINER) & set(TRAINER_TAKEN)
    assert set(STRATEGIES) - {"auto"} <= set(StrategyRegistry.available_strategies())
    assert set(PRECISIONS) <= set(typing.get_args(_PRECISION_INPUT_STR))
    assert set(SHORT_PRECISIONS) == set(typing.get_args(_PRECISION_INPUT_STR_ALIAS))


@pytest.mark.parametrize("path", sorted(BEFORE.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_of_old_run_directories_load_and_are_written_as_before(path):
    """Options that are new since then are written with their defaults, and change nothing."""
    recipe = load_recipe(path, check_paths=False)
    assert recipe.kind == path.stem
    old, written = yaml.safe_load(path.read_text()), yaml.safe_load(resolved_yaml(recipe))
    assert yaml.safe_dump(_only_keys_of(old, written), sort_keys=False) == yaml.safe_dump(old, sort_keys=False)


def _only_keys_of(old: Any, written: Any) -> Any:
    """Return a tree without the options that an older one does not have, in the order of the tree."""
    if not isinstance(old, dict):
        return written
    return {name: _only_keys_of(old[name], value) for name, value in written.items() if name in old}


def test_what_a_recipe_states_is_found_behind_an_override_and_null(write):
    write("optim: {lr_for_batch: 64}\n", "base.yaml")
    child = write("extends: base.yaml\noptim: {lr_for_batch: null, lr: 1}\n", "child.yaml")
    assert stated_value(child, "optim.lr_for_batch") == 64
    assert stated_value(child, "optim.lr") == 1 and stated_value(child, "optim.betas") is None


@pytest.mark.parametrize("name", packaged_recipes())
def test_a_published_recipe_says_for_which_batch_its_rate_is(name):
    if recipe_kind(name) in ("feature", "mask") and not name.startswith(("quickstart/", "adapt/")):
        assert stated_value(name, "optim.lr_for_batch") >= 1
        if name.endswith("_10k"):  # made for one device
            assert stated_value(name, "optim.lr_for_batch") == stated_value(name, "data.batch_size")


@pytest.mark.parametrize("name", packaged_recipes())
def test_a_complete_recipe_says_what_its_family_says(write, name):
    blanks = [
        *BLANKS[recipe_kind(name)],
        *(["data.detections=d"] if stated_value(name, "prompt.kind") == "detection" else []),
    ]
    copy = write(complete_yaml(name), "complete.yaml")
    assert "extends" not in Path(copy).read_text()
    assert load_recipe(copy, blanks, check_paths=False) == load_recipe(name, blanks, check_paths=False)


def bomb() -> str:
    """Return ten lines of YAML whose aliases write out to a billion values."""
    names = "abcdefghij"
    lines = [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip(names, names[1:], strict=False)]
    return "\n".join(["a: &a [1]", *lines, "kind: feature"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: [a]", "unknown kind .'a'"),
        ("kind: {a: 1}", "kind: missing"),
        ("kind: feature\na: " + "[" * 500, "nested too deeply"),
        ("kind: feature\na: " + "{b: " * 500, "nested too deeply"),
        ("kind: feature\na: &a [*a]", "nested too deeply"),
        (bomb(), "aliases written out"),
        ("kind: feature\nrun: ${run}", "Recursive interpolation"),
        ("kind: feature\nrun: ${cache.dir}\ncache: {dir: '${run}'}", "refers to itself|Recursive interpolation"),
        ("? [a, b]\n: c", "not YAML"),
        ("kind: 0001-00-00", "not YAML"),
        ("kind: !!python/object/apply:os.system [ls]", "not YAML"),
        ("kind: \x00", "not YAML"),
        ('kind: feature\nrun: "\\ud800"', "halves of characters"),
        ('kind: feature\n"\\udfff": 1', "halves of characters"),
        ("kind: feature\nextends: [x]", "no file"),
        ("#" * 200_000, "too many|too large|are too many"),
        ("kind: feature\nteacher: [1]", "expected a section of options"),
        ("kind: feature\nseed: 9" + "9" * 5000, "not YAML"),
        ("kind: feature\noptim: {betas: [.inf, a]}", "betas"),
    ],
)
def test_hostile_yaml_is_one_clear_error(write, text, message):
    assert re.search(
        message.replace("[", r"\[") if message.startswith("unknown") else message, "; ".join(problems(write(text)))
    )


@pytest.mark.parametrize("value", ["[" * 500, "&a [*a]", "\x1b", "{a: [", "*b"])
def test_hostile_overrides_are_one_clear_error(write, value):
    assert any("override 'run=" in line for line in problems(write(FEATURE), f"run={value}"))


def test_a_pipe_is_no_recipe(tmp_path):
    os.mkfifo(tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match="no such file"):
        load_recipe(tmp_path / "recipe.yaml")
