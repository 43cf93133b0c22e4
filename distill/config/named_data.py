"""Names of public sets in the place of paths, such as `data.images: coco2017/train`.

The catalogue itself (datasets/*.yaml) is read by `distill.data.catalogue`. Here are the rules that need no more than
the names of its files: which values are names, and where a prepared set lies.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import distill.recipes

ROOT_VARIABLE = "DISTILL_DATASETS"  # the folder under which each set lies in a folder of its name
SET_ROOT = f"{ROOT_VARIABLE} is not set; set it to the folder that holds your sets: export {ROOT_VARIABLE}=DIR"


class SplitName(NamedTuple):
    """A set of the catalogue and one of its splits; an empty split means the only one."""

    dataset: str
    split: str

    def __str__(self) -> str:
        return f"{self.dataset}/{self.split}" if self.split else self.dataset

    @property
    def prepare_command(self) -> str:
        """The command that prepares this split."""
        return f"distill datasets prepare {self.dataset}" + (f" --split {self.split}" if self.split else "")


def catalogue_files(root: Path | None = None) -> dict[str, Path]:
    """Return the YAML file of each set by the set's name: the packaged ones and the user's own in `root`.

    One of the user's own replaces a packaged one of the same name.
    """
    # In the source tree and in a wheel alike, the sets lie beside the recipes.
    packaged = Path(distill.recipes.__path__[0]).with_name("datasets")
    folders = [packaged, *([root] if root is not None else [])]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def set_folder(root: Path | None, dataset: str) -> Path | None:
    """Return the folder of the files of a set: in the package if they ship with it, else ROOT/NAME.

    Return None if the set does not ship with the package and there is no `root`.
    """
    beside = catalogue_files(root)[dataset].with_suffix("")
    if beside.is_dir():
        return beside
    return None if root is None else root / dataset


def datasets_root() -> Path | None:
    """Return the folder of the user's sets, or None if the environment names none."""
    value = os.environ.get(ROOT_VARIABLE)
    return Path(value).expanduser() if value else None


def parse_split_name(value: str | Path) -> SplitName | None:
    """Return the set and the split that a value names, or None if the value is a path or an address.

    A path that exists stays a path. So does everything that begins with a slash, a dot or a tilde, or ends in a suffix.
    """
    text = str(value)
    if "://" in text or text.startswith(("/", ".", "~")) or Path(text).suffix or Path(text).exists():
        return None
    dataset, _, split = text.strip("/").partition("/")
    return SplitName(dataset, split) if dataset in catalogue_files(datasets_root()) else None


def is_data_path(value: str) -> bool:
    """Return whether a value is a path of this machine: neither an address nor the name of a set."""
    return "://" not in value and parse_split_name(value) is None


def shards_folder(root: Path, name: SplitName) -> Path:
    """Return where the image shards of a prepared split lie."""
    return root / name.dataset / "shards" / name.split
