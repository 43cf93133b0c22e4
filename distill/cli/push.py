"""`distill push`: upload a student, its card and its recipe to the Hugging Face Hub."""

from __future__ import annotations

import argparse

from distill.cli.arguments import Subparsers, add_command
from distill.text import say

EPILOG = """\
examples:
  distill push runs/l0_mask my-name/l0 --dry-run      # lists the files; nothing leaves this machine
  distill push runs/l0_mask my-name/l0 --private

Uploads student.safetensors, README.md and recipe.yaml in one commit, and writes nothing here. README.md is the model
card with the scores that `distill card RUN --add EVALUATION` added, and with no others; a card that you edited to keep
goes as it is. recipe.yaml has ??? in the place of this machine's paths.

The repository is made where there is none. Log in before: hf auth login.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add `distill push`."""
    parser = add_command(subparsers, "push", "upload a student to the Hugging Face Hub", EPILOG)
    parser.add_argument("model", metavar="RUN", help="a run directory or a student.safetensors")
    parser.add_argument("repo_id", metavar="REPO_ID", help="OWNER/NAME")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--message", default="Upload of a distilled student", help="of the commit")
    parser.add_argument("--dry-run", action="store_true", help="only list what would be uploaded")
    parser.set_defaults(run=push)


def push(arguments: argparse.Namespace) -> int:
    """List the files, and upload them. Raises RunError when the Hub refuses."""
    from distill.cards.hub import check_repo_id, files_to_push, push_files

    check_repo_id(arguments.repo_id)
    files = files_to_push(arguments.model)
    for file in files:
        say(f"{file.num_bytes:>14,} bytes  {file.name}")
    if arguments.dry_run:
        say(f"would be uploaded to {arguments.repo_id}; nothing was")
        return 0
    address = push_files(files, arguments.repo_id, private=arguments.private, message=arguments.message)
    say(f"uploaded: {address}")
    return 0
