"""An evaluation from a recipe to its run directory: the call behind `distill evaluate`, for Python code as well."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from distill.config.schema import AgreementRecipe, EvaluateRecipe, EvaluateSetsRecipe, EverythingRecipe
from distill.data.catalogue import resolve_annotations
from distill.data.detections import Detections
from distill.errors import RunError
from distill.evaluation.automatic_masks import AutomaticMaskEvaluation
from distill.evaluation.detector_boxes import DetectionEvaluation
from distill.evaluation.evaluator import EvaluationProtocol, PromptEvaluation, evaluate_photos, open_set
from distill.evaluation.many_sets import mean_of_sets, recipe_of_set
from distill.evaluation.predictors import BASELINES, MaskPredictor, ModelPredictor, baseline
from distill.evaluation.prompting import PromptProtocol
from distill.evaluation.record import OneProcess, Ranks, Record, write_metrics
from distill.evaluation.teacher_agreement import AgreementEvaluation
from distill.evaluation.worker_pool import WorkerPool
from distill.lock import hold_directory
from distill.memory import keep_freed_memory
from distill.models.checkpoint import is_packaged, load_model, sha256_file
from distill.models.devices import usable_device
from distill.models.launch import launch_fabric
from distill.models.teacher import load_teacher
from distill.runtimes.execution import Execution
from distill.runtimes.exported import ExportedModel, hash_model, is_exported
from distill.text import progress_bar

if TYPE_CHECKING:
    import torch

    from distill.config.loading import EvaluationRecipe

PHOTOS_WORTH_WORKERS = 200  # worker processes take seconds to start
MAX_WORKERS = 8

RecipeOfOneSet = Union[EvaluateRecipe, EverythingRecipe, AgreementRecipe]


def evaluate_recipe(
    model: str,
    recipe: EvaluationRecipe,
    *,
    name: str | None = None,
    device: str | torch.device | None = None,
    ranks: Ranks | None = None,
    execution: Execution | None = None,
) -> dict[str, Any]:
    """Evaluate a model, or a baseline, by a recipe, and write the record to the recipe's run directory.

    With `recipe.resume`, photos that an earlier evaluation finished are not evaluated again, and a finished
    evaluation is only read. A progress bar is shown on stderr.

    Args:
        model: a path or a name as `load_model` takes it, a folder of exported files, or the name of a baseline:
            `oracle`, `fill-box`, `fill-ellipse`.
        recipe: as `config.loading.load_recipe` returns it.
        name: which published model a third-party .pt or .pth holds.
        device: of the model and of a teacher; None: a GPU if there is one.
        ranks: the processes that share the photos, such as lightning.Fabric; None: this process alone.
        execution: the runtime of the model and its precision; None: torch in float32, or onnxruntime for files.
    Returns:
        the content of metrics.json in the first process, and an empty dictionary in the others.
    Raises:
        DistillError: a model, data or a device that cannot be used, or a run directory that holds something else or
            is in use by another process.
    """
    job = _Job(model, name, device, ranks or OneProcess(), execution or Execution())
    with job.hold(recipe):
        return job.run_sets(recipe) if isinstance(recipe, EvaluateSetsRecipe) else job.run(recipe)


@dataclass
class _Job:
    """The evaluation of one model, in one or more processes.

    The arguments are those of `evaluate_recipe`. predictor: the loaded model, once an evaluation needed it.
    """

    source: str
    name: str | None
    device: str | torch.device | None
    ranks: Ranks
    execution: Execution
    predictor: MaskPredictor | None = None

    def hold(self, recipe: EvaluationRecipe) -> AbstractContextManager[object]:
        """Hold the run directory for all processes of this evaluation. The first one does it."""
        return nullcontext() if self.ranks.global_rank else hold_directory(Path(recipe.run), give="run=DIR")

    def run(self, recipe: RecipeOfOneSet) -> dict[str, Any]:
        """Evaluate the photos that are left to this process. Return the metrics in the first process."""
        evaluation, data = self._evaluation(recipe)
        data |= describe_execution(self.source, self.execution)
        self.predictor = self.predictor or load_predictor(
            self.source, recipe, name=self.name, device=self.device, execution=self.execution
        )
        record = Record(Path(recipe.run), recipe, describe_model(self.source), data, self.ranks)
        if record.is_finished:
            return record.read_metrics()
        photos = record.begin(evaluation)
        started = time.monotonic()
        num_workers = choose_num_workers(recipe.num_workers, len(photos))
        is_first = self.ranks.global_rank == 0
        with WorkerPool(num_workers) as workers, progress_bar("photos", len(photos), shown=is_first) as advance:
            for found in evaluate_photos(evaluation, self.predictor, photos, workers):
                record.add(found)
                advance(1)
        self.ranks.barrier()
        seconds = time.monotonic() - started
        return record.close(evaluation, seconds, len(photos) * self.ranks.world_size) if is_first else {}

    def run_sets(self, recipe: EvaluateSetsRecipe) -> dict[str, Any]:
        """Evaluate each set in a directory of its own. Return the mean of their APs in the first process."""
        recipes = {name: recipe_of_set(recipe, name, options) for name, options in recipe.sets.items()}
        for of_set in recipes.values():
            self._evaluation(of_set)  # a set that cannot be read ends the run before it costs anything
        how = describe_execution(self.source, self.execution)
        record = Record(Path(recipe.run), recipe, describe_model(self.source), how, self.ranks)
        found = {}
        started = time.monotonic()
        for name, of_set in recipes.items():
            of_set.resume = Path(of_set.run).exists()
            found[name] = (of_set, self.run(of_set))
        if self.ranks.global_rank:
            return {}
        sets = {name: metrics["ap"] for name, (_, metrics) in found.items()}
        return write_metrics(
            record, mean_of_sets(found), {"sets": sets, "seconds": round(time.monotonic() - started, 1)}
        )

    def _evaluation(self, recipe: RecipeOfOneSet) -> tuple[EvaluationProtocol[Any], dict[str, Any]]:
        """Build the evaluation of a recipe. Return it with what identifies its data: hashes, the teacher."""
        if isinstance(recipe, AgreementRecipe):
            return self._agreement(recipe)
        return evaluation_of(recipe)

    def _agreement(self, recipe: AgreementRecipe) -> tuple[EvaluationProtocol[Any], dict[str, Any]]:
        teacher = load_teacher(recipe.teacher)
        evaluation = AgreementEvaluation(
            recipe.data.images,
            ModelPredictor(teacher.model.to(usable_device(self.device)), fuse_norms=recipe.fuse),
            recipe.prompt,
            multimask=recipe.multimask,
            prompt_batch_size=recipe.prompt_batch_size,
            max_images=recipe.data.max_images,
        )
        return evaluation, {"teacher": teacher.name, "teacher_sha256": teacher.weights_sha256}


def load_predictor(
    source: str,
    recipe: RecipeOfOneSet,
    *,
    name: str | None = None,
    device: str | torch.device | None = None,
    execution: Execution | None = None,
) -> MaskPredictor:
    """Load a model, a folder of exported files or a baseline as what an evaluation scores.

    The arguments are those of `evaluate_recipe`; of the recipe, `fuse` and `photos_at_once` are used.

    Raises:
        DistillError: the model, the device or the runtime cannot be used.
    """
    if source in BASELINES:
        return baseline(source)
    execution = execution or Execution()
    runtime = execution.runtime_of(source)
    if runtime == "torch":
        model = load_model(source, name=name).to(usable_device(device))
        photos_at_once = getattr(recipe, "photos_at_once", None)  # of recipes with prompts
        return ModelPredictor(
            model, fuse_norms=recipe.fuse, precision=execution.precision, photos_at_once=photos_at_once
        )
    keep_freed_memory()
    folder = Path(source) if is_exported(source) else execution.folder
    if folder is None:
        raise RunError(f"{source}: {runtime} runs exported files: `distill export {source} --out DIR`, and give DIR")
    return ModelPredictor(ExportedModel(folder, runtime, execution.precision))


def evaluation_of(recipe: EvaluateRecipe | EverythingRecipe) -> tuple[EvaluationProtocol[Any], dict[str, Any]]:
    """Build the evaluation of a recipe. Return it with the hashes that identify its data."""
    evaluation = build_evaluation(recipe)
    data = {"annotations_sha256": sha256_file(resolve_annotations(recipe.data.annotations))}
    if recipe.data.detections is not None:
        data["detections_sha256"] = sha256_file(recipe.data.detections)
    return evaluation, data


def build_evaluation(recipe: EvaluateRecipe | EverythingRecipe) -> EvaluationProtocol[Any]:
    """Build the evaluation of a recipe over its annotated photos. Raises DataError when they cannot be read."""
    coco_set, max_images = open_set(recipe.data), recipe.data.max_images
    if isinstance(recipe, EverythingRecipe):
        return AutomaticMaskEvaluation(coco_set, recipe.grid, max_images)
    protocol = PromptProtocol(
        recipe.prompt,
        recipe.multimask,
        recipe.prompt_batch_size,
        multimask_later=recipe.multimask_later,
        truth=recipe.instances.truth,
    )
    if recipe.data.detections is None:
        return PromptEvaluation(coco_set, protocol, max_images, recipe.instances)
    detections = Detections(recipe.data.detections, coco_set, clip=recipe.instances.clip_boxes)
    return DetectionEvaluation(coco_set, detections, protocol, max_images)


def start_ranks(devices: int, device: str | None) -> tuple[Ranks, str | torch.device | None]:
    """Return the processes of the evaluation and the device of this one.

    The processes are those that torchrun or SLURM started, else `devices` that are started here.
    """
    if devices == 1 and not any(name in os.environ for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS")):
        return OneProcess(), device
    fabric = launch_fabric(devices)
    return fabric, device or fabric.device


def choose_num_workers(wanted: int | None, num_photos: int) -> int:
    """Return the number of worker processes beside this one.

    Without a wish it is one for each further core of this process where there are many photos, and else none.
    """
    if wanted is not None:
        return wanted
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_WORKERS, max(0, cores // local_ranks - 1)) if num_photos >= PHOTOS_WORTH_WORKERS else 0


def describe_model(source: str) -> dict[str, Any]:
    """Return what identifies a model: its name or absolute path, and the hash of its weights (a baseline: None)."""
    digest = None if source in BASELINES else hash_model(source)
    is_name = source in BASELINES or is_packaged(source)
    return {"model": source if is_name else os.path.abspath(source), "weights_sha256": digest}


def describe_execution(source: str, execution: Execution) -> dict[str, Any]:
    """Return how a model is run, as records keep it: nothing for a baseline, and for torch in float32."""
    runtime = None if source in BASELINES else execution.describe(source)
    return {} if runtime is None else {"runtime": runtime}
