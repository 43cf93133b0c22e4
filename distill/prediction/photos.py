"""Which photos are meant: files, folders and patterns become names and paths."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from distill.data.images import PHOTO_SUFFIXES
from distill.errors import DataError


class NamedPhoto(NamedTuple):
    """A photo. name: begins the names of its files, and may hold folders; shown: its path below what was given."""

    name: str
    path: Path
    shown: str


def find_photos(given: Sequence[str | Path]) -> list[NamedPhoto]:
    """Return the photos of files, folders (with the folders in them) and patterns such as `shots/*.jpg`.

    A photo of a folder is named by its path in it, any other by its file. Where two photos would have the same name,
    such as a.jpg and a.png, the suffix belongs to it: a_jpg and a_png. Each photo is returned once.

    Raises:
        DataError: there is no such file or folder, or none that fits a pattern; a folder holds no photo; or two
            photos have the same name all the same.
    """
    found: dict[Path, Path] = {}  # the absolute path of each photo -> its path below what was given
    paths: dict[Path, Path] = {}
    for text in given:
        for path, below in _expand(str(text)):
            found.setdefault(path.absolute(), below)
            paths.setdefault(path.absolute(), path)
    stems = Counter(below.with_suffix("") for below in found.values())
    photos: dict[str, NamedPhoto] = {}
    for absolute, below in found.items():
        stem = below.with_suffix("")
        if stems[stem] > 1:
            stem = below.with_name(f"{below.stem}_{below.suffix.lstrip('.')}")
        name = stem.as_posix()
        if name in photos:
            raise DataError(
                f"{photos[name].path} and {paths[absolute]}: both would be named {name}; give the folder that holds "
                "both, or take them one after the other with another --out"
            )
        photos[name] = NamedPhoto(name, paths[absolute], below.as_posix())
    return list(photos.values())


def _expand(text: str) -> Iterator[tuple[Path, Path]]:
    """Yield the path of each photo, and its path below the folder that was given."""
    path = Path(text)
    if path.is_dir():
        photos = sorted(photo for photo in path.rglob("*") if _is_photo(photo, path))
        if not photos:
            raise DataError(f"{path}: no photo in this folder ({', '.join(PHOTO_SUFFIXES)})")
        yield from ((photo, photo.relative_to(path)) for photo in photos)
    elif not path.exists() and glob.has_magic(text):
        matches = sorted(Path(match) for match in glob.glob(text, recursive=True))
        photos = [match for match in matches if match.is_file()]
        if not photos:
            raise DataError(f"{text}: no file fits this pattern")
        yield from ((photo, Path(photo.name)) for photo in photos)
    else:
        yield path, Path(path.name)


def _is_photo(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and path.suffix.lower() in PHOTO_SUFFIXES and path.is_file()
