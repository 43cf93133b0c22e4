"""`distill cache`: the command as a user runs it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill.cli import main as cli
from distill.data.cache.manifest import Sidecar
from tests.fixtures.caches import contents, promised

COMMAND = [sys.executable, "-m", "distill.cli.main", "cache", "build"]


@pytest.fixture
def recipe(teacher_file: Path, photo_shards, tmp_path: Path) -> list[str]:
    """Return the arguments of a job over four shards."""
    photo_shards(8, 2)
    return ["quickstart/cache", f"teacher.name={teacher_file}", f"data.images={tmp_path / 'images'}"]


def test_build_stats_verify(recipe, tmp_path, capsys):
    cache = tmp_path / "cache"
    build = ["cache", "build", *recipe, f"cache.dir={cache}", "cache.codec=int8"]
    assert cli.main(build) == 0
    output = capsys.readouterr().out
    assert "8 photos in 4 shards" in output and "64 pixels to 32 x 8 x 8" in output
    assert "int8: " in output and "bytes an image" in output and "relative L2" in output and "8 embeddings" in output
    before = contents(cache)

    assert cli.main(build) == 0
    assert "4 of 4 shards are finished and kept" in capsys.readouterr().out
    assert contents(cache) == before

    assert cli.main(["cache", "stats", str(cache)]) == 0
    output = capsys.readouterr().out
    assert "4 of 4 finished" in output and "8 of 8" in output and "int8" in output

    assert cli.main(["cache", "verify", str(cache)]) == 0
    assert "4 shards, every byte as it was written" in capsys.readouterr().out


def test_verify_names_the_damage_and_its_mend_works(recipe, tmp_path, capsys):
    cache = tmp_path / "cache"
    build = ["cache", "build", *recipe, f"cache.dir={cache}"]
    assert cli.main(build) == 0
    before = contents(cache)
    for name in ("sa_000000.tar", "sa_000002.json"):
        damaged = bytearray(before[name])
        damaged[len(damaged) // 2] ^= 4
        (cache / name).write_bytes(damaged)
    (cache / "sa_000003.tar").unlink()
    (cache / "notes.txt").touch()
    capsys.readouterr()
    assert cli.main(["cache", "verify", str(cache)]) == 2
    printed = capsys.readouterr()
    named = [line.partition(":")[0] for line in printed.out.splitlines()]
    assert named == ["sa_000000.tar", "sa_000002.json", "sa_000003.tar", "notes.txt"]
    assert "4 of its files" in printed.err and "'distill cache repair RECIPE cache.dir=" in printed.err
    for name in named:
        (cache / name).unlink(missing_ok=True)
    assert cli.main(build) == 0
    assert contents(cache) == before


def test_repair_names_the_damage_and_mends_it(recipe, tmp_path, capsys):
    cache = tmp_path / "cache"
    options = [*recipe, f"cache.dir={cache}"]
    assert cli.main(["cache", "build", *options]) == 0
    before = contents(cache)
    damaged = bytearray(before["sa_000001.tar"])
    damaged[700] ^= 1
    (cache / "sa_000001.tar").write_bytes(damaged)
    (cache / "sa_000002.json").unlink()
    capsys.readouterr()
    assert cli.main(["cache", "repair", *options]) == 0
    output = capsys.readouterr().out
    assert (
        "sa_000001.tar: damaged" in output and "sa_000002.tar: unfinished" in output and "2 problems mended" in output
    )
    assert contents(cache) == before

    (cache / "notes.txt").touch()
    assert cli.main(["cache", "repair", *options]) == 2
    printed = capsys.readouterr()
    assert "notes.txt: foreign" in printed.out and "1 files are not this cache's, or are in use" in printed.err
    assert cli.main(["cache", "repair", *options, "--remove-foreign"]) == 0
    assert contents(cache) == before
    assert cli.main(["cache", "repair", *options]) == 0
    assert "nothing to repair" in capsys.readouterr().out


def test_a_spot_check_asks_the_teacher(recipe, tmp_path, capsys):
    cache = tmp_path / "cache"
    assert cli.main(["cache", "build", *recipe, f"cache.dir={cache}", "cache.codec=int8"]) == 0
    spot = ["cache", "verify", str(cache), "--spot", "3", "--recipe", *recipe]
    assert cli.main(spot) == 0
    assert re.search(r"the teacher again on 3 random samples: cosine (0\.999|1\.000)", capsys.readouterr().out)
    for mistake in (["--spot", "3"], ["--recipe", recipe[0]], [recipe[1]]):
        assert cli.main(["cache", "verify", str(cache), *mistake]) == 2
        assert "--spot N and --recipe RECIPE go together" in capsys.readouterr().err


def test_plan(recipe, tmp_path, capsys):
    options = [*recipe, f"cache.dir={tmp_path / 'cache'}"]
    assert cli.main(["cache", "plan", *options, "--devices", "3"]) == 0
    output = capsys.readouterr().out
    for words in ("plan: 8 photos as fp16", "on 3 devices", "int8", "bf16", "mask IoU", "recommendation: "):
        assert words in output
    assert cli.main(["cache", "plan", *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_images"] == 8 and found["num_devices"] == 1 and found["speeds"]["build"] > 0
    assert {"fp16", "bf16", "int8"} <= {cost["codec"] for cost in found["codecs"]}
    assert {path.name for path in tmp_path.iterdir()} == {"images"}


def test_build_prints_the_plan_first(recipe, tmp_path, capsys):
    build = ["cache", "build", *recipe, f"cache.dir={tmp_path / 'cache'}"]
    assert cli.main(build) == 0
    assert capsys.readouterr().out.startswith("plan: 8 photos as fp16: ")
    assert cli.main(build) == 0
    assert "plan: " not in capsys.readouterr().out  # nothing is left to do


def test_a_stale_cache_is_refused(recipe, tmp_path, capsys):
    cache = f"cache.dir={tmp_path / 'cache'}"
    assert cli.main(["cache", "build", *recipe, cache]) == 0
    assert cli.main(["cache", "build", *recipe, cache, "cache.codec=bf16"]) == 2
    error = capsys.readouterr().err
    assert "codec (cache.codec): fp16 in the cache, bf16 in the recipe" in error and "Traceback" not in error


@pytest.mark.parametrize("action", ["stats", "verify"])
def test_no_cache_there(tmp_path, capsys, action):
    assert cli.main(["cache", action, str(tmp_path)]) == 2
    assert "no embedding cache there; 'distill cache build" in capsys.readouterr().err


def test_mistakes_in_the_recipe_write_nothing(recipe, tmp_path, capsys):
    arguments = ["cache", "build", *recipe, f"cache.dir={tmp_path / 'cache'}", "cache.codec=int4", "cache.batch_size=0"]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert "cache.codec" in error and "cache.batch_size" in error
    assert not (tmp_path / "cache").exists()


def test_corrupt_photos_are_counted_in_the_summary(teacher_file, photo_shards, tmp_path, capsys):
    photo_shards(8, 2, bad={5})
    arguments = ["cache", "build", "quickstart/cache", f"teacher.name={teacher_file}"]
    arguments += [f"data.images={tmp_path / 'images'}", f"cache.dir={tmp_path / 'cache'}"]
    assert cli.main([*arguments, "data.max_bad_share=0.1"]) == 2
    assert "1 of 8 photos cannot be decoded (photo5)" in capsys.readouterr().err
    assert cli.main([*arguments, "data.max_bad_share=0.2"]) == 0
    assert "7 embeddings" in capsys.readouterr().out
    assert cli.main(["cache", "stats", str(tmp_path / "cache")]) == 0
    assert "1 (photo5)" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(recipe, tmp_path, one_thread):
    """Start them by Lightning Fabric, over gloo. Rank 1 meets the error of rank 0 and does not hang."""
    assert cli.main(["cache", "build", *recipe, f"cache.dir={tmp_path / 'one'}"]) == 0
    two = [*COMMAND, *recipe, f"cache.dir={tmp_path / 'two'}", "--devices", "2"]
    subprocess.run(two, check=True, capture_output=True, timeout=120)
    assert promised(tmp_path / "one") == promised(tmp_path / "two")
    refused = subprocess.run([*two, "cache.codec=int8"], check=False, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2 and "fp16 in the cache, int8 in the recipe" in refused.stderr


@pytest.mark.slow
def test_killed_and_restarted(teacher_file, photo_shards, tmp_path, one_thread):
    """Kill the job in the middle, and run the same command: it gives the bytes of an undisturbed run."""
    photo_shards(200, 5)
    recipe = ["quickstart/cache", f"teacher.name={teacher_file}", f"data.images={tmp_path / 'images'}"]
    assert cli.main(["cache", "build", *recipe, f"cache.dir={tmp_path / 'undisturbed'}"]) == 0
    cache = tmp_path / "cache"
    job = subprocess.Popen([*COMMAND, *recipe, f"cache.dir={cache}"], stdout=subprocess.DEVNULL)
    while job.poll() is None and not (cache / "sa_000003.json").exists():
        time.sleep(0.002)
    job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    finished = [Sidecar.read(cache, path.with_suffix(".tar").name) for path in cache.glob("sa_*.json")]
    assert 0 < len(finished) < 40
    assert cli.main(["cache", "build", *recipe, f"cache.dir={cache}"]) == 0
    assert promised(cache) == promised(tmp_path / "undisturbed")
