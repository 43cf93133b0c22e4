"""`distill tables`: its forms, a model that has no numbers, and help that needs no torch."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import pytest
import torch

from distill.cli.main import main
from distill.published.measured import processor_name


def test_tables_of_one_model_explain_and_say_commands(capsys):
    assert main(["tables", "mobile_sam"]) == 0
    text = capsys.readouterr().out
    assert "39.4 %" in text and "42.7 %" in text and "10.13 M" in text
    assert "MobileSAM: The three APs on COCO are of one released model." in text
    assert "\ndistill evaluate mobile_sam.pt eval/coco_detections --name mobile_sam data.images=coco2017/val" in text


def test_many_models_are_not_explained(capsys):
    assert main(["tables", "--measure", "none"]) == 0
    shown = capsys.readouterr()
    assert "NanoSAM's README" in shown.out and "distill evaluate" not in shown.out
    assert "of at most 3 models" in shown.err


def test_forms(capsys):
    def printed(*options: str) -> str:
        assert main(["tables", "edge", "--measure", "none", *options]) == 0
        return capsys.readouterr().out

    rows = json.loads(printed("--json"))["rows"]
    lines = list(csv.DictReader(io.StringIO(printed("--csv"))))
    assert [row["model"] for row in rows] == [line["model"] for line in lines] and len(rows) > 8
    assert "| edge_sam | AP | 42.2 % | " in printed("--markdown")


@pytest.mark.slow  # times a published encoder
def test_throughput_of_this_machine(tmp_path, capsys):
    kept = tmp_path / "speeds.json"
    command = ["tables", "efficientvit_sam*", "--measure", "throughput", "--seconds", "0.01", "--json"]
    assert main([*command, "--only", "efficientvit_sam_l0", "--keep", str(kept)]) == 0
    shown = capsys.readouterr()
    rows = [row for row in json.loads(shown.out)["rows"] if row["source"] == "measured here"]
    assert [row["model"] for row in rows] == ["efficientvit_sam_l0"]
    assert rows[0]["here"] > 0 and rows[0]["published"] is None
    assert rows[0]["on"].startswith(processor_name()) and "thread" in rows[0]["on"]
    assert "efficientvit_sam_l0: " in shown.err and "(1 of 1)" in shown.err
    assert json.loads(kept.read_text())["by_student"] == {"efficientvit_sam_l0": rows[0]["here"]}


def test_kept_throughput_is_not_measured_again(tmp_path, capsys):
    kept = tmp_path / "speeds.json"
    threads = torch.get_num_threads()
    machine = f"{processor_name()}, {threads} thread{'s' if threads != 1 else ''}"
    content = {"machine": machine, "seconds": 2.0, "by_student": {"sam_vit_h": 0.125}}
    kept.write_text(json.dumps(content))
    command = ["tables", "sam_vit_h", "--measure", "throughput", "--keep", str(kept), "--json"]
    assert main(command) == 0
    row = json.loads(capsys.readouterr().out)["rows"][-1]
    assert (row["source"], row["here"]) == ("measured here", 0.125)
    for change, words in (
        ({"machine": "an abacus"}, "measured on an abacus for 2 s each, and this is"),
        ({"by_student": {"sam_vit_h": -1}}, "give a file that --keep wrote"),
    ):
        kept.write_text(json.dumps({**content, **change}))
        assert main(command) == 2
        assert words in capsys.readouterr().err


def test_mistakes(capsys):
    assert main(["tables", "mobil_sam"]) == 2
    assert "no published numbers of 'mobil_sam'. Did you mean 'mobile_sam'" in capsys.readouterr().err
    assert main(["tables", "--measure", "accuracy"]) == 2
    assert main(["tables", "--csv", "--json"]) == 2
    assert main(["tables", "--only", "edge_sam"]) == 2
    assert "add --measure throughput" in capsys.readouterr().err
    assert main(["tables", "--measure", "throughput", "--only", "edge_sma"]) == 2
    assert "no published numbers of 'edge_sma'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", ["'--help'", "'--measure', 'none', '--csv'"])
def test_what_measures_nothing_loads_no_torch(tmp_path, arguments):
    program = f"import sys; from distill.cli.main import main; main(['tables', {arguments}]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert not {"torch", "timm"} & set(done.stdout.splitlines()[-1].split())
