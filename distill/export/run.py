"""`distill export` as a call: trace, convert, judge on real photos, and only then write."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from distill import __version__
from distill.errors import DistillError
from distill.export.blame import Blame, bisect, steps_by_layer
from distill.export.decoder import DecoderForm
from distill.export.judge import LEAST_IOU, Agreement, Decode, Encode, Judge
from distill.export.layouts import Layout, arrange, client_form
from distill.export.onnx import ANY_SHAPE, Shapes, describe, trace_decoder, trace_encoder
from distill.export.precision import Half, Precision, emulate_half, rounded_steps
from distill.export.runners import OnnxRunner, Runner
from distill.export.targets import DECODER, ENCODER, Conversion, Target, convert, open_file
from distill.export.trace import OPSET, Graph, save_graph
from distill.files import hash_file, write_errors, write_json
from distill.models.sam import PromptableModel
from distill.runtimes.folder import DESCRIPTION_FILE
from distill.text import MILLION

REPORT_FILE = "report.json"
BLAME_PHOTOS = 3  # of the judge's, asked again and again by the bisection
JUDGED_FORM = DecoderForm()  # masks at low resolution, in which every other form begins


@dataclass(frozen=True)
class Request:
    """What to export.

    keep: layers that stay in float32.
    mend: True to keep the layers that the gate blames in float32, and to try again.
    least_iou: the mean mask IoU with torch below which nothing is written; None takes the precision's own.
    calibration: inputs (1, 3, S, S) of the encoder, for int8.
    layout: whose folder it is. A client's asks for its own form, shapes and opset, in the place of those here.
    """

    target: Target = "onnx"
    precision: Precision = "fp32"
    opset: int = OPSET
    form: DecoderForm = field(default_factory=DecoderForm)
    shapes: Shapes = ANY_SHAPE
    keep: tuple[str, ...] = ()
    mend: bool = False
    least_iou: float | None = None
    calibration: Sequence[np.ndarray] = ()
    layout: Layout = "distill"

    @property
    def threshold(self) -> float:
        """Return the least mean IoU."""
        return LEAST_IOU[self.precision] if self.least_iou is None else self.least_iou

    @property
    def keeps_layers(self) -> bool:
        """Return whether the target can compute chosen layers in float32."""
        return (self.target, self.precision) != ("openvino", "bf16")


@dataclass(frozen=True)
class Report:
    """What was written and how it was judged."""

    files: dict[str, int]
    agreement: Agreement | None
    stored: Agreement | None
    kept: tuple[str, ...]
    runtime: str

    def lines(self) -> list[str]:
        """Return what was written, for a person."""
        lines = [f"{name}  {num_bytes / MILLION:.1f} MB" for name, num_bytes in self.files.items()]
        return [*lines, f"in float32 stay {', '.join(self.kept)}"] if self.kept else lines


def export_model(
    model: PromptableModel,
    out: Path,
    request: Request,
    judge: Judge | None = None,
    *,
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Export a model: graphs, the target's files, the gate, and then the folder.

    Args:
        out: the directory; it is created if needed. Files of an earlier export are replaced.
        judge: photos that were answered by this very model; None leaves the gate out.
        say: told what goes on.
    Raises:
        DistillError: a converter is not installed, a graph cannot be traced, or the gate refuses the files.
    """
    model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    if request.layout != "distill":
        client = client_form(request.layout, model)
        request = replace(request, form=client.decoder, shapes=client.shapes, opset=client.opset)
    graphs = {
        ENCODER: trace_encoder(model, what="encoder", opset=request.opset, shapes=request.shapes),
        DECODER: trace_decoder(model, request.form, what="decoder", opset=request.opset, shapes=request.shapes),
    }
    judged = graphs
    if judge is not None and (request.form != JUDGED_FORM or request.shapes != ANY_SHAPE):
        judged = {
            ENCODER: trace_encoder(model, what="encoder", opset=request.opset),
            DECODER: trace_decoder(model, JUDGED_FORM, what="decoder", opset=request.opset),
        }
    with tempfile.TemporaryDirectory(prefix="distill-export-") as folder:
        staging = Path(folder) / "out"
        while True:
            verdict = _judge(model, judged, Path(folder) / "judged", request, judge, say)
            if verdict.passed:
                break
            if not (request.mend and request.keeps_layers and verdict.blame.layers):
                raise DistillError(_refusal(request, verdict))
            request = replace(request, keep=(*request.keep, *verdict.blame.layers))
            say(f"kept in float32: {', '.join(verdict.blame.layers)}")
        conversion = convert(
            graphs, rounded(graphs, request.keep), staging, request.target, request.precision, request.calibration
        )
        if request.layout != "distill":
            arrange(request.layout, staging, model)
        report = Report(
            {path.name: path.stat().st_size for path in sorted(staging.iterdir())},
            verdict.agreement,
            verdict.stored,
            request.keep,
            conversion.runtime,
        )
        _write(model, request, report, conversion, staging, out)
    return report


