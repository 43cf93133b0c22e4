"""Recipes: YAML files with one parent, merged over typed defaults and checked completely. Imports no torch.

Merge order: dataclass defaults <- the file that `extends:` names <- the recipe <- key=value overrides.
"""

from __future__ import annotations

import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import distill.recipes
from distill.config.checks import path_findings, value_findings
from distill.config.named_data import parse_split_name
from distill.config.options import Option, options_of
from distill.config.references import keep_references
from distill.config.schema import (
    RECIPE_KINDS,
    WRITTEN_LAST,
    AgreementRecipe,
    CacheRecipe,
    EvaluateRecipe,
    EvaluateSetsRecipe,
    EverythingRecipe,
    FeatureRecipe,
    MaskRecipe,
)
from distill.config.settings import Problems, Setting, key_lines, read_file, read_overrides
from distill.errors import RecipeError, did_you_mean
from distill.secret import hide, recorded, refers_to_environment

EvaluationRecipe = Union[EvaluateRecipe, EvaluateSetsRecipe, EverythingRecipe, AgreementRecipe]
Recipe = Union[FeatureRecipe, MaskRecipe, CacheRecipe, EvaluationRecipe]

EXTENDS = "extends"
TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def load_recipe(
    source: str | Path,
    overrides: Sequence[str] = (),
    *,
    kinds: Collection[str] = tuple(RECIPE_KINDS),
    check_paths: bool = True,
) -> Recipe:
    """Load the typed recipe of a file or a packaged name, merged with its parents and the overrides.

    Args:
        source: path of a YAML file, or a packaged name such as `quickstart/feature`.
        overrides: `dotted.key=value`; values are YAML.
        kinds: the kinds of recipe that the caller can run.
        check_paths: also check that the files and directories it names exist.
    Raises:
        RecipeError: the recipe has mistakes; the error lists all of them, each with its origin and its mend.
    """
    problems = Problems()
    settings = [*_read_layers(find_recipe(source), problems), *read_overrides(overrides, problems)]
    recipe_class = _recipe_class(settings, kinds, problems)
    if recipe_class is None:
        raise RecipeError(str(source), problems.lines)
    options = options_of(recipe_class)
    settings += _named_annotations(settings, options)
    tree = _merge(recipe_class, options, settings, problems)
    values = _collect_values(tree, options, problems)
    origins = {setting.key: setting.origin for setting in settings}
    for setting in settings:
        if refers_to_environment(setting.value):
            hide("", setting.value)  # before any message is made
    findings = value_findings(values, options)
    if check_paths:
        findings += path_findings(values)
    for key, message in findings:
        problems.add(message, origin=origins.get(key, ""), key=key)
    if problems.lines:
        raise RecipeError(str(source), problems.lines)
    recipe: Recipe = OmegaConf.to_object(tree)  # type: ignore[assignment]
    return keep_references(recipe, tree)


def resolved_yaml(recipe: Recipe) -> str:
    """Return the complete recipe as YAML, every default written out. `load_recipe` reads it back to an equal recipe.

    What the recipe takes from the environment stands as it was written, as `${oc.env:NAME}`.
    """
    return _ordered_yaml(OmegaConf.structured(recorded(recipe)))


def _ordered_yaml(tree: DictConfig) -> str:
    """Return a recipe's tree as YAML, in the order in which recipes are written."""
    content = OmegaConf.to_container(tree, resolve=False)
    assert isinstance(content, dict)
    first = {name: value for name, value in content.items() if name not in WRITTEN_LAST}
    last = {name: content[name] for name in WRITTEN_LAST if name in content}
    return OmegaConf.to_yaml(OmegaConf.create(first | last))


def complete_yaml(source: str | Path) -> str:
    """Return a recipe without a parent as YAML: every option, with the comments beside the values that were set.

    What the reader has to give stays `???`.

    Raises:
        RecipeError: the recipe or one of its parents has keys or values that no recipe of its kind has.
    """
    problems = Problems()
    settings = _read_layers(find_recipe(source), problems)
    recipe_class = _recipe_class(settings, tuple(RECIPE_KINDS), problems)
    if recipe_class is None:
        raise RecipeError(str(source), problems.lines)
    tree = _merge(recipe_class, options_of(recipe_class), settings, problems)
    if problems.lines:
        raise RecipeError(str(source), problems.lines)
    text = _ordered_yaml(tree)
    comments = {setting.key: setting.comment for setting in settings}
    lines = text.splitlines()
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(node, yaml.MappingNode)
    for key, line in key_lines(node):
        if comments.get(key):
            lines[line - 1] += f"  # {comments[key]}"
    return "".join(f"{line}\n" for line in lines)


