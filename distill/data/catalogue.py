"""The catalogue of public sets: what each is, its licence, where its files are published, and where it lies here.

Each set is one YAML file: those of datasets/, which ship with the package, and the user's own in the folder that
DISTILL_DATASETS names. Below that folder each set has a folder of its own name:

    NAME/...                what its files unpack to
    NAME/shards/SPLIT/      image shards, which `distill datasets prepare` builds or indexes

The photos of a small set may ship with the package. They lie in a folder beside the set's YAML file, and only its image
shards need the folder of DISTILL_DATASETS.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from distill.config.named_data import (
    SET_ROOT,
    SplitName,
    catalogue_files,
    datasets_root,
    parse_split_name,
    set_folder,
    shards_folder,
)
from distill.data.shards.defaults import SAMPLES_PER_SHARD
from distill.data.yaml_section import YamlSection, read_yaml
from distill.errors import DataError, did_you_mean

Kind = Literal["coco", "lvis", "folder", "tars"]

SPLIT_FIELD = "{split}"  # stands for the split's name in the paths that all splits share
HEX_DIGITS = {"md5": 32, "sha256": 64}
ADDRESS = re.compile(r"https?://\S+")
NAME = re.compile(r"[A-Za-z0-9][\w-]*")


@dataclass(frozen=True)
class Licence:
    """A licence by its name, and the address of its terms."""

    name: str
    terms: str


@dataclass(frozen=True)
class PublishedFile:
    """A file that a set consists of, as it is published; None stands for what is unpublished.

    name: its path below the set's folder; a pattern such as sa_*.tar stands for one or more files of any number.
    size: in bytes. unpacks_to: what an archive holds at its top, below the set's folder; None: no archive.
    """

    name: str
    url: str
    mirrors: tuple[str, ...] = ()
    size: int | None = None
    md5: str | None = None
    sha256: str | None = None
    unpacks_to: str | None = None

    @property
    def is_pattern(self) -> bool:
        """Whether the name stands for several files."""
        return "*" in self.name


@dataclass(frozen=True)
class Split:
    """A part of a set. Paths are relative: images to the folder of `photos_of`, annotations to the set's own.

    num_photos, num_masks: None where unpublished. files: names of the set's files that the split needs; photo_files: of
    the files of the set that has the photos.
    """

    name: str
    images: str
    annotations: str | None
    num_photos: int | None
    num_masks: int | None
    files: tuple[str, ...]
    photo_files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """One set of the catalogue. photos_of: the set whose photos it annotates; None: its own."""

    name: str
    title: str
    summary: str
    homepage: str
    kind: Kind
    photo_licence: Licence
    annotation_licence: Licence
    photos_of: str | None
    samples_per_shard: int
    files: dict[str, PublishedFile]
    splits: dict[str, Split]

    def split(self, name: str) -> Split:
        """Return a split by its name, or the only one for an empty name. Raises DataError, which lists them."""
        if not name and len(self.splits) == 1:
            return next(iter(self.splits.values()))
        if name in self.splits:
            return self.splits[name]
        known = did_you_mean(name, self.splits)
        if not name:
            raise DataError(f"'{self.name}' has several splits; name one, as {self.name}/SPLIT. {known}")
        raise DataError(f"'{self.name}' has no split '{name}'. {known}")


@dataclass(frozen=True)
class LocatedSplit:
    """A split of a set, and where it lies: below `root`, the folder of all sets, or in the package."""

    root: Path | None
    dataset: Dataset
    split: Split

    @property
    def name(self) -> SplitName:
        """Its name in a recipe."""
        return SplitName(self.dataset.name, self.split.name)

    @property
    def shards(self) -> Path:
        """The folder of its image shards. Raises DataError when there is no folder of all sets."""
        return shards_folder(self.root or require_root(), self.name)

    @property
    def images(self) -> Path:
        """The folder of its photos, or of the tars as they are published."""
        return self.folder(self.dataset.photos_of or self.dataset.name) / self.split.images

    @property
    def annotations(self) -> Path | None:
        """The file of its annotations; None if it has none."""
        return None if self.split.annotations is None else self.folder(self.dataset.name) / self.split.annotations

    def folder(self, dataset: str) -> Path:
        """Return the folder of the files of a set. Raises DataError when there is no folder of all sets."""
        return set_folder(self.root, dataset) or require_root() / dataset

    def unprepared(self, absent: Path) -> DataError:
        """Return the error that says what is absent, and how to prepare it."""
        return DataError(f"'{self.name}' is not prepared: {absent} is absent; run '{self.name.prepare_command}'")


def list_datasets() -> list[Dataset]:
    """Read all sets of the catalogue, in the order of their names. Raises DataError."""
    return [read_dataset(path) for _, path in sorted(catalogue_files(datasets_root()).items())]


def load_dataset(name: str, root: Path | None = None) -> Dataset:
    """Read a set by its name. Raises DataError for an unknown one, with the near ones.

    Args:
        root: the folder of the user's sets; None: what DISTILL_DATASETS names.
    """
    files = catalogue_files(root or datasets_root())
    if name not in files:
        raise DataError(f"unknown set '{name}'. {did_you_mean(name, files)}")
    return read_dataset(files[name])


def require_root() -> Path:
    """Return the folder of the user's sets. Raises DataError, which says how to set it."""
    root = datasets_root()
    if root is None:
        raise DataError(SET_ROOT)
    return root