@dataclass(frozen=True)
class _Verdict:
    passed: bool
    agreement: Agreement | None = None
    stored: Agreement | None = None
    blame: Blame = field(default_factory=lambda: Blame((), True))


def _judge(
    model: PromptableModel,
    graphs: Mapping[str, Graph],
    folder: Path,
    request: Request,
    judge: Judge | None,
    say: Callable[[str], None],
) -> _Verdict:
    """Convert the graphs in the form that the judge asks, run them in their runtime, and look for who is to blame."""
    if judge is None:
        return _Verdict(True)
    shutil.rmtree(folder, ignore_errors=True)
    conversion = convert(
        graphs, rounded(graphs, request.keep), folder, request.target, request.precision, request.calibration
    )
    agreement = None
    if conversion.runs_here:
        encoder, decoder = (open_file(conversion, part) for part in (ENCODER, DECODER))
        agreement = judge.agreement(_encode(encoder), decoder)
        say(f"{conversion.runtime}: {agreement.line()}")
    stored = None
    if conversion.typed in ("fp16", "bf16"):
        stored = _stored(graphs, rounded(graphs, request.keep), conversion.typed, judge, folder)
        say(f"stored as an engine stores it: {stored.line()}")
    found = [one for one in (agreement, stored) if one is not None]
    if all(one.least >= request.threshold for one in found):
        return _Verdict(True, agreement, stored)
    if request.precision == "fp32":
        return _Verdict(False, agreement, stored)
    return _Verdict(False, agreement, stored, _find_blame(graphs, folder, request, judge, say))


def rounded(graphs: Mapping[str, Graph], keep: Collection[str]) -> dict[str, list[str]]:
    """Return the steps of each graph that leave float32. Layers are named with their part first: decoder.layers.0."""
    return {part: rounded_steps(graph, _within(part, keep)) for part, graph in graphs.items()}


def _within(part: str, layers: Collection[str]) -> list[str]:
    """Return the names inside a part of the layers that lie in it."""
    return [layer.removeprefix(f"{part}.") for layer in layers if layer.startswith(f"{part}.")]


def _encode(runner: Runner) -> Encode:
    return lambda pixels: runner({"pixels": pixels})["image_embeddings"]


def _stored(
    graphs: Mapping[str, Graph],
    steps: Mapping[str, Collection[str]],
    half: Half,
    judge: Judge,
    folder: Path,
    num_photos: int | None = None,
) -> Agreement:
    """Judge the graphs with some steps rounded as an engine in a half format stores them."""
    runners = {}
    for part, graph in graphs.items():
        if not steps.get(part) and part == ENCODER:
            continue  # torch's own embedding stands for it, in less time
        path = folder / f"{part}.stored.onnx"
        save_graph(emulate_half(graph.model, steps.get(part, ()), half), path)
        runners[part] = OnnxRunner(path, exact=True)
    encode = _encode(runners[ENCODER]) if ENCODER in runners else None
    decode: Decode = runners[DECODER]
    return judge.agreement(encode, decode, num_photos=num_photos)


