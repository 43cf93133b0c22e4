"""Uploads to the Hugging Face Hub: a student's weights, its card and its recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from distill.cards.writing import CARD_FILE, write_card
from distill.config.run_directory import RECIPE_FILE
from distill.errors import RunError
from distill.models.checkpoint import find_weights


def check_repo_id(repo_id: str) -> None:
    """Check the name of a repository. Raises RunError."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise RunError(f"'{repo_id}': {error}; a repository is OWNER/NAME") from error


def files_to_push(model: str) -> list[Path]:
    """Return the weights, their card and their recipe. A card that is missing is written.

    Args:
        model: a run directory or a file of weights.
    Raises:
        CheckpointError: there are no weights.
    """
    weights = find_weights(model)
    if not (weights.parent / CARD_FILE).is_file():
        write_card(weights)
    return [weights, *(path for name in (CARD_FILE, RECIPE_FILE) if (path := weights.parent / name).is_file())]


def push_files(files: Sequence[Path], repo_id: str, *, private: bool, message: str) -> str:
    """Upload files in one commit, and make the repository if there is none.

    Args:
        private: make a new repository private.
        message: of the commit.
    Returns:
        the address of the commit.
    Raises:
        RunError: the Hub refuses, nobody is logged in, or there is no network.
    """
    api = HfApi()
    try:
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        operations = [CommitOperationAdd(path.name, path) for path in files]
        commit = api.create_commit(repo_id, operations, commit_message=message)
    except (HTTPError, OSError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{repo_id}: the Hub did not take it: {reason}; log in by `hf auth login`") from error
    return str(commit.commit_url)
