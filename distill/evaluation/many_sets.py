"""One protocol over many sets, as in segmentation in the wild: a recipe for each set, and the mean of their APs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from distill.config.schema import EvaluateDataConfig, EvaluatePromptConfig, EvaluateRecipe, EvaluateSetsRecipe
from distill.evaluation.evaluator import Summary, open_set
from distill.evaluation.record import RESULTS_FILE
from distill.evaluation.scoring.average_precision import average_precision
from distill.evaluation.scoring.bootstrap import percentile_interval
from distill.evaluation.written import read_results


def recipe_of_set(recipe: EvaluateSetsRecipe, name: str, options: Mapping[str, Any]) -> EvaluateRecipe:
    """Return the recipe of one of the sets. Its run directory is RUN/NAME.

    Args:
        options: the data of the set, as EvaluateDataConfig has it.
    """
    return EvaluateRecipe(
        protocol=recipe.protocol,
        run=str(Path(recipe.run) / name),
        data=EvaluateDataConfig(**{**options, "max_images": recipe.max_images}),
        prompt=EvaluatePromptConfig("detection"),
        multimask=recipe.multimask,
        prompt_batch_size=recipe.prompt_batch_size,
        photos_at_once=recipe.photos_at_once,
        num_workers=recipe.num_workers,
        fuse=recipe.fuse,
    )


def mean_of_sets(found: Mapping[str, tuple[EvaluateRecipe, dict[str, Any]]]) -> Summary:
    """Average the AP of finished evaluations over sets. For the interval, photos are resampled within each set.

    Args:
        found: the recipe and the metrics of each set, by its name.
    """
    resampled = []
    for seed, (recipe, _) in enumerate(found.values()):
        coco_set = open_set(recipe.data)
        keys = [photo.key for photo in coco_set][: recipe.data.max_images or None]
        results = msgspec.to_builtins(read_results(Path(recipe.run) / RESULTS_FILE))
        precision = average_precision(coco_set, results, [coco_set.image_ids[key] for key in keys], seed=seed)
        resampled.append(precision.resampled["ap"])
    scores = [metrics["ap"] for _, metrics in found.values() if metrics["ap"] is not None]
    interval = percentile_interval(np.nanmean(resampled, 0))
    counts = {name: sum(metrics[name] for _, metrics in found.values()) for name in ("num_images", "num_instances")}
    mean = float(np.mean(scores)) if scores else None
    return Summary({"map": mean, "num_sets": len(found), **counts}, {"map": interval} if interval else {})
