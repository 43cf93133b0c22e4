from __future__ import annotations

from pathlib import Path

import pytest

from distill.data.folder import PhotoFolder
from distill.errors import DataError


def test_photos_of_all_folders_by_key(tmp_path: Path, jpeg) -> None:
    for name in ("b/x.jpg", "b/y.PNG", "a.v2.webp", "notes.txt", ".hidden/z.jpg", "b/.trash.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg())
    folder = PhotoFolder(tmp_path)
    assert [photo.key for photo in folder] == ["a_v2", "b_x", "b_y"]
    assert len(folder) == 3


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("no photos here")
    with pytest.raises(DataError, match="no photo in it.*give a folder that holds photos"):
        PhotoFolder(tmp_path)


def test_an_absent_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        PhotoFolder(tmp_path / "nowhere")


def test_two_photos_of_one_key_are_an_error(tmp_path: Path, jpeg) -> None:
    for name in ("x.jpg", "x.png"):
        (tmp_path / name).write_bytes(jpeg())
    with pytest.raises(DataError, match="same key 'x'"):
        PhotoFolder(tmp_path)
