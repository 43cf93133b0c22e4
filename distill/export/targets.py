"""What `distill export` writes for each target and precision, and the runtime that reads it back here.

| target | fp32 | fp16 | bf16 | int8 |
| onnx | float32 | typed steps | weights in bfloat16, steps in float32 | static int8 of the encoder |
| openvino | IR | weights in fp16, steps in float32 | the encoder's steps in bfloat16 | IR of the int8 graph |
| tensorrt | float32 | typed steps | typed steps | int8 graph; with the scripts that build the engines |
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from distill.errors import DistillError
from distill.export.precision import Half, Precision, quantize, to_half, weights_in_bfloat16
from distill.export.runners import OnnxRunner, OpenVinoRunner, Runner, import_openvino
from distill.export.tensorrt import write_build_files
from distill.export.trace import Graph, save_graph

Target: TypeAlias = Literal["onnx", "openvino", "tensorrt"]
ENCODER, DECODER = "encoder", "decoder"
LEAST_CALIBRATION = 8  # photos: fewer give ranges that the next photo leaves


@dataclass(frozen=True)
class Conversion:
    """The files of a target in a folder.

    runtime: what runs them, for people. runs_here: whether this machine does.
    typed: the half format in which an engine of these files would store its results; None if it stores float32.
    arithmetic: of OpenVINO's encoder: "f32" or "bf16". The decoder's is "f32": it is where bfloat16 loses most.
    """

    folder: Path
    suffix: str
    runtime: str
    runs_here: bool
    simplified: bool
    typed: Half | None = None
    arithmetic: str = "f32"


def convert(
    graphs: Mapping[str, Graph],
    steps: Mapping[str, Collection[str]],
    folder: Path,
    target: Target,
    precision: Precision,
    calibration: Sequence[np.ndarray] = (),
) -> Conversion:
    """Write the files of a target.

    Args:
        graphs: of the encoder and the decoder.
        steps: of each, the names of the steps that leave float32.
        folder: is created if needed.
        calibration: inputs of the encoder, for int8.
    Raises:
        DistillError: the target's converter is not installed.
    """
    check_target(target)
    folder.mkdir(parents=True, exist_ok=True)
    simplified = all(graph.simplified for graph in graphs.values())
    if target == "openvino":
        return _convert_to_openvino(graphs, steps, folder, precision, calibration, simplified)
    typed: Half | None = precision if precision == "fp16" or (precision == "bf16" and target == "tensorrt") else None
    for part, graph in graphs.items():
        path = folder / f"{part}.onnx"
        if precision == "int8":
            _write_int8(part, graph, steps[part], path, calibration)
        elif typed is not None:
            save_graph(to_half(graph.model, steps[part], typed), path)
        else:
            save_graph(weights_in_bfloat16(graph.model) if precision == "bf16" else graph.model, path)
    runs_here = typed != "bf16"  # onnxruntime has no bfloat16 arithmetic on CPUs
    runtime = "onnxruntime"
    if target == "tensorrt":
        write_build_files(folder, {part: graph.model for part, graph in graphs.items()}, precision)
        runtime = "onnxruntime, in TensorRT's place"
    return Conversion(folder, ".onnx", runtime, runs_here, simplified, typed)


def open_file(conversion: Conversion, part: str, *, threads: int | None = None) -> Runner:
    """Open the encoder or the decoder of a conversion in the runtime that reads it here."""
    path = conversion.folder / f"{part}{conversion.suffix}"
    if conversion.suffix == ".xml":
        arithmetic = conversion.arithmetic if part == ENCODER else "f32"
        return OpenVinoRunner(path, threads=threads, arithmetic=arithmetic)
    return OnnxRunner(path, threads=threads)


def check_target(target: Target) -> None:
    """Check that a target's converter is installed. Raises DistillError."""
    if target == "openvino":
        import_openvino()


def check_calibration(calibration: Sequence[np.ndarray]) -> None:
    """Check that there are enough photos to calibrate by. Raises DistillError."""
    if len(calibration) < LEAST_CALIBRATION:
        raise DistillError(
            f"--precision int8: {len(calibration)} photos to calibrate by, and {LEAST_CALIBRATION} is the least; give "
            "a folder of more: --calibrate IMAGES"
        )


def _write_int8(part: str, graph: Graph, steps: Collection[str], path: Path, calibration: Sequence[np.ndarray]) -> None:
    """Write a graph in int8; the decoder stays in float32, since a call of it costs little beside the encoder's."""
    if part == DECODER or not steps:
        save_graph(graph.model, path)
        return
    source = path.with_name(f"{path.name}.float32")
    save_graph(graph.model, source)
    quantize(graph.model, steps, source, path, calibration)
    source.unlink()


def _convert_to_openvino(
    graphs: Mapping[str, Graph],
    steps: Mapping[str, Collection[str]],
    folder: Path,
    precision: Precision,
    calibration: Sequence[np.ndarray],
    simplified: bool,
) -> Conversion:
    openvino = import_openvino()
    for part, graph in graphs.items():
        source = folder / f"{part}.onnx"
        if precision == "int8":
            _write_int8(part, graph, steps[part], source, calibration)
        else:
            save_graph(graph.model, source)
        model = openvino.convert_model(source)
        openvino.save_model(model, folder / f"{part}.xml", compress_to_fp16=precision in ("fp16", "bf16"))
        source.unlink()
    arithmetic = "bf16" if precision == "bf16" else "f32"
    version = openvino.__version__.split("-")[0]
    return Conversion(folder, ".xml", f"OpenVINO {version}, {arithmetic}", True, simplified, arithmetic=arithmetic)
