"""The documents are true to the code: links, paths, names, commands, examples and the order of wings."""

from __future__ import annotations

import argparse
import ast
import importlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from distill import students
from distill.cli.main import build_parser
from distill.config.loading import packaged_recipes
from distill.data.catalogue import read_dataset
from distill.losses import feature
from distill.stages.base import TrainingStage
from tests.fixtures.command_lines import check_command, check_recipe, distill_arguments, shell_lines
from tests.test_imports import GROUND, RANK, imports
from tests.test_imports import WINGS as ALL_WINGS

ROOT = Path(__file__).parents[1]
WINGS = tuple(wing for wing in ALL_WINGS if wing != "__main__")
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = sorted(
    {*GUIDES, *ROOT.glob("*.md"), *(path for folder in ("distill", "tools") for path in (ROOT / folder).rglob("*.md"))}
)
ARCHITECTURE = ROOT / "docs" / "architecture.md"
FENCE = re.compile(r"^ *```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^ *```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
SHELLS = ("bash", "sh", "console")
# A name that the reader is to choose: `my_loss`, `test_my_loss.py`, NAME.
OWN = re.compile(r"my_|My|(?<![A-Z])(NAME|COMMAND)\b")
STOP = re.compile(
    r"^\d+\. \[`(?P<path>distill/[\w/]+\.py)`\]\([^)]*\), (?P<names>(?:`[\w.]+`(?: and |, )?)+): ", re.MULTILINE
)


def identify(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, *languages: str) -> list[str]:
    """Return the fenced blocks of these languages, without the indentation of a list."""
    found = FENCE.finditer(path.read_text(encoding="utf-8"))
    return [
        re.sub(r"^ {2,3}(?=\S| )", "", m["body"], flags=re.MULTILINE) if m[0].startswith(" ") else m["body"]
        for m in found
        if m["language"] in languages
    ]


def prose(path: Path) -> str:
    """Return a document without its fenced blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def spans(path: Path) -> list[str]:
    """Return what stands between single backticks."""
    return re.findall(r"`([^`\n]+)`", prose(path))


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def expand(text: str) -> Iterator[str]:
    """Yield the texts of `a{b,c}d`."""
    parts = re.split(r"\{([^}]*)\}", text)
    yield from map("".join, itertools.product(*(part.split(",") if i % 2 else [part] for i, part in enumerate(parts))))


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_links_lead_somewhere(page):
    for target in (match["target"] for match in LINK.finditer(prose(page))):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        file = page.parent / place if place else page
        assert file.exists(), f"{target} of {identify(page)}"
        if anchor:
            assert anchor in anchors(file), f"{target} of {identify(page)}"


@pytest.mark.parametrize("page", GUIDES, ids=identify)
def test_paths_exist(page):
    """A path of the tree exists, or is a packaged recipe's name; a file of the reader's own goes into a real folder."""
    pattern = r"(?<![\w/.\-$])(?:distill|tests|tools|recipes|datasets|docs|\.github|\.ci)/[\w./{},*\-]*"
    for text in re.findall(pattern, page.read_text(encoding="utf-8")):
        for name in expand(text.rstrip(".,")):
            path = ROOT / name
            if OWN.search(name):
                assert OWN.search(path.parent.name) or path.parent.is_dir(), f"{name}: no such folder"
            elif not list(ROOT.glob(name.rstrip("/"))):
                assert name in packaged_recipes() or list((ROOT / "recipes").glob(f"{name}.yaml")), (
                    f"no such file: {name}"
                )


@pytest.mark.parametrize("page", GUIDES, ids=identify)
def test_dotted_names_import(page):
    for name in sorted(set(re.findall(r"(?<![\w/.\-])distill(?:\.[A-Za-z_]\w*)+", page.read_text(encoding="utf-8")))):
        if not OWN.search(name):
            resolve(name)


def test_names_of_the_changelog_import():
    text = (ROOT / "CHANGELOG.md").read_text()
    for name in re.findall(r"`(distill\.[\w.]+)", text.partition("### Changed")[0]):
        resolve(name)
    rows = re.findall(r"^  \| (`distill\..+?) \| (.+) \|$", text, re.MULTILINE)
    assert len(rows) > 10
    for before, now in rows:
        module = ""
        for name in re.findall(r"`([\w.]+)`", now):
            module = name if name.startswith("distill.") else module
            if not OWN.search(name):
                resolve(name if name == module else f"{module}.{name}")
        assert len(re.findall(r"`distill\.", before)) == len(re.findall(r"`distill\.", now)) or "(" in before


def resolve(name: str) -> object:
    """Import a dotted name: a module, or what stands in one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"{name} cannot be imported")


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_the_parser_takes_every_command(page):
    for line in itertools.chain.from_iterable(map(shell_lines, blocks(page, *SHELLS))):
        arguments = distill_arguments(line)
        if arguments and not OWN.search(arguments[0]):
            check_command(arguments)


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_commands_named_in_prose_exist(page):
    """`distill cache build` and `distill recipes ls|show` name commands and actions; options must be theirs."""
    for span in spans(page):
        words = span.split()
        if words[0] == "distill" and len(words) > 1 and not OWN.search(words[1]) and words[1] != "COMMAND":
            check_prefix(build_parser(), words[1:], span)


