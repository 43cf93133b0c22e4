"""`distill convert`: released checkpoints into our format, and our students into the released format."""

from __future__ import annotations

import argparse
from pathlib import Path

from distill.cli.arguments import Subparsers, add_command
from distill.errors import DistillError
from distill.text import say

OURS, PUBLISHED = "distill", "published"

EPILOG = """\
examples:
  distill convert efficientvit_sam_l0.pt --name efficientvit_sam_l0 --out l0.safetensors
  distill convert checkpoint.pth --name nano_sam --decoder mobile_sam.pt --out nano_sam.safetensors
  distill convert runs/mask --to published --out efficientvit_sam_l0.pt

Reads .pt and .pth files, with their tensors at the top or under "model" or "state_dict", with or without the prefixes
of DDP and torch.compile; and safetensors files. Every tensor must fit: the error lists all that do not. Code in a file
is never run.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add `distill convert`."""
    parser = add_command(subparsers, "convert", "read and write released checkpoints", EPILOG)
    parser.add_argument("model", metavar="IN", help="a released file, a student.safetensors, or a run directory")
    parser.add_argument("--name", help="which model a released file holds: `distill students ls`")
    parser.add_argument(
        "--decoder", metavar="FILE", help="a model file whose decoder completes a file of only an encoder"
    )
    parser.add_argument(
        "--to",
        choices=(OURS, PUBLISHED),
        default=OURS,
        help="our safetensors, or the file that the student's own repository loads (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Load a model, check that every tensor fits, and write it in the other format."""
    suffixes = (".safetensors",) if arguments.to == OURS else (".pt", ".pth")
    if arguments.out.suffix not in suffixes:
        raise DistillError(f"--out {arguments.out}: this format's files end in {' or '.join(suffixes)}")

    from distill.models.checkpoint import load_model, save_model, save_published

    model = load_model(arguments.model, name=arguments.name, decoder=arguments.decoder)
    save = save_model if arguments.to == OURS else save_published
    save(model, arguments.out)
    say(f"{arguments.out}  {model.spec.encoder}, {len(model.state_dict())} tensors read")
    return 0