def packaged_recipes() -> dict[str, Path]:
    """Return the files of the packaged recipes, by name. Files that start with `_` are only parents and left out."""
    return {name: path for name, path in _packaged_files().items() if not path.name.startswith("_")}


def _packaged_files() -> dict[str, Path]:
    root = Path(distill.recipes.__path__[0])
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}


def find_recipe(source: str | Path) -> Path:
    """Return the file of a recipe: a path, a packaged name, or the end of one, such as `l0_feature`.

    If several packaged names end so, it is the one in the fewest folders: `coco_box` is `eval/coco_box`.

    Raises:
        RecipeError: neither exists, or several of these names are in equally few folders.
    """
    path = Path(source)
    if path.is_file():
        return path
    name, packaged = path.as_posix().removesuffix(".yaml"), _packaged_files()
    if name in packaged:
        return packaged[name]
    ending = [whole for whole in packaged_recipes() if whole.endswith(f"/{name}")]
    ending = [whole for whole in ending if whole.count("/") == min(other.count("/") for other in ending)]
    if len(ending) > 1:
        raise RecipeError(str(source), [f"no such file, and several packaged recipes; give one: {', '.join(ending)}"])
    if not ending:
        hint = did_you_mean(name, packaged_recipes())
        raise RecipeError(str(source), [f"no such file, and no packaged recipe '{name}'. {hint}"])
    return packaged[ending[0]]


def recipe_kind(source: str | Path) -> str:
    """Return the `kind` that a recipe file or one of its parents states, or an empty string."""
    return str(stated_value(source, "kind") or "")


def stated_value(source: str | Path, key: str) -> Any:
    """Return the value of a dotted key that a recipe file states, or else the nearest parent. Ignore null."""
    settings = _read_layers(find_recipe(source), Problems())
    return next((found.value for found in reversed(settings) if found.key == key and found.value is not None), None)


def _read_layers(path: Path, problems: Problems, children: tuple[Path, ...] = ()) -> list[Setting]:
    """Return the settings of a recipe file and its parents. The file's own come last, so that they win."""
    settings = read_file(path, problems)
    own = [setting for setting in settings if setting.key != EXTENDS]
    family = (*children, path.resolve())
    for setting in settings:
        if setting.key == EXTENDS:
            parent = _find_parent(path, setting, problems)
            if parent is not None and parent.resolve() in family:
                problems.add(f"a circle: '{setting.value}' descends from this file", origin=setting.origin, key=EXTENDS)
            elif parent is not None:
                return [*_read_layers(parent, problems, family), *own]
    return own


def _find_parent(path: Path, setting: Setting, problems: Problems) -> Path | None:
    """Return the file that `extends:` names: a path relative to the recipe, or a packaged recipe."""
    beside = path.parent / str(setting.value)
    if beside.is_file():
        return beside
    try:
        return find_recipe(str(setting.value))
    except RecipeError as error:
        message = error.problems[0].replace("no such file", f"no file {beside}")
        problems.add(message, origin=setting.origin, key=EXTENDS)
        return None


def _recipe_class(settings: list[Setting], kinds: Collection[str], problems: Problems) -> type[Recipe] | None:
    """Return the dataclass of the recipe's kind. Return None if the kind is missing, unknown or not one of `kinds`."""
    setting = next((setting for setting in reversed(settings) if setting.key == "kind"), None)
    if setting is None:
        problems.add(f"missing; say which: {', '.join(RECIPE_KINDS)}", key="kind")
        return None
    if not isinstance(setting.value, str) or setting.value not in RECIPE_KINDS:
        hint = did_you_mean(str(setting.value), RECIPE_KINDS)
        problems.add(f"unknown kind {setting.value!r}. {hint}", origin=setting.origin, key="kind")
        return None
    if setting.value not in kinds:
        wanted = " or ".join(f"'{kind}'" for kind in kinds)
        message = f"this is a recipe of kind '{setting.value}'; the command needs one of kind {wanted}"
        problems.add(message, origin=setting.origin, key="kind")
        return None
    return RECIPE_KINDS[setting.value]


