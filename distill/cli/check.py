"""`distill check`: everything that can be wrong with a recipe, at once, in under two seconds and without torch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from distill.cli.arguments import add_command
from distill.text import say

EPILOG = """\
examples:
  distill check my_recipe.yaml
  distill check efficientvit_sam/l0_feature data.images=/data/sa1b cache.dir=/data/embeddings run=runs/l0
  distill check my_recipe.yaml --resolved        # also print the whole recipe with every default

Exit code 0: the recipe can be run. Exit code 2: every mistake is listed with its mend.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        subparsers,
        "check",
        "list every mistake in a recipe",
        EPILOG,
        description="List every mistake in a recipe: keys, types, ranges, names, combinations, missing files.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file or a packaged name (`distill recipes ls`)")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="options that win over the recipe")
    parser.add_argument("--resolved", action="store_true", help="print the recipe with every default written out")
    parser.set_defaults(run=check)


def check(arguments: argparse.Namespace) -> int:
    """Load the recipe. RecipeError lists its mistakes; RunError says that its run directory is taken."""
    from distill.config.loading import load_recipe, resolved_yaml, stated_value
    from distill.config.machine import count_gpus
    from distill.config.outlook import cautions, foresee, num_devices
    from distill.config.run_directory import check_run_directory
    from distill.config.schema import CacheRecipe, FeatureRecipe, MaskRecipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if not isinstance(recipe, CacheRecipe):
        check_run_directory(Path(recipe.run), resume=recipe.resume)
    if isinstance(recipe, FeatureRecipe | MaskRecipe):
        from distill.data.shards.quick_count import count_photos

        devices = num_devices(recipe.trainer, count_gpus() or 0)
        found = foresee(recipe, devices=devices, num_photos=count_photos(recipe.data.images))
        for caution in cautions(recipe, found, meant_batch=stated_value(arguments.recipe, "optim.lr_for_batch")):
            say(f"warning: {caution}", file=sys.stderr)
    if arguments.resolved:
        say(resolved_yaml(recipe), end="")
    else:
        say(f"{arguments.recipe}: no mistakes found")
    return 0
