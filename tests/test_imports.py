"""Imports run one way: tools -> datasets -> distill, and inside distill from the stages down to the errors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import distill
import distill.datasets
import distill.tools

# Each room may import from itself, its line and the lines above.
ORDER = (
    ("errors", "allocator", "config", "published", "released"),
    ("geometry", "prompts", "clicks", "noise", "drawing", "refinement", "batch", "answers", "intervals"),
    ("losses", "students", "metrics", "decoder", "fuse"),
    ("sam",),
    ("checkpoint", "export", "optim", "predictor"),
    ("teacher",),
    ("start", "stages"),
    ("recipe_checks",),
    ("recipe", "run", "cost", "loggers"),
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
FOLDERS = {"distill": distill, "datasets": distill.datasets, "tools": distill.tools}


def imports(path: Path) -> Iterator[str]:
    """The dotted names that a file imports, anywhere in it; imports for type checkers alone do not count."""
    for node in ast.walk(_without_type_checking(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            if node.module == "distill":
                yield from (f"distill.{alias.name}" for alias in node.names)


def _without_type_checking(tree: ast.Module) -> ast.Module:
    class Remover(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:
            is_typing = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return None if is_typing else self.generic_visit(node)

    return Remover().visit(tree)


def files(folder: str) -> list[Path]:
    return sorted(Path(FOLDERS[folder].__path__[0]).rglob("*.py"))


def folder_of(name: str) -> str | None:
    """The folder of the repository that a module of ours lives in."""
    parts = name.split(".")
    if parts[0] != "distill":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ("datasets", "tools", "recipes") else "distill"


@pytest.mark.parametrize(
    ("folder", "forbidden"), [("distill", {"datasets", "tools"}), ("datasets", {"tools", "recipes"})]
)
def test_folders(folder, forbidden):
    for path in files(folder):
        for name in imports(path):
            assert folder_of(name) not in forbidden, f"{path} imports {name}"


def test_rooms_of_distill():
    root = Path(distill.__path__[0])
    for path in files("distill"):
        room = path.relative_to(root).parts[0].removesuffix(".py")
        for name in imports(path):
            parts = name.split(".")
            if folder_of(name) != "distill" or len(parts) < 2:
                continue
            assert RANK.get(parts[1], -1) <= RANK.get(room, len(ORDER)), f"{path} imports {name}"


def test_every_room_has_its_place():
    root = Path(distill.__path__[0])
    rooms = {path.relative_to(root).parts[0].removesuffix(".py") for path in files("distill")}
    assert rooms - {"__init__", "weights"} <= set(RANK), "give new rooms their place in ORDER"


def test_only_our_name_is_imported():
    for folder in FOLDERS:
        for path in files(folder):
            for name in imports(path):
                assert name.partition(".")[0] not in ("datasets", "tools", "recipes", "tests"), f"{path} imports {name}"