def resolve_shards(images: str | Path) -> str | Path:
    """Return the folder of image shards that `data.images` means: a path or address as it is, or a set's.

    Raises:
        DataError: it names a set that is not prepared, or a split that the set does not have.
    """
    located = _locate(images)
    if located is None:
        return images
    if not any(located.shards.glob("*.tar")):
        raise located.unprepared(located.shards)
    return located.shards


def resolve_photos(images: str | Path) -> Path:
    """Return the folder of photos that `data.images` means: a path as it is, or a set's. Raises DataError."""
    located = _locate(images)
    if located is None:
        return Path(images)
    if located.dataset.kind == "tars":
        raise DataError(f"'{located.name}' is published as tars; this command reads a folder of photos")
    if not located.images.is_dir():
        raise located.unprepared(located.images)
    return located.images


def resolve_annotations(annotations: str | Path) -> Path:
    """Return the file of annotations that `data.annotations` means: a path as it is, or a set's. Raises DataError."""
    located = _locate(annotations)
    if located is None:
        return Path(annotations)
    if located.annotations is None:
        raise DataError(f"'{located.name}' has no annotation file; give another set, or a COCO-format JSON")
    if not located.annotations.is_file():
        raise located.unprepared(located.annotations)
    return located.annotations


def _locate(value: str | Path) -> LocatedSplit | None:
    """Return the split that a value names, or None if it is a path."""
    name = parse_split_name(value)
    if name is None:
        return None
    dataset = load_dataset(name.dataset)
    return LocatedSplit(datasets_root(), dataset, dataset.split(name.split))


def read_dataset(path: Path) -> Dataset:
    """Read the YAML file of a set.

    Raises:
        DataError: it cannot be read, a key is unknown, missing or of the wrong type, or a value is out of range.
    """
    top = read_yaml(path)
    name = top.matching("name", NAME, "letters, digits, - and _")
    if name != path.stem:
        raise top.error("name", f"is '{name}' in a file named '{path.name}'; the two must agree")
    kind = top.choice("kind", get_args(Kind))
    licences = top.section("licences")
    licence = {part: _read_licence(licences.section(part)) for part in ("photos", "annotations")}
    licences.close()
    files = {file.name: file for file in (_read_file(section) for section in top.sections("files"))}
    images = top.path("images")
    annotations = top.path("annotations") if kind in ("coco", "lvis") else None
    splits = [_read_split(section, images, annotations, files) for section in top.sections("splits")]
    dataset = Dataset(
        name=name,
        title=top.text("title"),
        summary=top.text("summary"),
        homepage=top.matching("homepage", ADDRESS, "an address (https://...)"),
        kind=kind,
        photo_licence=licence["photos"],
        annotation_licence=licence["annotations"],
        photos_of=top.text("photos_of") if top.has("photos_of") else None,
        samples_per_shard=top.count("samples_per_shard", at_least=1) or SAMPLES_PER_SHARD,
        files=files,
        splits={split.name: split for split in splits},
    )
    top.close()
    if not dataset.splits:
        raise top.error("splits", "is empty; give at least one split")
    return dataset


def _read_licence(section: YamlSection) -> Licence:
    licence = Licence(section.text("name"), section.matching("terms", ADDRESS, "an address (https://...)"))
    section.close()
    return licence


def _read_file(section: YamlSection) -> PublishedFile:
    hashes = {
        algorithm: section.matching(algorithm, re.compile(f"[0-9a-f]{{{digits}}}"), f"{digits} digits of 0-9 and a-f")
        for algorithm, digits in HEX_DIGITS.items()
        if section.has(algorithm)
    }
    file = PublishedFile(
        name=section.checked_path("", section.name),
        url=section.matching("url", ADDRESS, "an address (https://...)"),
        mirrors=section.texts("mirrors"),
        size=section.count("size", at_least=1),
        md5=hashes.get("md5"),
        sha256=hashes.get("sha256"),
        unpacks_to=section.path("unpacks_to") if section.has("unpacks_to") else None,
    )
    section.close()
    return file


def _read_split(section: YamlSection, images: str, annotations: str | None, files: dict[str, PublishedFile]) -> Split:
    needed = section.texts("files") if section.has("files") else tuple(files)
    for name in needed:
        if name not in files:
            raise section.error("files", f"'{name}' is not among the set's files. {did_you_mean(name, files)}")
    split = Split(
        name=section.checked_path("", section.name),
        images=images.replace(SPLIT_FIELD, section.name),
        annotations=None if annotations is None else annotations.replace(SPLIT_FIELD, section.name),
        num_photos=section.count("photos", at_least=1),
        num_masks=section.count("masks"),
        files=needed,
        photo_files=section.texts("photo_files"),
    )
    section.close()
    return split
