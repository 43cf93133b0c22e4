"""Measure the headline of EfficientViT-SAM: how many times SAM's throughput its encoders have.

Published: 538 images/s for L2 (its README, table 1), 48.9 times those of SAM ViT-H (the paper's abstract, arXiv
2402.05008), both on an NVIDIA A100 with TensorRT in fp16 at batch 16.

    python tools/reproduce_headline.py                                   # OpenVINO on this machine's CPU
    python tools/reproduce_headline.py --gpu --out engines               # TensorRT engines on an NVIDIA GPU
    python tools/reproduce_headline.py --gpu --out engines \
        --weights efficientvit_sam_l2=l2.pt --judge IMAGES ANNOTATIONS   # and the masks of the engines

Speed does not depend on the weights, so models without --weights have random ones. All models of a table are measured
in one run, in turn, and each row has the fastest and the slowest pass beside the median.
"""

from __future__ import annotations

import argparse
import gc
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.errors import DistillError
from distill.export.decoder import DecoderForm
from distill.export.judge import Agreement, Judge, JudgeSet
from distill.export.onnx import Shapes, trace_decoder, trace_encoder
from distill.export.precision import rounded_steps, to_half
from distill.export.runners import OnnxRunner, import_openvino
from distill.export.trace import save_graph
from distill.models.checkpoint import load_model
from distill.models.sam import PromptableModel, build_model
from distill.students.fuse import fuse
from distill.text import markdown_table, say, say_error

BASELINE, STUDENTS = "sam_vit_h", ("efficientvit_sam_l0", "efficientvit_sam_l2")
PUBLISHED_RATIO = 48.9  # EfficientViT-SAM, arXiv 2402.05008, abstract
GPU_BATCH = 16
MIN_PASSES, SECONDS = 3, 20.0


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="build and run TensorRT engines")
    parser.add_argument("--out", type=Path, default=Path("engines"), help="where engines are written (--gpu)")
    parser.add_argument("--weights", action="append", default=[], metavar="NAME=FILE", help="a released file")
    parser.add_argument("--judge", nargs=2, type=Path, metavar=("IMAGES", "ANNOTATIONS"), help="photos for the masks")
    parser.add_argument("--models", nargs="+", default=[BASELINE, *STUDENTS], help="the first is the baseline")
    parser.add_argument("--arithmetic", choices=("f32", "bf16"), default="f32", help="of OpenVINO")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of timed passes of each model")
    arguments = parser.parse_args()
    try:
        weights = dict(one.split("=", 1) for one in arguments.weights)
        say(on_gpu(arguments, weights) if arguments.gpu else on_cpu(arguments, weights))
    except DistillError as error:
        say_error(error)
        return 2
    return 0


def on_cpu(arguments: argparse.Namespace, weights: Mapping[str, str]) -> str:
    """Measure the encoders in OpenVINO at batch 1, in turn, and return the table."""
    openvino = import_openvino()
    rows = []
    for name in arguments.models:
        model = build(name, weights)
        encoder, size = fuse(model.image_encoder), model.image_size
        del model
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes that become constants; here they are the model's own
            converted = openvino.convert_model(
                encoder, example_input=torch.zeros(1, 3, size, size), input=[1, 3, size, size]
            )
        compiled = openvino.Core().compile_model(
            converted, "CPU", {"INFERENCE_PRECISION_HINT": arguments.arithmetic, "PERFORMANCE_HINT": "LATENCY"}
        )
        pixels = np.random.default_rng(0).standard_normal((1, 3, size, size), np.float32)
        compiled([pixels])
        rows.append((name, time_passes(lambda call=compiled, x=pixels: call([x]), arguments.seconds)))
        del encoder, converted, compiled
        gc.collect()
    what = f"OpenVINO {openvino.__version__.split('-')[0]}, {arguments.arithmetic}, CPU, batch 1"
    return table(what, [(name, [1 / s for s in seconds], "") for name, seconds in rows])