def check_prefix(parser: argparse.ArgumentParser, words: list[str], span: str) -> None:
    """Check the names of a command and its actions, and that its options are the parser's."""
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not actions or not words or words[0].startswith("-"):
        for option in (word.partition("=")[0] for word in words if word.startswith("--")):
            assert option in parser._option_string_actions, f"{span}: no {option}"
        return
    for name in words[0].split("|"):
        assert name in actions[0].choices, f"{span}: no {name}"
        check_prefix(actions[0].choices[name], words[1:], span)


@pytest.mark.parametrize("page", GUIDES, ids=identify)
def test_python_examples_compile_and_import(page):
    for block in blocks(page, "python"):
        tree = ast.parse(block)
        wanted = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        wanted = [node for node in wanted if not OWN.search(ast.unparse(node))]
        exec(compile(ast.Module(wanted, []), identify(page), "exec"), {})


@pytest.mark.parametrize("page", GUIDES, ids=identify)
def test_yaml_examples_are_sound(page, tmp_path):
    """An example of a recipe or of a data set is read as `distill` reads it; paths need not be there."""
    for i, block in enumerate(blocks(page, "yaml")):
        file = tmp_path / f"{yaml.safe_load(block).get('name', i)}.yaml"
        file.write_text(block)
        if "splits" in yaml.safe_load(block):
            read_dataset(file)
        else:
            check_recipe(str(file), [])


def example(text: str) -> dict[str, Any]:
    """Run the one Python block of the contributor's guide that holds a text. Return what it defines."""
    (block,) = [block for block in blocks(ROOT / "CONTRIBUTING.md", "python") if text in block]
    found = {**vars(students), **vars(feature)}  # the modules that the examples of a student and a loss add lines to
    exec(compile(block, text, "exec"), found)
    return found


def test_the_plugin_of_the_readme_is_the_tested_one():
    shown = [*blocks(ROOT / "README.md", "toml"), *blocks(ROOT / "README.md", "python")]
    for file in ("pyproject.toml", "my_students.py"):
        assert (ROOT / "tests" / "plugin_example" / file).read_text() in shown


def test_the_student_of_the_guide_works():
    build = example("class MyNet")["build"]
    encoder = build("my_net", image_size=64, embedding_dim=16, embedding_size=4)
    assert encoder(torch.zeros(2, 3, 64, 64)).shape == (2, 16, 4, 4)
    student = example("STUDENTS = {")["STUDENTS"]["my_net"]
    assert student.image_size == 512


