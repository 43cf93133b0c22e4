"""`distill evaluate`: judge a model, or a baseline, by a protocol."""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.cli.arguments import add_command
from distill.config.schema import (
    EVALUATIONS,
    AgreementRecipe,
    EvaluateDataConfig,
    EvaluatePromptConfig,
    EvaluateRecipe,
    EvaluateSetsRecipe,
    EverythingRecipe,
)
from distill.evaluation.record import EVALUATION_METRICS_FILE, RESULTS_FILE, Alone, Ranks, Record, write_metrics
from distill.models.devices import usable_device

if TYPE_CHECKING:
    import torch

    from distill.config.loading import EvaluationRecipe
    from distill.evaluation.evaluator import Evaluation, Summary
    from distill.evaluation.predictors import Subject
    from distill.models.sam import PromptableModel

PHOTOS_WORTH_WORKERS = 200  # worker processes take seconds to start
MAX_WORKERS = 8

EPILOG = """\
examples:
  distill evaluate quickstart eval/coco_box data.images=val2017 data.annotations=instances_val2017.json run=runs/box
  distill evaluate runs/l0_mask eval/coco_point3 data.images=DIR data.annotations=FILE run=runs/l0_point3
  distill evaluate runs/l0_mask eval/coco_detections data.images=DIR data.annotations=FILE \\
      data.detections=vitdet.json run=runs/l0_ap
  distill evaluate runs/l0_mask eval/agreement data.images=photos teacher.name=quickstart run=runs/l0_agreement
  distill evaluate --name sam_vit_b sam_vit_b_01ec64.pth eval/coco_box data.images=DIR data.annotations=FILE run=OUT
  distill evaluate fill-box eval/coco_box data.images=DIR data.annotations=FILE run=OUT    # a baseline; or: oracle
  torchrun --nproc-per-node 8 $(which distill) evaluate MODEL RECIPE ... run=OUT           # or: --devices 8

`distill recipes ls` lists the protocols. Writes to the run directory: metrics.json (scores in 0..1 with bootstrap 95 %
intervals over photos; null: no such instance), instances.jsonl (one line per prompt), results.json (the masks in COCO's
results format), recipe.yaml, model.json and data.json. An evaluation that was stopped goes on with resume=true.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        subparsers,
        "evaluate",
        "judge a model by a protocol: mask IoU, AP, average recall, agreement with its teacher",
        EPILOG,
        description="Judge a model: masks from boxes, clicks or a detector's boxes, at each photo's own resolution.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a student.safetensors, a run directory, a .pt/.pth, `quickstart`; or a baseline: `oracle`, `fill-box`",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file or a packaged name, such as eval/coco_box")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="options that win over the recipe")
    parser.add_argument("--name", help="which published model a third-party .pt or .pth holds")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps ...; the default is a GPU if there is one")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="processes to start here, one per GPU")
    parser.set_defaults(run=evaluate)


def evaluate(arguments: argparse.Namespace) -> int:
    """Check everything, then ask, then write the metrics."""
    from distill.cards.writing import refresh_card
    from distill.config.loading import load_recipe
    from distill.evaluation.finished import read_evaluation

    recipe = load_recipe(arguments.recipe, arguments.overrides, kinds=EVALUATIONS)
    ranks, device = start_ranks(arguments.devices, arguments.device)
    job = Job(arguments.model, arguments.name, device, ranks)
    metrics = job.run_sets(recipe) if isinstance(recipe, EvaluateSetsRecipe) else job.run(recipe)  # type: ignore[arg-type]
    if ranks.global_rank == 0:
        run = Path(recipe.run)  # type: ignore[union-attr]
        _report(metrics, run / EVALUATION_METRICS_FILE)
        refresh_card(arguments.model, [read_evaluation(run)])
    return 0


@dataclass
class Job:
    """One model that is judged, in one or more processes.

    source, name: as `load_model` takes them, or a baseline's name. device: None for the default.
    """

    source: str
    name: str | None
    device: str | torch.device | None
    ranks: Ranks
    subject: Subject | None = None

    def run(self, recipe: EvaluationRecipe) -> dict[str, Any]:
        """Ask about the photos that are left to this process; returns the metrics in the first process."""
        from distill.evaluation.evaluator import ask_all
        from distill.evaluation.worker_pool import Workers
        from distill.text import progress_bar

        evaluation, data = self._evaluation(recipe)
        self.subject = self.subject or self._load(recipe.fuse)
        record = Record(Path(recipe.run), recipe, describe_model(self.source), data, self.ranks)
        if record.is_finished:
            return json.loads((record.run / EVALUATION_METRICS_FILE).read_text(encoding="utf-8"))
        photos = record.begin(evaluation)
        started = time.monotonic()
        num_workers = choose_num_workers(recipe.num_workers, len(photos))
        is_first = self.ranks.global_rank == 0
        with Workers(num_workers) as workers, progress_bar("photos", len(photos), shown=is_first) as advance:
            for found in ask_all(evaluation, self.subject, photos, workers):
                record.add(found)
                advance(1)
        self.ranks.barrier()
        seconds = time.monotonic() - started
        return record.close(evaluation, seconds, len(photos) * self.ranks.world_size) if is_first else {}

    def run_sets(self, recipe: EvaluateSetsRecipe) -> dict[str, Any]:
        """One evaluation for each set, in its own directory, and the mean of their APs."""
        run = Path(recipe.run)
        recipes = {name: set_recipe(recipe, name, options) for name, options in recipe.sets.items()}
        for one in recipes.values():
            self._evaluation(one)  # a set that cannot be read ends the run before it costs anything
        record = Record(run, recipe, describe_model(self.source), {}, self.ranks)
        found = {}
        started = time.monotonic()
        for name, one in recipes.items():
            one.resume = (run / name).exists()
            found[name] = (one, self.run(one))
        if self.ranks.global_rank:
            return {}
        sets = {name: metrics["ap"] for name, (_, metrics) in found.items()}
        return write_metrics(record, mean_of_sets(found), sets=sets, seconds=round(time.monotonic() - started, 1))

    def _evaluation(self, recipe: EvaluationRecipe) -> tuple[Evaluation, dict[str, Any]]:
        """The protocol over its photos, and what tells its data from others."""
        from distill.models.checkpoint import sha256_file

        if isinstance(recipe, AgreementRecipe):
            return self._agreement(recipe)
        assert isinstance(recipe, (EvaluateRecipe, EverythingRecipe))
        evaluation = build_evaluation(recipe)
        data = {"annotations_sha256": sha256_file(recipe.data.annotations)}
        if recipe.data.detections is not None:
            data["detections_sha256"] = sha256_file(recipe.data.detections)
        return evaluation, data

    def _agreement(self, recipe: AgreementRecipe) -> tuple[Evaluation, dict[str, Any]]:
        from distill.evaluation.predictors import ModelSubject
        from distill.evaluation.teacher_agreement import AgreementEvaluation
        from distill.models.teacher import load_teacher

        teacher = load_teacher(recipe.teacher)
        evaluation = AgreementEvaluation(
            recipe.data.images,
            ModelSubject(move_to_device(teacher.model, self.device), fuse_norms=recipe.fuse),
            recipe.prompt,
            multimask=recipe.multimask,
            prompt_batch_size=recipe.prompt_batch_size,
            max_images=recipe.data.max_images,
        )
        return evaluation, {"teacher": teacher.name, "teacher_sha256": teacher.weights_sha256}

    def _load(self, fuse_norms: bool) -> Subject:
        from distill.evaluation.predictors import BASELINES, ModelSubject, baseline
        from distill.models.checkpoint import load_model

        if self.source in BASELINES:
            return baseline(self.source)
        model = move_to_device(load_model(self.source, name=self.name), self.device)
        return ModelSubject(model, fuse_norms=fuse_norms)


def build_evaluation(recipe: EvaluateRecipe | EverythingRecipe) -> Evaluation:
    """The protocol of a recipe over its annotated photos. Raises DataError."""
    from distill.data.detections import Detections
    from distill.evaluation.automatic_masks import EverythingEvaluation
    from distill.evaluation.detector_boxes import DetectionEvaluation
    from distill.evaluation.evaluator import PromptEvaluation, open_set
    from distill.evaluation.prompting import Protocol

    coco_set, max_images = open_set(recipe.data), recipe.data.max_images
    if isinstance(recipe, EverythingRecipe):
        return EverythingEvaluation(coco_set, recipe.grid, max_images)
    protocol = Protocol(recipe.prompt, recipe.multimask, recipe.prompt_batch_size)
    if recipe.data.detections is None:
        return PromptEvaluation(coco_set, protocol, max_images)
    return DetectionEvaluation(coco_set, Detections(recipe.data.detections, coco_set), protocol, max_images)


def set_recipe(recipe: EvaluateSetsRecipe, name: str, options: dict[str, Any]) -> EvaluateRecipe:
    """The evaluation of one of many sets."""
    return EvaluateRecipe(
        protocol=recipe.protocol,
        run=str(Path(recipe.run) / name),
        data=EvaluateDataConfig(**{**options, "max_images": recipe.max_images}),
        prompt=EvaluatePromptConfig("detection"),
        multimask=recipe.multimask,
        prompt_batch_size=recipe.prompt_batch_size,
        num_workers=recipe.num_workers,
        fuse=recipe.fuse,
    )


def mean_of_sets(found: dict[str, tuple[EvaluateRecipe, dict[str, Any]]]) -> Summary:
    """The mean AP of finished evaluations of sets, and its interval: photos are resampled within each set."""
    import numpy as np

    from distill.evaluation.average_precision import average_precision
    from distill.evaluation.bootstrap import percentile_interval
    from distill.evaluation.evaluator import Summary, open_set

    resampled = []
    for seed, (recipe, _) in enumerate(found.values()):
        coco_set = open_set(recipe.data)
        keys = [photo.key for photo in coco_set][: recipe.data.max_images or None]
        results = json.loads((Path(recipe.run) / RESULTS_FILE).read_text(encoding="utf-8"))
        precision = average_precision(coco_set, results, [coco_set.image_ids[key] for key in keys], seed=seed)
        resampled.append(precision.resampled["ap"])
    scores = [metrics["ap"] for _, metrics in found.values() if metrics["ap"] is not None]
    interval = percentile_interval(np.nanmean(resampled, 0))
    counts = {name: sum(metrics[name] for _, metrics in found.values()) for name in ("num_images", "num_instances")}
    mean = float(np.mean(scores)) if scores else None
    return Summary({"map": mean, "num_sets": len(found), **counts}, {"map": interval} if interval else {})


def start_ranks(devices: int, device: str | None) -> tuple[Ranks, str | torch.device | None]:
    """The processes that torchrun or SLURM started, or `devices` that are started here; and this one's device."""
    from distill.models.launch import launch_fabric

    if devices == 1 and not any(name in os.environ for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS")):
        return Alone(), device
    fabric = launch_fabric(devices)
    return fabric, device or fabric.device  # type: ignore[return-value]


def choose_num_workers(wanted: int | None, num_photos: int) -> int:
    """Worker processes beside this one: as told, else one for each further core where there is much to do."""
    if wanted is not None:
        return wanted
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_WORKERS, max(0, cores // local_ranks - 1)) if num_photos >= PHOTOS_WORTH_WORKERS else 0


def describe_model(source: str) -> dict[str, Any]:
    """What tells a model from all others: where it came from, and the hash of its file (None: a baseline)."""
    from distill.evaluation.predictors import BASELINES
    from distill.models.checkpoint import find_weights, sha256_file

    digest = None if source in BASELINES else sha256_file(find_weights(source))
    return {"model": source, "weights_sha256": digest}


def move_to_device(model: PromptableModel, device: str | torch.device | None) -> PromptableModel:
    """The model on a device, by default a GPU if there is one. Raises RunError when the device is not there."""
    return model.to(usable_device(device))


def _report(metrics: dict[str, Any], path: Path) -> None:
    """Print the numbers, each mean with its interval."""
    intervals = metrics["intervals"]
    for name, value in metrics.items():
        if name == "intervals":
            break  # what follows is the protocol
        shown = "no such instance" if value is None else f"{value:.4f}" if isinstance(value, float) else value
        low_high = "   ({:.4f} to {:.4f})".format(*intervals[name]) if name in intervals else ""
        print(f"{name:19} {shown}{low_high}")
    print(f"written to {path}")