def on_gpu(arguments: argparse.Namespace, weights: Mapping[str, str]) -> str:
    """Build TensorRT engines in fp16 at batch 16, measure them, and return the table."""
    rows = []
    for name in arguments.models:
        model = build(name, weights)
        folder = arguments.out / name
        folder.mkdir(parents=True, exist_ok=True)
        graph = trace_encoder(model, what=name, shapes=Shapes(batch=GPU_BATCH))
        path = folder / "encoder.onnx"
        save_graph(to_half(graph.model, rounded_steps(graph), "fp16"), path)
        rate = throughput(path, path.with_suffix(".engine"))
        agreement = ""
        if arguments.judge and name in weights:
            found = judge_engine(model, path.with_suffix(".engine"), folder, JudgeSet(*arguments.judge))
            agreement = f"{found.boxes:.4f} boxes, {found.clicks:.4f} clicks"
        rows.append((name, [rate], agreement))
        del model, graph
        gc.collect()
    return table(f"TensorRT, fp16, {torch.cuda.get_device_name()}, batch {GPU_BATCH}", rows)


def build(name: str, weights: Mapping[str, str]) -> PromptableModel:
    """Return a model with its released weights, or with random ones."""
    say_error(f"{name}: {weights.get(name, 'random weights')}")
    model = load_model(weights[name], name=name) if name in weights else build_model(name)
    return model.eval().requires_grad_(False)


def time_passes(call: Any, seconds: float) -> list[float]:
    """Return the seconds of each pass."""
    elapsed: list[float] = []
    while len(elapsed) < MIN_PASSES or sum(elapsed) < seconds:
        started = time.perf_counter()
        call()
        elapsed.append(time.perf_counter() - started)
    return elapsed


def throughput(onnx_file: Path, engine: Path) -> float:
    """Build an engine with trtexec and return its images per second."""
    command = ["trtexec", f"--onnx={onnx_file}", f"--saveEngine={engine}", "--stronglyTyped", "--useCudaGraph"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise DistillError("trtexec is not on the path; install TensorRT 10 or later") from error
    found = re.search(r"Throughput: ([\d.]+) qps", done.stdout)
    if done.returncode or found is None:
        raise DistillError(f"{' '.join(command)}: failed\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return float(found[1]) * GPU_BATCH


def judge_engine(model: PromptableModel, engine: Path, folder: Path, judged: JudgeSet) -> Agreement:
    """Compare the masks from an engine's embeddings with torch's in float32; the decoder runs in onnxruntime."""
    run = Engine(engine)
    decoder = folder / "decoder.onnx"
    save_graph(trace_decoder(model, DecoderForm(), what=str(decoder)).model, decoder)
    return Judge(model, [judged]).agreement(run, OnnxRunner(decoder))


class Engine:
    """A TensorRT engine of an encoder."""

    def __init__(self, path: Path) -> None:
        import tensorrt

        self._context = tensorrt.Runtime(tensorrt.Logger()).deserialize_cuda_engine(path.read_bytes())
        self._context = self._context.create_execution_context()

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Encode one photo (1, 3, S, S), repeated to the engine's batch."""
        given = torch.from_numpy(pixels).cuda().expand(GPU_BATCH, -1, -1, -1).contiguous()
        shape = tuple(self._context.get_tensor_shape("image_embeddings"))
        found = torch.empty(shape, device="cuda")
        self._context.set_tensor_address("pixels", given.data_ptr())
        self._context.set_tensor_address("image_embeddings", found.data_ptr())
        stream = torch.cuda.current_stream()
        self._context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        return found[:1].cpu().numpy()


def table(what: str, rows: list[tuple[str, list[float], str]]) -> str:
    """Return a table of images per second, and the ratios to the first row."""
    base = statistics.median(rows[0][1])
    lines = [
        [
            name,
            f"{statistics.median(rates):.3g}",
            f"{min(rates):.3g} to {max(rates):.3g}",
            f"{statistics.median(rates) / base:.1f}",
            str(PUBLISHED_RATIO) if name == STUDENTS[-1] else "",
            agreement,
        ]
        for name, rates, agreement in rows
    ]
    header = ["encoder", "images/s", "spread", f"times {rows[0][0]}", "published", "mask IoU with torch"]
    return f"{what}\n\n{markdown_table(header, lines)}"


if __name__ == "__main__":
    sys.exit(main())
