"""The text of a model card: what a reader must know about a student before using it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from distill.evaluation.finished import HEADLINE_WORDS, headline_of, protocol_of
from distill.models.checkpoint import load_model, read_recipe
from distill.models.complexity import encoder_macs
from distill.models.sam import ModelSpec
from distill.text import BILLION, MILLION, Markdown, line, markdown, markdown_code, markdown_table
from distill.training.cost import read_cost
from distill.training.record import Training, check_tree, lost_start, read_trainings

CODE_LICENCE = "the code that trained it, `distill`: Apache-2.0"
# Licences of a teacher's weights, by the beginning of its name.
TEACHER_LICENCES = {
    "sam_vit": "SAM's weights, by Meta AI: Apache-2.0",
    "efficientvit_sam": "EfficientViT-SAM's weights: Apache-2.0",
    "quickstart": "the teacher that ships with distill: Apache-2.0; it saw photographs of COCO",
}
BASE_MODELS = {
    "sam_vit_b": "facebook/sam-vit-base",
    "sam_vit_l": "facebook/sam-vit-large",
    "sam_vit_h": "facebook/sam-vit-huge",
}
# Licences of data, by a word in its path.
DATA_LICENCES = {
    ("sa1b", "sa-1b", "sa_1b", "sa_0"): "SA-1B: the SA-1B Dataset Research License",
    ("coco", "train2017", "val2017", "lvis"): (
        "COCO and LVIS: annotations CC BY 4.0; the photographs under the terms of their owners on Flickr"
    ),
}
USE = """\
```python
from distill import Predictor, load_model

predictor = Predictor(load_model("student.safetensors"))
predictor.set_image(photo)  # uint8 (H, W, 3) RGB
masks, iou_predictions, _ = predictor.predict(box=box_xyxy, multimask_output=False)
```
"""


def card_text(weights: Path, measured: Mapping[str, Any]) -> str:
    """Return the card of a model as Markdown.

    Args:
        weights: in a run directory, or alone.
        measured: `evaluations`, the content of metrics.json by protocol; and `bench`, a row of a bench document with
            its machine, or None.
    Raises:
        CheckpointError: the weights cannot be read.
    """
    model = load_model(weights)
    trainings = read_trainings(weights.parent) or _from_header(weights)
    num_params = sum(parameter.numel() for parameter in model.parameters())
    title = line(weights.parent.resolve().name)
    parts = [
        _front_matter(title, trainings, list(measured["evaluations"].values())),
        f"# {markdown(title)}\n",
        _lead(model.spec, trainings),
        _architecture(model.spec, num_params),
        _scores(list(measured["evaluations"].values())),
        _speed(measured["bench"]),
        _training(trainings),
        f"## Use\n\nWhere `distill` is installed:\n\n{USE}",
        _licences(trainings),
    ]
    return "\n".join(part for part in parts if part)


def _front_matter(title: str, trainings: Sequence[Training], evaluations: Sequence[Mapping[str, Any]]) -> str:
    """Return what the Hub reads: licence, task, base model and results, as YAML between lines of dashes."""
    teacher = trainings[-1].teacher if trainings else ""
    results = []
    for metrics in evaluations:
        headline = headline_of(metrics)
        if metrics.get(headline) is None:
            continue
        results.append(
            EvalResult(
                task_type="mask-generation",
                dataset_type=line(Path(_set_name(metrics)).stem),
                dataset_name=line(f"{Path(_set_name(metrics)).stem}{_part_of_set(metrics)}"),
                metric_type=headline,
                metric_name=line(f"{HEADLINE_WORDS[headline]}, {protocol_of(metrics).title}"),
                metric_value=round(metrics[headline], 4),
            )
        )
    data = ModelCardData(
        license="apache-2.0",
        library_name="distill-sam",
        pipeline_tag="mask-generation",
        tags=["segment-anything", "knowledge-distillation", "promptable-segmentation"],
        base_model=BASE_MODELS.get(teacher),
        model_name=title,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _lead(spec: ModelSpec, trainings: Sequence[Training]) -> str:
    teacher = f" It was distilled from {_short(trainings[-1].teacher)}." if trainings else ""
    return (
        "A small promptable segmentation model in the shape of Segment Anything: the image encoder "
        f"{markdown_code(spec.encoder)} with SAM's prompt encoder and mask decoder.{teacher}\n"
    )


def _architecture(spec: ModelSpec, num_params: int) -> str:
    rows = [
        ["image encoder", Markdown(f"{markdown_code(spec.encoder)}, photos of {spec.image_size} pixels")],
        ["embedding", f"{spec.embedding_dim} x {spec.embedding_size} x {spec.embedding_size}"],
        ["parameters", f"{num_params / MILLION:.2f} M"],
        ["multiply-adds of the encoder", f"{encoder_macs(spec) / BILLION:.2f} G a photo"],
    ]
    return "## Architecture\n\n" + markdown_table(["", ""], rows)


def _scores(evaluations: Sequence[Mapping[str, Any]]) -> str:
    if not evaluations:
        mend = "`distill card RUN --add EVALUATION` adds the scores of `distill evaluate`"
        return f"## Scores\n\nNot evaluated yet: {mend}.\n"
    rows = []
    for metrics in evaluations:
        headline = headline_of(metrics)
        interval = metrics.get("intervals", {}).get(headline)
        rows.append(
            [
                protocol_of(metrics).title,
                str(metrics.get("multimask") or ""),
                f"{HEADLINE_WORDS[headline]} {_number(metrics.get(headline))}",
                f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "",
                *(_number(metrics.get(f"{headline}_{size}")) for size in ("large", "medium", "small")),
                *(f"{metrics[key]:,}" if metrics.get(key) else "" for key in ("num_images", "num_instances")),
                f"{_set_name(metrics)}{_part_of_set(metrics)}",
            ]
        )
    header = ["prompt", "mask", "score", "95 % interval", "large", "medium", "small", "photos", "instances", "set"]
    return (
        "## Scores\n\n"
        + markdown_table(header, rows)
        + "\nBy `distill evaluate`: masks compared at each photo's own resolution; intervals by resampling photos. "
        "`single` is the decoder's one mask, `best` the best of three by predicted IoU.\n"
    )


def _set_name(metrics: Mapping[str, Any]) -> str:
    """Return the name of what was scored: of the annotations' file, or else of the photos' directory."""
    return Path(str(metrics.get("annotations") or metrics.get("images") or "unknown")).name


def _part_of_set(metrics: Mapping[str, Any]) -> str:
    return f", the first {metrics['num_images']:,} photos" if metrics.get("max_images") else ""


def _speed(bench: Mapping[str, Any] | None) -> str:
    if bench is None:
        return ""
    rows = [
        [str(run["batch_size"]), run["precision"], "yes" if run["fused"] else "no", f"{run['latency_ms']:.1f}"]
        + [f"{run['images_per_second']:.1f}"]
        for run in bench["runs"]
    ]
    machine = ", ".join(f"{key} {value}" for key, value in bench.get("machine", {}).items() if value not in (None, []))
    return (
        "## Speed\n\nOf the image encoder.\n\n"
        + markdown_table(["batch", "precision", "fused", "latency (ms)", "photos/s"], rows)
        + f"\nMachine: {markdown(machine or 'not recorded')}.\n"
    )


def _training(trainings: Sequence[Training]) -> str:
    rows = []
    for training in trainings:
        recipe, cost = training.recipe, training.cost
        took = ["", "", "", ""]
        if cost is not None:
            took = [
                f"{cost.steps:,}",
                f"{cost.photos:,}",
                f"{cost.device_hours:.2f}",
                f"{cost.devices} x {cost.device}",
            ]
        rows.append(
            [
                str(recipe["kind"]),
                _short(training.teacher),
                _short(recipe["data"]["images"]),
                f"{recipe['optim']['lr']:g}",
                str(recipe["data"]["batch_size"]),
                *took,
            ]
        )
    if not rows:
        return "## Training\n\nNot recorded.\n"
    header = ["stage", "teacher", "data", "learning rate", "batch per device", "steps", "photos seen"]
    table = markdown_table([*header, "device hours", "devices"], rows)
    if (lost := lost_start(trainings)) is not None:
        table += f"\nIt started from {_short(lost)}, of whose training no record is left: its cost is not counted.\n"
    return f"## Training\n\n{table}\nThe whole recipe is in `recipe.yaml`.\n"


def _licences(trainings: Sequence[Training]) -> str:
    lines = [CODE_LICENCE]
    for teacher in dict.fromkeys(training.teacher for training in trainings):
        known = next((line for start, line in TEACHER_LICENCES.items() if teacher.startswith(start)), None)
        lines.append(known or f"the teacher {_short(teacher)}: see its own card")
    for data in dict.fromkeys(str(training.recipe["data"]["images"]) for training in trainings):
        words = data.lower()
        known = next((line for keys, line in DATA_LICENCES.items() if any(key in words for key in keys)), None)
        lines.append(known or f"the data {_short(data)}: distill does not know its licence; state it here")
    return "## Licences\n\n" + "".join(f"- {line}\n" for line in lines)


def _from_header(weights: Path) -> list[Training]:
    """Read the last stage from the header of weights that lie outside a run directory."""
    tree = read_recipe(weights)
    return [Training(weights.parent, check_tree(tree, str(weights)), read_cost(weights.parent))] if tree else []


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _short(path: str) -> Markdown:
    """Return the last two parts of a path as code: enough to know it by, and nothing of the machine."""
    return markdown_code("/".join(Path(path).parts[-2:]).lstrip("/"))
