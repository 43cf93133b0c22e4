"""The directory that a comparison writes: its files, and which directories are refused. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from distill.errors import RunError
from distill.lock import contents

PAGE_FILE, CSV_FILE, MARKDOWN_FILE = "index.html", "table.csv", "table.md"
BENCH_FILE, EVALUATIONS = "bench.json", "evaluations"
OWN_FILES = (PAGE_FILE, CSV_FILE, MARKDOWN_FILE, BENCH_FILE, EVALUATIONS)


def check_directory(out: Path) -> None:
    """Check that a comparison may be written to a directory: a new one, or one of an earlier comparison.

    Raises:
        RunError: the path is a file, or the directory holds something else.
    """
    if out.exists() and not out.is_dir():
        raise RunError(f"--out {out}: this is a file; give a directory")
    if strange := [path.name for path in contents(out) if path.name not in OWN_FILES]:
        raise RunError(f"--out {out}: holds something else ({strange[0]}); give another directory")
