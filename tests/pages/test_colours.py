from __future__ import annotations

import pytest

from distill.pages.colours import DARK, LIGHT, NUM_SERIES, themed


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2.1."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted(map(luminance, (first, second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_text_can_be_read(palette: dict[str, str]) -> None:
    for ground in ("page", "raised", "note"):
        assert all(contrast(palette[name], palette[ground]) >= 4.5 for name in ("ink", "quiet", "link")), ground


def test_series_stand_out() -> None:
    assert all(contrast(DARK[f"series-{i}"], DARK["page"]) >= 4.5 for i in range(1, NUM_SERIES + 1))
    assert all(contrast(LIGHT[f"series-{i}"], LIGHT["page"]) >= 2 for i in range(1, NUM_SERIES + 1))


def test_colours_become_variables_in_styles_alone() -> None:
    ink = LIGHT["ink"]
    drawn = themed(f'<path style="fill: none; stroke: {ink}"/><path style="fill: #123456"/><text>{ink}</text>')
    assert f"stroke: var(--ink, {ink})" in drawn and "fill: #123456" in drawn and f"<text>{ink}</text>" in drawn


def test_no_two_names_share_a_light_colour() -> None:
    assert len(set(LIGHT.values())) == len(LIGHT)
