"""`distill push`: upload a student, its card and its recipe to the Hugging Face Hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from distill.cli.arguments import add_command
from distill.errors import RunError

EPILOG = """\
examples:
  distill push runs/l0_mask my-name/l0 --dry-run      # lists the files; nothing leaves this machine
  distill push runs/l0_mask my-name/l0 --private

Uploads student.safetensors, README.md (the model card, written now if it is not there) and recipe.yaml in one commit.
The repository is made where there is none. Log in before: hf auth login.
"""
FURTHER_FILES = ("README.md", "recipe.yaml")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `distill push`."""
    parser = add_command(subparsers, "push", "upload a student to the Hugging Face Hub", EPILOG)
    parser.add_argument("model", metavar="RUN", help="a run directory or a student.safetensors")
    parser.add_argument("repo_id", metavar="REPO_ID", help="OWNER/NAME")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--message", default="Upload of a distilled student", help="of the commit")
    parser.add_argument("--dry-run", action="store_true", help="only list what would be uploaded")
    parser.set_defaults(run=push)


def push(arguments: argparse.Namespace) -> int:
    """Check the name, write the card, and upload. Raises RunError when the Hub refuses."""
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(arguments.repo_id)
    except HFValidationError as error:
        raise RunError(f"'{arguments.repo_id}': {error}; a repository is OWNER/NAME") from error
    files = files_to_push(arguments.model)
    for path in files:
        print(f"{path.stat().st_size:>14,} bytes  {path}")
    if arguments.dry_run:
        print(f"would be uploaded to {arguments.repo_id}; nothing was")
        return 0
    api = HfApi()
    try:
        api.create_repo(arguments.repo_id, private=arguments.private or None, exist_ok=True)
        operations = [CommitOperationAdd(path.name, path) for path in files]
        commit = api.create_commit(arguments.repo_id, operations, commit_message=arguments.message)
    except (HTTPError, OSError) as error:  # refused, not logged in, or no network
        reason = " ".join(str(error).split())
        raise RunError(f"{arguments.repo_id}: the Hub did not take it: {reason}; log in by `hf auth login`") from error
    print(f"uploaded: {commit.commit_url}")
    return 0


def files_to_push(model: str) -> list[Path]:
    """Return the weights, their card and their recipe. Raises CheckpointError when there are no weights."""
    from distill.cards.writing import CARD_FILE, write_card
    from distill.models.checkpoint import find_weights

    weights = find_weights(model)
    if not (weights.parent / CARD_FILE).is_file():
        write_card(weights)
    return [weights, *(path for name in FURTHER_FILES if (path := weights.parent / name).is_file())]
