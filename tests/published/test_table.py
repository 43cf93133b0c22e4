"""The standing table: our counts beside the published ones, the commands, and the page of the documents.

`python tests/published/test_table.py` writes docs/tables.md again.
"""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal
from pathlib import Path

import pytest

from distill.published.measured import OwnCounts, Throughput, agrees
from distill.published.numbers import Count, published_numbers
from distill.published.table import Row, command_lines, table_rows, to_csv, to_json, to_markdown

PAGE = Path(__file__).parents[2] / "docs" / "tables.md"
BEGIN, END = (f"<!-- distill tables --markdown: {edge} -->\n" for edge in ("begin", "end"))


def counted_rows() -> list[Row]:
    """Return the rows of all models with our counts, which take seconds."""
    numbers = published_numbers()
    return table_rows(numbers, numbers.models, counted=("parameters", "macs"))


def page_with(rows: list[Row]) -> str:
    """Return the page with the tables that these rows make."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}\n{to_markdown(rows, published_numbers().models)}\n{END}{rest.split(END)[1]}"


@pytest.mark.slow  # builds every published encoder on the meta device
def test_counts_agree_or_say_why_and_the_page_shows_them():
    rows = counted_rows()
    numbers = published_numbers()
    counted = [row for row in rows if row.here is not None]
    can_be_built = {model.name for model in numbers.models if model.student is not None}
    assert {row.model for row in counted} == can_be_built
    for row in counted:
        assert row.agrees or row.note, f"{row.model}: {row.measure} {row.published}, here {row.here}"
    assert sum(row.agrees is False for row in counted) <= 3  # those of which the source counts something else
    assert page_with(rows) == PAGE.read_text(encoding="utf-8"), "run python tests/published/test_table.py"


def test_every_row_has_a_source():
    numbers = published_numbers()
    rows = table_rows(numbers, numbers.models)
    assert len(rows) == sum(len(list(model.values)) for model in numbers.models)
    assert all(row.source and row.url.startswith("https://") and row.published is not None for row in rows)
    assert all(row.here is None and row.agrees is None for row in rows)
    scores = [row for row in rows if row.measure in ("ap", "miou")]
    assert all(row.prompt and row.mask and row.photos for row in scores)
    assert all(row.boxes for row in scores if "box" in row.prompt)


def test_the_tolerance_is_half_a_unit_or_a_hundredth_of_the_macs():
    def count(measure: str, value: str) -> Count:
        return Count(measure, "model", Decimal(value), "source")  # type: ignore[arg-type]

    assert agrees(count("parameters", "47.7"), Decimal("47.65")) and agrees(count("parameters", "35"), Decimal("35.5"))
    assert not agrees(count("parameters", "47.7"), Decimal("47.64"))
    assert agrees(count("macs", "2973"), Decimal("2980.5")) and agrees(count("macs", "35"), Decimal("34.5"))
    assert not agrees(count("macs", "94"), Decimal("245.6"))


def test_the_part_that_was_counted_is_compared():
    own = OwnCounts(encoder_parameters=30_000_000, model_parameters=34_000_000, encoder_macs=35_000_000_000)
    assert own.beside(Count("parameters", "model", Decimal(1), "source")) == 34
    assert own.beside(Count("parameters", "encoder", Decimal(1), "source")) == 30
    assert own.beside(Count("macs", "not stated", Decimal(1), "source")) == 35


def test_commands_are_there_where_weights_and_photos_are():
    numbers = published_numbers()

    def commands(name: str) -> list[str]:
        models = [numbers.model(name)]
        return command_lines(table_rows(numbers, models), models)

    assert (
        "distill evaluate efficientvit_sam_xl1.pt eval/efficientvit_sam/coco_box --name efficientvit_sam_xl1 "
        "data.images=coco2017/val run=OUT"
    ) in commands("efficientvit_sam_xl1")
    prepared, note, command = commands("nano_sam")
    assert prepared.startswith("distill convert checkpoint.pth") and note.startswith("# the source ran TensorRT")
    assert command.startswith("distill evaluate nano_sam.safetensors eval/coco_box data.images")
    assert not commands("efficient_sam_ti")  # a decoder of its own
    assert not commands("edge_sam_10x")  # no released weights
    assert not any("SA-23" in line or "in_the_wild" in line for line in commands("sam_vit_h"))


def test_throughput_is_named_for_the_machine():
    numbers = published_numbers()
    found = Throughput("a processor, 2 threads", {"edge_sam": 6.25})
    rows = table_rows(numbers, numbers.find("edge"), throughput=found)
    here = [row for row in rows if row.source == "measured here"]
    assert [(row.model, float(row.here or 0)) for row in here] == [
        (name, 6.25) for name in ("edge_sam", "edge_sam_3x", "edge_sam_10x")
    ]
    assert all(row.published is None and row.on.startswith("a processor, 2 threads, fp32") for row in here)


@pytest.mark.parametrize("name", ["mobile_sam", "tiny_sam_quantized"])
def test_json_and_csv_hold_the_same_numbers(name):
    numbers = published_numbers()
    models = [numbers.model(name)]
    rows = table_rows(numbers, models)
    document = json.loads(to_json(rows, models))
    lines = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert [row["published"] for row in document["rows"]] == [float(line["published"]) for line in lines]
    assert [row["source"] for row in document["rows"]] == [line["source"] for line in lines]
    assert set(document["why"]) == ({name} if models[0].why else set())


if __name__ == "__main__":
    PAGE.write_text(page_with(counted_rows()), encoding="utf-8")
    print(f"{PAGE}: written")
