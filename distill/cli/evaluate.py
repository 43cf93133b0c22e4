"""`distill evaluate`: score a model, or a baseline, by a protocol."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import cast

from distill.cli.arguments import add_command
from distill.cli.runtime import add_runtime, execution_of
from distill.text import say

EPILOG = """\
examples:
  distill evaluate quickstart eval/coco_box data.images=val2017 data.annotations=instances_val2017.json run=runs/box
  distill evaluate runs/l0_mask eval/coco_point3 data.images=DIR data.annotations=FILE run=runs/l0_point3
  distill evaluate runs/l0_mask eval/coco_detections data.images=DIR data.annotations=FILE \\
      data.detections=vitdet.json run=runs/l0_ap
  distill evaluate runs/l0_mask eval/agreement data.images=photos teacher.name=quickstart run=runs/l0_agreement
  distill evaluate --name sam_vit_b sam_vit_b_01ec64.pth eval/coco_box data.images=DIR data.annotations=FILE run=OUT
  distill evaluate fill-box eval/coco_box data.images=DIR data.annotations=FILE run=OUT  # or: fill-ellipse, oracle
  distill evaluate runs/l0_mask eval/coco_box data.images=DIR data.annotations=FILE run=OUT \\
      --runtime openvino --precision bf16             # three times as fast on many CPUs
  torchrun --nproc-per-node 8 $(which distill) evaluate MODEL RECIPE ... run=OUT           # or: --devices 8

`distill recipes ls` lists the protocols. The run directory gets metrics.json (scores in 0..1 with bootstrap 95 %
intervals over photos; null where there is no such instance), instances.jsonl (one line per prompt), results.json (the
masks in COCO's results format), recipe.yaml, model.json and data.json. An evaluation that was stopped continues with
resume=true.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        subparsers,
        "evaluate",
        "score a model by a protocol: mask IoU, AP, average recall, agreement with its teacher",
        EPILOG,
        description="Score a model: masks from boxes, clicks or a detector's boxes, at each photo's own resolution.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a student.safetensors, a run directory, a .ckpt, a .pt/.pth, `quickstart`, a folder that "
        "`distill export` wrote; or a baseline: `fill-box`, "
        "`fill-ellipse` (for round objects), `oracle` (the truth)",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file or a packaged name, such as eval/coco_box")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="options that win over the recipe")
    parser.add_argument("--name", help="which published model a third-party .pt or .pth holds")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps ...; the default is a GPU if there is one")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="processes to start here, one per GPU")
    add_runtime(parser)
    parser.set_defaults(run=evaluate)


def evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate, and print the metrics."""
    from distill.config.loading import EvaluationRecipe, load_recipe
    from distill.config.schema import EVALUATIONS

    recipe = cast(EvaluationRecipe, load_recipe(arguments.recipe, arguments.overrides, kinds=EVALUATIONS))

    # Imported here, so that a mistake in the recipe is told before torch is imported.
    from distill.cards.writing import is_run
    from distill.evaluation.finished import metrics_lines
    from distill.evaluation.record import EVALUATION_METRICS_FILE
    from distill.evaluation.run import evaluate_recipe, start_ranks

    ranks, device = start_ranks(arguments.devices, arguments.device)
    execution = execution_of(arguments, arguments.model, name=arguments.name)
    metrics = evaluate_recipe(
        arguments.model, recipe, name=arguments.name, device=device, ranks=ranks, execution=execution
    )
    if ranks.global_rank == 0:
        run = Path(recipe.run)
        say("\n".join([*metrics_lines(metrics), f"written to {run / EVALUATION_METRICS_FILE}"]))
        if is_run(Path(arguments.model)):
            say(f"for the model's card: distill card {shlex.join([arguments.model, '--add', str(run)])}")
    return 0
