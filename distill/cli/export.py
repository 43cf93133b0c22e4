"""`distill export`: write a model as ONNX files."""

from __future__ import annotations

import argparse
from pathlib import Path

from distill.cli.arguments import Subparsers, add_command
from distill.text import MILLION, say

EPILOG = """\
examples:
  distill export runs/mask --out onnx
  distill export runs/mask/checkpoints/best.ckpt --out onnx
  distill export mobile_sam.pt --name mobile_sam --out onnx

Writes encoder.onnx, decoder.onnx and model.json. The encoder has its batch norms and branches fused and takes any batch
size. The decoder takes any number of prompts of one photo at once: points and boxes as labelled points, and earlier
masks; it gives four low-res masks for each. model.json holds sizes and pixel statistics. Both ONNX files are run in
onnxruntime and compared with torch before they get their names.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add `distill export`."""
    parser = add_command(subparsers, "export", "ONNX files of a model", EPILOG, description="Export a model to ONNX.")
    parser.add_argument("model", help="student.safetensors, a run directory, a .ckpt, 'quickstart', or a .pt/.pth")
    parser.add_argument("--name", help="which model a released .pt/.pth holds, as efficientvit_sam_l0")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the directory to write")
    parser.add_argument("--opset", type=int, metavar="N", help="version of ONNX's operators (default: 17)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the files and print how much their answers differ from torch's."""
    from distill.export.onnx import export_onnx
    from distill.export.trace import OPSET
    from distill.models.checkpoint import load_model

    model = load_model(arguments.model, name=arguments.name)
    for exported in export_onnx(model, arguments.out, opset=arguments.opset or OPSET):
        size = exported.path.stat().st_size / MILLION
        say(f"{exported.path}  {size:.1f} MB, within {exported.difference:.0e} of torch")
    return 0
