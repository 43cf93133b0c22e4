"""Files are complete or absent, and the disk's errors say what to do."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill import files
from distill.errors import CacheError, DataError, RunError
from distill.files import commit_file, temporary_path, write_errors, write_json, write_text, write_whole


def test_a_new_file_and_a_replaced_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"first")
    assert path.read_bytes() == b"first"
    write_whole(path, b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["file"]  # no temporary file is left


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises(DataError, match="file: cannot be written: the disk is full"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    """Only a name that no reader opens is left of a process that dies before the rename."""
    path = tmp_path / "file"
    write_whole(path, b"old")
    program = "import os, pathlib, sys; from distill import files; files.os.replace = lambda *_: os._exit(9); "
    program += "files.write_whole(pathlib.Path(sys.argv[1]), b'new')"
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == 9
    assert path.read_bytes() == b"old"
    left = [name for name in os.listdir(tmp_path) if name != "file"]
    assert len(left) == 1 and left[0].startswith("file.") and left[0].endswith(files.TEMPORARY_SUFFIX)


def test_writers_never_share_a_temporary_name(tmp_path: Path) -> None:
    path = tmp_path / "file"
    names = {temporary_path(path) for _ in range(100)}
    assert len(names) == 100 and {name.parent for name in names} == {tmp_path}


def test_a_file_appears_when_it_is_committed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    temporary = temporary_path(path)
    file = temporary.open("xb")
    file.write(b"content")
    assert not path.exists()
    commit_file(file, temporary, path)
    assert file.closed and path.read_bytes() == b"content" and not temporary.exists()


def test_text_is_utf_8_and_json_ends_with_a_line_break(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "größer\n")
    assert (tmp_path / "text").read_bytes() == "größer\n".encode()
    write_json(tmp_path / "a.json", {"b": [1, None], "a": 0.1})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text == '{\n  "b": [\n    1,\n    null\n  ],\n  "a": 0.1\n}\n'
    write_json(tmp_path / "b.json", {"a": 1}, indent=1)
    assert (tmp_path / "b.json").read_text(encoding="utf-8") == '{\n "a": 1\n}\n'
    assert json.loads(text) == {"b": [1, None], "a": 0.1}


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "1\n"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        *((code, "the disk is full (or a quota is reached); free some space or choose another cache.dir, and run the "
           "command again: finished shards are kept") for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)),
        *((code, f"{os.strerror(code)}: not writable; choose another cache.dir or change its permissions")
          for code in (errno.EACCES, errno.EPERM, errno.EROFS)),
        (errno.EIO, f"{os.strerror(errno.EIO)}; check the file system or choose another cache.dir, and run the command "
         "again: finished shards are kept"),
    ],
)  # fmt: skip
def test_errors_of_the_disk_say_the_mend(code: int, message: str) -> None:
    cause = OSError(code, os.strerror(code))
    with (
        pytest.raises(CacheError) as raised,
        write_errors(Path("c/x.tar"), CacheError, elsewhere="another cache.dir", note="finished shards are kept"),
    ):
        raise cause
    assert str(raised.value) == f"c/x.tar: cannot be written: {message}"
    assert raised.value.__cause__ is cause


def test_without_a_note_the_message_ends_with_the_mend() -> None:
    with pytest.raises(DataError) as raised, write_errors(Path("x")):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(raised.value).endswith("choose another place, and run the command again")


def test_other_errors_pass_through() -> None:
    with contextlib.suppress(ValueError), write_errors(Path("x")):
        raise ValueError
    with pytest.raises(RunError), write_errors(Path("x")):
        raise RunError("of its own")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "no" / "file"
    with pytest.raises(RunError, match="no/file: cannot be written: No such file or directory"):
        write_whole(path, b"", raises=RunError)
    with pytest.raises(RunError, match="no/file: cannot be written"):
        write_json(path, {}, raises=RunError)