def _merge(
    recipe_class: type[Recipe], options: Mapping[str, Option], settings: list[Setting], problems: Problems
) -> DictConfig:
    """Return the defaults with every legal setting applied in order. The illegal settings become problems."""
    tree: DictConfig = OmegaConf.structured(recipe_class)
    leaves = {key: option.annotation for key, option in options.items()}
    for setting in settings:
        leaf = next((key for key in leaves if f"{setting.key}.".startswith(f"{key}.")), None)
        is_section = any(key.startswith(f"{setting.key}.") for key in leaves)
        if (is_section or typing.get_origin(leaves.get(setting.key)) is dict) and setting.value in (None, {}):
            continue  # a section whose lines are all commented out
        if leaf is None and is_section:
            problems.add(
                f"expected a section of options, got {setting.value!r}", origin=setting.origin, key=setting.key
            )
        elif leaf is None:
            problems.add(_unknown_key(setting.key, leaves), origin=setting.origin, key=setting.key)
        elif leaf != setting.key and typing.get_origin(leaves[leaf]) is not dict:
            problems.add(f"expected {_describe(leaves[leaf])}, got a section", origin=setting.origin, key=leaf)
        else:
            try:
                OmegaConf.update(tree, setting.key, setting.value)
            except (OmegaConfBaseException, AttributeError, TypeError, ValueError, AssertionError, RecursionError):
                message = f"expected {_describe(leaves[leaf])}, got {setting.value!r}"
                problems.add(
                    message + _choice_hint(leaves[leaf], setting.value), origin=setting.origin, key=setting.key
                )
    return tree


def _named_annotations(settings: list[Setting], leaves: Collection[str]) -> list[Setting]:
    """Return a setting for annotations that are left out while the images name a public set: that set's own."""
    last = {setting.key: setting for setting in settings}
    added = []
    for key, images in last.items():
        section, _, name = key.rpartition(".")
        annotations = f"{section}.annotations"
        is_given = annotations in last and last[annotations].value not in (None, MISSING)
        takes_annotations = annotations in leaves or key.startswith("sets.")
        if name == "images" and takes_annotations and not is_given and parse_split_name(str(images.value)) is not None:
            added.append(Setting(annotations, images.value, images.origin))
    return added


def _unknown_key(key: str, leaves: Collection[str]) -> str:
    """Return the message for an unknown option: similar options of its section, or another section that has it."""
    parent = ""
    while any(leaf.startswith(f"{parent}{key[len(parent) :].split('.')[0]}.") for leaf in leaves):
        parent += key[len(parent) :].split(".")[0] + "."
    name = key[len(parent) :].split(".")[0]
    elsewhere = [leaf for leaf in leaves if leaf.split(".")[-1] == key.split(".")[-1]]
    siblings = {leaf[len(parent) :].split(".")[0] for leaf in leaves if leaf.startswith(parent)}
    hint = did_you_mean(name, siblings)
    if hint.startswith("Known") and elsewhere:
        hint = "Did you mean " + " or ".join(f"'{leaf}'" for leaf in elsewhere) + "?"
    elif hint.startswith("Did you mean"):
        hint = hint.replace("'", "'" + parent, 1).replace(" or '", f" or '{parent}")
    return f"unknown key. {hint}"


def _describe(annotation: Any) -> str:
    """Return in words what a value of this type is."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal:
        return "one of " + ", ".join(str(choice) for choice in arguments)
    if typing.get_origin(annotation) is Union:
        return " or ".join("null" if inner is type(None) else _describe(inner) for inner in arguments)
    if typing.get_origin(annotation) is tuple:
        return f"a list of {len(arguments)} values, each {_describe(arguments[0])}"
    if typing.get_origin(annotation) is list:
        return f"a list, as [{_describe(arguments[0])}, ...]"
    if typing.get_origin(annotation) is dict:
        return "a section of options"
    return TYPE_NAMES.get(annotation, str(annotation))


def _choice_hint(annotation: Any, value: Any) -> str:
    if typing.get_origin(annotation) is not Literal:
        return ""
    hint = did_you_mean(str(value), [str(choice) for choice in typing.get_args(annotation)])
    return f". {hint}" if hint.startswith("Did you mean") else ""


def _collect_values(tree: DictConfig, options: Mapping[str, Option], problems: Problems) -> dict[str, Any]:
    """Return the sound values that are set, by dotted key. Missing ones and broken interpolations become problems."""
    values: dict[str, Any] = {}
    for key, option in options.items():
        section, _, name = key.rpartition(".")
        node = OmegaConf.select(tree, section) if section else tree
        if OmegaConf.is_missing(node, name):
            if key not in problems.keys:
                problems.add(f"missing; give {option.rule.give or f'{key}=VALUE'}", key=key)
            continue
        try:
            value = node[name]
            values[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException as error:
            problems.add((str(error).splitlines() or ["it cannot be resolved"])[0], key=key)
        except (RecursionError, ValueError) as error:
            problems.add(f"it refers to itself, or cannot be resolved ({type(error).__name__})", key=key)
    return {key: value for key, value in values.items() if key not in problems.keys}
