"""A folder of photographs, without annotations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from distill.data.catalogue import resolve_photos
from distill.data.images import PHOTO_SUFFIXES, key_of
from distill.errors import DataError


class FolderPhoto(NamedTuple):
    """One photo: its key (the path below the folder) and its path."""

    key: str
    path: Path


class PhotoFolder:
    """The photos of a folder and of the folders in it; iterating yields them ordered by key.

    Hidden files are left out. The argument is a path, or names a prepared public set (distill.data.catalogue).

    Raises:
        DataError: there is no such folder, it holds no photo, or two photos have the same key.
    """

    def __init__(self, images_dir: str | Path) -> None:
        self.images_dir = resolve_photos(images_dir)
        if not self.images_dir.is_dir():
            raise DataError(f"{self.images_dir}: no such folder; give a folder of photos")
        photos: dict[str, Path] = {}
        for path in sorted(self.images_dir.rglob("*")):
            relative = path.relative_to(self.images_dir)
            hidden = any(part.startswith(".") for part in relative.parts)
            if hidden or path.suffix.lower() not in PHOTO_SUFFIXES or not path.is_file():
                continue
            key = key_of(relative)
            if key in photos:
                raise DataError(f"{photos[key]} and {path} have the same key '{key}'; rename one")
            photos[key] = path
        if not photos:
            raise DataError(
                f"{self.images_dir}: no photo in it ({', '.join(PHOTO_SUFFIXES)}); give a folder that holds photos"
            )
        self._photos = dict(sorted(photos.items()))

    def __len__(self) -> int:
        return len(self._photos)

    def __iter__(self) -> Iterator[FolderPhoto]:
        for key, path in self._photos.items():
            yield FolderPhoto(key, path)
