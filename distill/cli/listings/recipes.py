"""`distill recipes`: list, read and copy the recipes that ship with the package."""

from __future__ import annotations

import argparse
import itertools
import shlex
from pathlib import Path

from distill.cli.arguments import add_command
from distill.errors import RunError
from distill.text import print_tables, say

EPILOG = """\
examples:
  distill recipes ls
  distill recipes show efficientvit_sam/l0_feature
  distill recipes show l0_feature                                   # the end of a name that no other recipe has
  distill recipes copy efficientvit_sam/l0_feature my_recipe.yaml
  distill recipes copy efficientvit_sam/l0_feature my_recipe.yaml --resolved    # every option, and no parent
"""
# What a recipe of a kind is for; of other kinds: an evaluation.
COMMANDS = {"feature": "train", "mask": "train", "cache": "cache build"}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        subparsers,
        "recipes",
        "list, show or copy the packaged recipes",
        EPILOG,
        description="List, show or copy the recipes that ship with the package.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    actions.add_parser("ls", help="a table of all recipes").set_defaults(run=list_recipes)
    show = actions.add_parser("show", help="print a recipe with its comments")
    show.add_argument("name", help="a packaged name or the end of one, or a file")
    show.set_defaults(run=show_recipe)
    copy = actions.add_parser("copy", help="write a recipe to a file of your own")
    copy.add_argument("name", help="a packaged name or the end of one")
    copy.add_argument("path", type=Path, help="the file to write; an existing one is never overwritten")
    copy.add_argument("--resolved", action="store_true", help="write out every option, and leave no parent")
    copy.set_defaults(run=copy_recipe)


def list_recipes(arguments: argparse.Namespace) -> int:
    """Print name, kind and summary of every packaged recipe."""
    from rich.table import Table

    from distill.config.loading import packaged_recipes, recipe_kind

    table = Table("recipe", "kind", "what it is", box=None, pad_edge=False)
    for name, path in packaged_recipes().items():
        table.add_row(name, recipe_kind(path), _summary(path))
    print_tables(table)
    return 0


def show_recipe(arguments: argparse.Namespace) -> int:
    """Print a recipe file as it is."""
    from distill.config.loading import find_recipe

    say(find_recipe(arguments.name).read_text(encoding="utf-8"), end="")
    return 0


def copy_recipe(arguments: argparse.Namespace) -> int:
    """Copy a recipe file, and print the command that runs it. Raises RunError if the target exists."""
    from distill.config.loading import complete_yaml, find_recipe, packaged_recipes, recipe_kind

    source = find_recipe(arguments.name)
    path: Path = arguments.path
    if path.is_dir():
        path = path / source.name
    text = source.read_text(encoding="utf-8")
    if arguments.resolved:
        name = next((name for name, file in packaged_recipes().items() if file == source), str(source))
        text = f"{_head(text).replace(f' {name} ', f' {path} ')}\n{complete_yaml(source)}"
    if not path.parent.is_dir():
        raise RunError(f"no such directory: '{path.parent}'; make it, or give another path")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise RunError(f"'{path}' exists and is not overwritten; remove it, or give another path") from error
    command = COMMANDS.get(recipe_kind(path), "evaluate MODEL")
    say(f"wrote {path}; run it with: distill {command} {shlex.quote(str(path))}")
    return 0


def _head(text: str) -> str:
    """Return the comment at the head of a recipe."""
    return "".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))


def _summary(path: Path) -> str:
    """Return the first comment line of a recipe."""
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
