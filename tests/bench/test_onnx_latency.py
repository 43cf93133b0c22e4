from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from distill.bench.onnx_latency import onnx_latency


def test_a_larger_input_takes_longer(tmp_path: Path) -> None:
    times = []
    for size in (32, 1024):
        path = tmp_path / f"{size}.onnx"
        pixels = torch.zeros(1, 3, size, size)
        torch.onnx.export(nn.Conv2d(3, 16, 7), (pixels,), str(path), input_names=["pixels"], dynamo=False)
        times.append(onnx_latency(path, seconds=0.1))
    assert 0 < times[0] < times[1]
