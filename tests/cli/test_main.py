"""The command line: exit codes, clear lines, and no heavy import on the way to help or a check."""

from __future__ import annotations

import argparse
import errno
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import distill.cli
from distill.cli import main as cli
from distill.errors import RunError

HEAVY = {"torch", "torchvision", "lightning", "timm", "numpy", "segment_anything", "matplotlib", "pycocotools"}
PROGRAM = """
import sys
from distill.cli.main import main
code = main(sys.argv[1:])
print(*sys.modules, file=sys.stderr)
sys.exit(code)
"""


def run(arguments: list[str], cwd: Path) -> tuple[int, str, set[str]]:
    """Return exit code, stdout and top-level modules of a command in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, cwd=cwd, timeout=60, check=False
    )
    return done.returncode, done.stdout, {name.partition(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"], ["recipes", "ls"]])
def test_help_imports_nothing_heavy(tmp_path, arguments):
    code, output, modules = run(arguments, tmp_path)
    assert code == 0 and output
    assert not modules & HEAVY


def test_check_imports_nothing_heavy(tmp_path):
    """Beside numpy, which it needs to count the photos, and which takes a tenth of a second."""
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "sa_000000.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    arguments = ["check", "quickstart/feature", "data.images=shards", "run=out", "teacher.source=online"]
    code, output, modules = run(arguments, tmp_path)
    assert (code, output.splitlines()[-1]) == (0, "quickstart/feature: no mistakes found")
    assert not modules & (HEAVY - {"numpy"})


@pytest.mark.parametrize("module", ["distill", "distill.cli.main"])
def test_module_runs(tmp_path, module):
    done = subprocess.run(
        [sys.executable, "-m", module, "recipes", "show", "eval/coco_box"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert done.stdout.startswith("# Masks from ground-truth boxes")


def test_every_command_file_is_listed():
    folder = Path(distill.cli.__path__[0])
    files = {
        ".".join(path.relative_to(folder).with_suffix("").parts)
        for path in folder.rglob("*.py")
        if "def add_parser(" in path.read_text()
    }
    assert files == set(cli.COMMANDS)


def leaves(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Return the parsers of all commands, including those with actions of their own."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                found += [child, *leaves(child)]
    return found


def test_every_command_has_examples():
    commands = next(a for a in cli.build_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    for name, parser in commands.items():
        assert f"distill {name}" in (parser.epilog or ""), name


def test_every_leaf_command_runs_something():
    for parser in leaves(cli.build_parser()):
        if not leaves(parser):
            assert parser.get_default("run") is not None, parser.prog


def test_the_users_mistake_is_clear_lines_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["check", "quickstart/feature", "data.imagez=x", "optim.lr=fast"]) == 2
    error = capsys.readouterr().err
    assert "data.imagez: unknown key. Did you mean 'data.images' or 'data.val_images'?" in error
    assert "optim.lr: expected a number, got 'fast'" in error
    assert "Traceback" not in error


def test_wrong_usage_is_exit_code_2(capsys):
    assert cli.main([]) == 2
    assert cli.main(["chekc"]) == 2
    assert cli.main(["check", "quickstart/feature", "--nope", "run=x"]) == 2
    assert "unrecognized arguments: --nope" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "near"), [(["trian", "quickstart/feature"], "train"), (["cache", "biuld", "quickstart/cache"], "build")]
)
def test_a_mistyped_command_is_told_the_near_one(capsys, words, near):
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert f"Did you mean '{near}'?" in error and "Traceback" not in error


def test_no_command_shows_the_help(capsys):
    assert cli.main([]) == 2
    shown = capsys.readouterr()
    assert "examples:" in shown.out and "quickstart" in shown.out and not shown.err


def test_overrides_may_come_after_options(capsys):
    assert cli.main(["check", "quickstart/feature", "--resolved", "optim.lr=fast"]) == 2
    assert "override 'optim.lr=fast'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RunError("the mend"), 2, "error: the mend\n"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 2, "the disk is full while writing runs/x"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ValueError("a fault of ours"), 1, "Traceback"),
        (PermissionError(errno.EACCES, "denied", "x"), 1, "Traceback"),
    ],
)
def test_exit_codes(monkeypatch, capsys, error, code, message):
    def fail(arguments: argparse.Namespace) -> int:
        raise error

    def parser() -> argparse.ArgumentParser:
        failing = argparse.ArgumentParser()
        failing.set_defaults(run=fail)
        return failing

    monkeypatch.setattr(cli, "build_parser", parser)
    assert cli.main([]) == code
    captured = capsys.readouterr().err
    assert message in captured
    assert ("Traceback" in captured) == (code == 1)


def test_recipes_copy_never_overwrites(tmp_path, capsys):
    target = tmp_path / "mine.yaml"
    assert cli.main(["recipes", "copy", "efficientvit_sam/l0_feature", str(target)]) == 0
    assert "efficientvit_sam_l0" in target.read_text()
    target.write_text("precious")
    assert cli.main(["recipes", "copy", "efficientvit_sam/l1_feature", str(target)]) == 2
    assert target.read_text() == "precious"
    assert "not overwritten" in capsys.readouterr().err
    assert cli.main(["recipes", "copy", "eval/coco_box", str(tmp_path / "no" / "x.yaml")]) == 2
    assert cli.main(["recipes", "copy", "eval/coco_box", str(tmp_path)]) == 0
    assert (tmp_path / "coco_box.yaml").is_file()


def test_a_copied_recipe_still_finds_its_parent(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.main(["recipes", "copy", "efficientvit_sam/l0_feature", "mine.yaml"])
    cli.main(["check", "mine.yaml"])
    assert "extends" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("quickstart/cache", "distill cache build"),
        ("quickstart/mask", "distill train"),
        ("l0_feature_10k", "distill train"),
        ("eval/everything", "distill evaluate MODEL"),
    ],
)
def test_the_command_after_a_copy_fits_the_recipe(tmp_path, capsys, name, command):
    for options in ([], ["--resolved"]):
        target = tmp_path / f"mine{len(options)}.yaml"
        assert cli.main(["recipes", "copy", name, str(target), *options]) == 0
        assert capsys.readouterr().out == f"wrote {target}; run it with: {command} {target}\n"


def test_a_resolved_copy_keeps_its_head_and_the_sources_of_its_values(tmp_path, capsys):
    target = tmp_path / "mine.yaml"
    assert cli.main(["recipes", "copy", "efficientvit_sam/l0_mask", str(target), "--resolved"]) == 0
    text = target.read_text()
    assert text.startswith("# EfficientViT-SAM-L0, stage 2") and f"distill train {target} data.images" in text
    assert "extends" not in text and "  dice_weight: 1.0  # sam_trainer.py\n" in text
    assert "  images: ???\n" in text


def test_the_end_of_a_recipes_name_is_enough_where_no_other_ends_so(capsys):
    assert cli.main(["recipes", "show", "l0_feature"]) == 0
    short = capsys.readouterr().out
    assert cli.main(["recipes", "show", "efficientvit_sam/l0_feature"]) == 0
    assert short == capsys.readouterr().out
    assert cli.main(["recipes", "show", "feature"]) == 2
    error = capsys.readouterr().err
    assert "several packaged recipes; give one:" in error and "mobile_sam/feature, nano_sam/feature" in error
    assert cli.main(["check", "l0_feature", "optim.lr=fast"]) == 2
    assert "optim.lr: expected a number" in capsys.readouterr().err


def test_recipes_ls_lists_kinds_and_summaries(capsys):
    assert cli.main(["recipes", "ls"]) == 0
    output = capsys.readouterr().out
    assert "efficientvit_sam/xl1_mask" in output
    assert "_feature.yaml" not in output and "efficientvit_sam/_mask" not in output