def test_the_loss_of_the_guide_works():
    loss = example("def masked_l1")["masked_l1"]
    student, teacher, valid = torch.ones(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool)
    assert loss(student, teacher, valid) == 1 and loss(student, student, valid) == 0


def test_the_stage_of_the_guide_is_complete():
    stage = example("class MyStage")["MyStage"]
    assert issubclass(stage, TrainingStage) and not getattr(stage, "__abstractmethods__", None)


def test_the_command_of_the_guide_works(teacher_file, capsys):
    subparsers = argparse.ArgumentParser().add_subparsers()
    found = example("def my_command")
    found["add_parser"](subparsers)
    arguments = subparsers.choices["my_command"].parse_args([str(teacher_file)])
    assert arguments.run(arguments) == 0
    assert int(capsys.readouterr().out) > 0


def test_the_table_of_wings_is_in_their_order():
    rows = re.findall(r"^\| `(\w+)/?` \|", prose(ARCHITECTURE), re.MULTILINE)
    assert [row for row in rows if row not in GROUND] == list(WINGS)
    assert {row for row in rows if row in GROUND} == GROUND


def test_the_tower_shows_imports_that_are_there():
    """Each arrow of the diagram is an import of the code, and points down; every wing has at least one."""
    (diagram,) = blocks(ARCHITECTURE, "mermaid")
    arrows = []
    for line in diagram.splitlines():
        if "-->" in line:
            start, ends = line.split("-->")
            arrows += [(start.strip(), end.strip()) for end in ends.split("&")]
    real = {
        (wing, name.split(".")[1])
        for wing in WINGS
        for path in (ROOT / "distill" / wing).rglob("*.py")
        for name in imports(path)
        if name.startswith("distill.")
    }
    for start, end in arrows:
        if end != "ground":
            assert (start, end) in real, f"{start} does not import {end}"
            assert RANK[start] > RANK[end]
    assert {start for start, _ in arrows} == set(WINGS)


def journeys() -> dict[str, list[tuple[str, list[str]]]]:
    """Return the journeys of the architecture: for each heading, its stops as path and names."""
    sections = re.split(r"^### ", ARCHITECTURE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    found = {section.splitlines()[0]: list(STOP.finditer(section)) for section in sections}
    return {
        title: [(stop["path"], re.findall(r"`([\w.]+)`", stop["names"])) for stop in stops]
        for title, stops in found.items()
        if stops
    }


def test_there_are_five_journeys():
    items = re.findall(r"^\d+\. ", ARCHITECTURE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(journeys()) == 5
    assert sum(len(stops) for stops in journeys().values()) == len(items), "a stop is not written as the others are"


def test_each_stop_defines_what_it_is_named_for():
    for title, stops in journeys().items():
        for path, names in stops:
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            for name in names:
                scope: list[ast.stmt] = tree.body
                for part in name.split("."):
                    found = [node for node in scope if part in defined(node)]
                    assert found, f"{title}: {path} defines no {name}"
                    scope = getattr(found[0], "body", [])


def defined(node: ast.stmt) -> set[str]:
    """Return the names that a statement of a module or class binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    return set()


def test_each_stop_is_reached_from_an_earlier_one():
    """A stop is imported by one before it, or is named in a registry that one before it reads."""
    for title, stops in journeys().items():
        reached = [stops[0][0]]
        for path, _ in stops[1:]:
            module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            texts = [(ROOT / before).read_text(encoding="utf-8") for before in reached]
            assert any(reaches(text, module) for text in texts), f"{title}: nothing before {path} names it"
            reached.append(path)


def reaches(text: str, module: str) -> bool:
    package, _, name = module.rpartition(".")
    forms = (
        rf"\b(?:from|import) {re.escape(module)}\b",
        rf"\bfrom {re.escape(package)} import \(?[^)\n]*\b{name}\b",
        rf"[\"']{re.escape(module)}[\"']",
        rf'^\s*"{name}",$',  # the list of commands
    )
    return any(re.search(form, text, re.MULTILINE) for form in forms)
