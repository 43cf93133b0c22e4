"""The colours of pages and plots, light and dark, as CSS variables that follow the reader's setting."""

from __future__ import annotations

import re

# Name of the CSS variable -> its colour on a light and on a dark page.
# The seven series are Okabe and Ito's colours, which people with any colour vision tell apart, without their yellow:
# too pale on white. The dark ones are the same hues, lightened to a contrast of at least 4.5 with the dark page.
PALETTE = {
    "page": ("#ffffff", "#14191f"),
    "raised": ("#f3f5f8", "#222a33"),
    "ink": ("#1c2733", "#e4e9ee"),
    "quiet": ("#4a5868", "#aab5c1"),
    "faint": ("#d8dee6", "#36414d"),
    "axis": ("#8a94a0", "#7d8894"),
    "link": ("#005a8c", "#7cc4f2"),
    "note": ("#fff6e0", "#33290f"),
    "note-edge": ("#e69f01", "#d99a1a"),
    "series-1": ("#0072b2", "#4da3e0"),
    "series-2": ("#d55e00", "#f2803a"),
    "series-3": ("#009e73", "#2fc298"),
    "series-4": ("#cc79a7", "#e09cc3"),
    "series-5": ("#e69f00", "#f0b840"),
    "series-6": ("#56b4e9", "#97d3f7"),
    "series-7": ("#333333", "#c9d0d8"),
}
NUM_SERIES = sum(name.startswith("series-") for name in PALETTE)
LIGHT = {name: light for name, (light, _) in PALETTE.items()}
DARK = {name: dark for name, (_, dark) in PALETTE.items()}
STYLE_ATTRIBUTE = re.compile(r'style="[^"]*"')
COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_NAMES = {light: name for name, light in LIGHT.items()}


def themed(svg: str) -> str:
    """Return an SVG whose colours of the light palette are variables, so that they become dark with the page.

    Each keeps its light value for the case that the SVG is taken out of the page.
    """

    def variable(found: re.Match[str]) -> str:
        name = _NAMES.get(found[0])
        return found[0] if name is None else f"var(--{name}, {found[0]})"

    return STYLE_ATTRIBUTE.sub(lambda style: COLOUR.sub(variable, style[0]), svg)
