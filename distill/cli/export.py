"""`distill export`: ONNX files of a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from distill.cli.arguments import add_command

EPILOG = """\
examples:
  distill export runs/mask --out onnx
  distill export mobile_sam.pt --name mobile_sam --out onnx

Writes encoder.onnx (batch norms and branches fused; any batch size), decoder.onnx (inputs and outputs as
segment-anything's: points and boxes as labelled points, an earlier mask, the photo's size; all four masks) and
model.json (sizes and pixel statistics). Both files have been run in onnxruntime and compared with torch.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(subparsers, "export", "ONNX files of a model", EPILOG, description="Export a model to ONNX.")
    parser.add_argument("model", help="student.safetensors, a run directory, 'quickstart', or a released .pt/.pth")
    parser.add_argument("--name", help="which model a released .pt/.pth holds, as efficientvit_sam_l0")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the directory to write")
    parser.add_argument("--opset", type=int, metavar="N", help="version of ONNX's operators (default: 17)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the files; print how far their answers are from torch's."""
    from distill.export.onnx import OPSET, export_onnx
    from distill.models.checkpoint import load_model

    model = load_model(arguments.model, name=arguments.name)
    for exported in export_onnx(model, arguments.out, opset=arguments.opset or OPSET):
        size = exported.path.stat().st_size / 1e6
        print(f"{exported.path}  {size:.1f} MB, within {exported.difference:.0e} of torch")
    return 0
