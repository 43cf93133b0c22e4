"""Docstrings read at first sight: a function's begins with a verb, sentences are short, and words are plain.

`python tests/test_english.py [PATH ...]` lists what is to mend.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("distill", "tools")
MAX_WORDS = 32  # of a sentence; the house style asks for about 25
BANNED = re.compile(
    r"\b(anew|aught|naught|thereof|therein|wherein|whither|that are there|that is there|of others)\b|\bsay, "
)
# The words with which a function's docstring may begin, beside those that end in -ise or -ize. Add yours there.
VERBS = frozenset(Path(__file__).with_name("verbs.txt").read_text(encoding="utf-8").split())


def docstrings(path: Path) -> Iterator[tuple[str, str, bool]]:
    """Yield place, text and whether it must begin with a verb, of each docstring of a file.

    Properties, classes and modules begin with a noun.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            continue
        text = ast.get_docstring(node)
        if text is None:
            continue
        line = getattr(node, "lineno", 1)
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        decorators = {ast.unparse(d).rpartition(".")[2] for d in getattr(node, "decorator_list", [])}
        yield f"{path}:{line}", text, is_function and not decorators & {"property", "cached_property", "fixture"}


def sentences(text: str) -> Iterator[str]:
    """Yield the prose sentences of a docstring; indented blocks, lists and tables of columns are left out."""
    for block in re.split(r"\n\s*\n", text):
        prose = [line for line in block.splitlines() if not line.startswith((" ", "\t", "-", "*", ">", "|"))]
        if any(re.search(r"\S {3,}\S", line) for line in prose):
            continue  # a table
        yield from re.split(r"(?<=[.!?:;])\s+", " ".join(prose))


def faults(path: Path) -> list[str]:
    """Return what is to mend in the docstrings of one file, a line each."""
    found = []
    for place, text, needs_verb in docstrings(path):
        first = text.split()[0].strip("`.,;:()").lower() if text.split() else ""
        if needs_verb and first not in VERBS and not first.endswith(("ise", "ize")):
            found.append(f"{place}: does not begin with a verb: {text.splitlines()[0][:60]!r}")
        found += [
            f"{place}: a sentence of {len(sentence.split())} words: {sentence[:60]!r}"
            for sentence in sentences(text)
            if len(sentence.split()) > MAX_WORDS
        ]
        if banned := BANNED.search(text):
            found.append(f"{place}: say {banned[0]!r} in plain words")
    return found


FILES = sorted(path for folder in CODE for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=[path.relative_to(ROOT).as_posix() for path in FILES])
def test_docstrings(path):
    assert faults(path) == []


if __name__ == "__main__":
    chosen = [Path(name) for name in sys.argv[1:]] or FILES
    files = [file for path in chosen for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    lines = [line for file in files for line in faults(file)]
    print("\n".join([*lines, f"{len(lines)} to mend"]))
