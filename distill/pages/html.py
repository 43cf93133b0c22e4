"""Self-contained HTML pages: jinja2 templates in `templates/`, which escape every text. No page links outside."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"
# A number with its sign, its unit and its interval; a cell that begins with a letter is none.
NUMBER = re.compile(r"[-+\[]*\d[^a-z]*(<small>.*)?$")
NOTHING = Markup()


def render(template: str, **values: object) -> Markup:
    """Render a template. Every value is escaped, unless it is Markup, which is finished HTML."""
    return Markup(_environment().get_template(template).render(values))


def part(name: str, *values: object) -> Markup:
    """Render a part of a page: a macro of `templates/parts.html`. Values are escaped as `render` does."""
    html: Markup = getattr(_environment().get_template("parts.html").module, name)(*values)
    return html


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """Return a table. Its cells are texts or Markup; columns without a number are aligned left."""
    is_words = [not any(NUMBER.match(row[i]) for row in rows) for i in range(len(header))]
    return part("table", header, rows, is_words)


def figures(drawn: Sequence[Markup]) -> Markup:
    """Return figures side by side, as many in a line as fit. Without any, return nothing."""
    return part("figures", drawn) if drawn else NOTHING


def remark(text: str) -> Markup:
    """Return a line below a table or a figure. Without a text, return nothing."""
    return part("remark", text) if text else NOTHING


def notes(lines: Sequence[str]) -> Markup:
    """Return a box of what a reader must know. Without a line, return nothing."""
    return part("notes", lines) if lines else NOTHING


def joined(parts: Iterable[Markup]) -> Markup:
    """Return parts one below the other."""
    return Markup().join(parts)


def page(
    title: str, sections: Sequence[tuple[str, Markup]], *, lead: Markup = NOTHING, styles: Sequence[str] = ()
) -> str:
    """Return a complete page, with links to its sections.

    Args:
        sections: the heading of each, and its content.
        lead: what stands between the title and the links.
        styles: CSS templates beside `page.css`.
    """
    return str(render("page.html", title=title, sections=sections, lead=lead, styles=styles))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )
    environment.filters["anchor"] = _anchor
    return environment


def _anchor(heading: str) -> str:
    return re.sub(r"\W+", "-", heading.lower()).strip("-")