def _find_blame(
    graphs: Mapping[str, Graph], folder: Path, request: Request, judge: Judge, say: Callable[[str], None]
) -> Blame:
    """Look for the layers that lose the masks, by bisection over both parts."""
    steps = rounded(graphs, request.keep)
    if not request.keeps_layers:
        steps[DECODER] = []  # OpenVINO's decoder computes in float32
    layers = {
        f"{part}.{layer}": (part, names)
        for part in (ENCODER, DECODER)
        for layer, names in steps_by_layer(graphs[part], steps[part]).items()
    }
    say(f"looking for the layers to blame, among {len(layers)}")

    def passes(some: Sequence[str]) -> bool:
        chosen: dict[str, list[str]] = {ENCODER: [], DECODER: []}
        for layer in some:
            part, names = layers[layer]
            chosen[part] += names
        if request.precision == "int8":
            shutil.rmtree(folder, ignore_errors=True)
            few = request.calibration[:BLAME_PHOTOS]
            found = convert(graphs, chosen, folder, request.target, "int8", few)
            encoder, decoder = (open_file(found, part) for part in (ENCODER, DECODER))
            agreement = judge.agreement(_encode(encoder), decoder, num_photos=BLAME_PHOTOS)
        else:
            assert request.precision != "fp32"
            agreement = _stored(graphs, chosen, request.precision, judge, folder, BLAME_PHOTOS)
        return agreement.least >= request.threshold

    return bisect(list(layers), passes)


def _refusal(request: Request, verdict: _Verdict) -> str:
    """Return the error of a file that the gate refuses."""
    found = [one for one in (verdict.agreement, verdict.stored) if one is not None]
    worst = min(found, key=lambda one: one.least)
    what = f"--to {request.target} --precision {request.precision}"
    lines = f"{what}: {worst.line()}; at least {request.threshold} is asked of both means, so nothing is written"
    if not verdict.blame.layers:
        return f"{lines}. No layer alone is to blame; another threshold can be given: --least-iou"
    rest = "the rest would pass" if verdict.blame.complete else "and the rest does not pass either"
    blamed = f"{lines}. To blame: {', '.join(verdict.blame.layers)} ({rest})"
    if not request.keeps_layers:
        return f"{blamed}. OpenVINO has no format for a layer alone: take --precision fp16, which computes in float32"
    keep = " ".join(f"--keep {layer}" for layer in verdict.blame.layers)
    return f"{blamed}. Keep them in float32: {keep}, or --mend"


def _write(
    model: PromptableModel, request: Request, report: Report, conversion: Conversion, staging: Path, out: Path
) -> None:
    """Give the files their names in `out`; the description comes last, with their hashes."""
    with write_errors(out, DistillError):
        out.mkdir(parents=True, exist_ok=True)
        for path in sorted(staging.iterdir()):
            shutil.copyfile(path, out / f"{path.name}.tmp")
            (out / f"{path.name}.tmp").replace(out / path.name)
    content = {
        "distill": __version__,
        "target": request.target,
        "precision": request.precision,
        "opset": request.opset,
        "runtime": conversion.runtime,
        "files": report.files,
        "least_iou": request.threshold,
        "agreement": None if report.agreement is None else report.agreement.as_json(),
        "stored_as_an_engine_stores_it": None if report.stored is None else report.stored.as_json(),
        "kept_in_float32": list(request.keep),
        "simplified_by_onnxslim": conversion.simplified,
    }
    write_json(out / REPORT_FILE, content, indent=1, raises=DistillError)
    hashes = {name: hash_file(out / name) for name in report.files}
    description = {
        **describe(model, request.form),
        "target": request.target,
        "precision": request.precision,
        "layout": request.layout,
        "arithmetic": conversion.arithmetic,
        "files": hashes,
    }
    write_json(out / DESCRIPTION_FILE, description, indent=1, raises=DistillError)
