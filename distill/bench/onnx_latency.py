"""The speed of an exported encoder in onnxruntime."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
import torch

SECONDS = 2.0  # of timed passes
MIN_REPEATS, MAX_REPEATS = 3, 50


def onnx_latency(path: Path, *, seconds: float = SECONDS) -> float:
    """Return the median milliseconds of one photo in the encoder of a file, on the CPU with as many threads as torch.

    Args:
        path: as `distill.export.onnx.export_encoder` writes it.
        seconds: the time that the timed passes take, about.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (pixels,) = session.get_inputs()
    noise = np.random.default_rng(0).standard_normal((1, *pixels.shape[1:]), np.float32)  # (1, 3, S, S)
    elapsed: list[float] = []
    for i in range(MAX_REPEATS + 1):
        started = time.perf_counter()
        session.run(None, {pixels.name: noise})
        if i:  # the first pass warms up
            elapsed.append(time.perf_counter() - started)
        if len(elapsed) >= MIN_REPEATS and sum(elapsed) > seconds:
            break
    return 1e3 * statistics.median(elapsed)
