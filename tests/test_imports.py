"""Imports run one way: each wing imports itself, the ground rooms and the wings above it in WINGS."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import distill

ROOT = Path(distill.__file__).parent
# Single files that every wing may import.
GROUND = {"errors", "files", "leases", "lock", "geometry", "batch", "memory", "outside", "secret", "text"}
WINGS = (
    "students",
    "config",
    "prompts",
    "losses",
    "models",
    "runtimes",
    "data",
    "prediction",
    "evaluation",
    "stages",
    "training",
    "export",
    "pages",
    "cards",
    "bench",
    "published",
    "comparison",
    "adapt",
    "quickstart",
    "demo",
    "cli",
    "__main__",
)
RANK = {**dict.fromkeys(GROUND, -1), **{wing: rank for rank, wing in enumerate(WINGS)}}
MOST_FILES = 20  # of code in one folder


def imports(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, anywhere in it. Imports for type checkers alone do not count."""
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


def wing_of(path: Path) -> str:
    """Return the wing or ground room of a file of the package."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def ways_up() -> list[str]:
    """Return a line for each import of a wing further down the list."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        wing = wing_of(path)
        for name in imports(path):
            parts = name.split(".")
            if wing != "__init__" and parts[0] == "distill" and len(parts) > 1 and RANK.get(parts[1], -1) > RANK[wing]:
                found.append(f"{path.relative_to(ROOT)} imports {name}")
    return found


def test_no_wing_imports_one_below_it():
    assert ways_up() == []


def test_every_wing_has_its_place():
    wings = {wing_of(path) for path in ROOT.rglob("*.py")}
    assert wings - {"__init__"} == set(RANK), "give new wings their place in WINGS"


def test_no_folder_is_crowded():
    for folder in {path.parent for path in ROOT.rglob("*.py")}:
        files = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= MOST_FILES, f"{folder}: {len(files)} files"


def test_nothing_is_imported_that_is_not_the_package():
    for path in ROOT.rglob("*.py"):
        for name in imports(path):
            assert name.partition(".")[0] not in ("datasets", "tools", "recipes", "tests"), f"{path} imports {name}"


if __name__ == "__main__":
    print("\n".join(ways_up()) or "every import runs up the list of wings")
