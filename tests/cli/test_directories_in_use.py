"""Every command that writes a directory refuses one that another process holds, and leaves what is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from distill.cli.main import main
from distill.lock import hold_directory

COMMANDS = {
    "evaluate": (
        ["evaluate", "oracle", "eval/coco_box", "data.images=photos", "data.annotations=truth.json", "run=held"],
        "run=DIR",
    ),
    "compare": (["compare", "quickstart", "--no-bench", "--out", "held"], "--out DIR"),
    "quickstart": (["quickstart", "--out", "held"], "--out DIR"),
    "shards build": (["shards", "build", "folder", "--images", "photos", "--out", "held"], "--out DIR"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_directory_in_use_is_refused(tmp_path: Path, monkeypatch, capsys, command: str):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Image.new("RGB", (40, 30)).save("photos/0.jpg")
    Path("truth.json").write_text('{"images": [], "annotations": [], "categories": []}')
    arguments, give = COMMANDS[command]
    with hold_directory(Path("held"), give=give):
        before = sorted(Path("held").iterdir())
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert "'held' is in use by process" in error and error.endswith(f"or give another directory: {give}\n")
        assert sorted(Path("held").iterdir()) == before
