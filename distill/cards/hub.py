"""Uploads to the Hugging Face Hub: a student's weights, its card and its recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from omegaconf import MISSING, OmegaConf

from distill.cards.writing import CARD_FILE, is_ours, read_measured, whole_card
from distill.config.paths import local_paths
from distill.config.run_directory import RECIPE_FILE, read_recipe_tree
from distill.config.schema import RECIPE_KINDS
from distill.config.settings import flatten
from distill.errors import RunError
from distill.models.checkpoint import find_weights


def check_repo_id(repo_id: str) -> None:
    """Check the name of a repository. Raises RunError."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise RunError(f"'{repo_id}': {error}; a repository is OWNER/NAME") from error


@dataclass(frozen=True)
class Upload:
    """A file of a repository: its name there, and its content, which is a file here or bytes."""

    name: str
    content: Path | bytes

    @property
    def num_bytes(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


def files_to_push(model: str) -> list[Upload]:
    """Return the weights, their card and their recipe. Nothing is written.

    The card is what `distill card` would write now of what was added to it, so it holds no score of other weights. A
    card that its owner keeps is taken as it is. The recipe has `???` in the place of this machine's paths.

    Args:
        model: a run directory or a file of weights.
    Raises:
        DistillError: there are no weights, or card.json is damaged.
    """
    weights = find_weights(model)
    folder = weights.parent
    card = CARD_FILE, whole_card(weights, read_measured(weights)).encode() if is_ours(folder) else folder / CARD_FILE
    uploads = [Upload(weights.name, weights), Upload(*card)]
    if tree := read_recipe_tree(folder):
        uploads.append(Upload(RECIPE_FILE, published_recipe(tree).encode()))
    return uploads


def published_recipe(tree: Mapping[str, Any]) -> str:
    """Return a recipe for readers elsewhere: what they have to give stands as `???`."""
    values = dict(flatten(tree))
    paths = local_paths(values, RECIPE_KINDS[tree["kind"]]) if tree.get("kind") in RECIPE_KINDS else set()
    shown = OmegaConf.create(dict(tree))
    for key in paths:
        OmegaConf.update(shown, key, MISSING)
    head = "# The recipe that trained this student. Where it says ???, give a path of your own.\n"
    return head + OmegaConf.to_yaml(shown)


def push_files(files: Sequence[Upload], repo_id: str, *, private: bool, message: str) -> str:
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
        operations = [CommitOperationAdd(file.name, file.content) for file in files]
        commit = api.create_commit(repo_id, operations, commit_message=message)
    except (HTTPError, OSError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{repo_id}: the Hub did not take it: {reason}; log in by `hf auth login`") from error
    return str(commit.commit_url)
