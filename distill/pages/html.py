"""Self-contained HTML pages: jinja2 templates in `templates/`, which escape every text. No page links outside.

Every page follows the reader's light or dark setting, fits a narrow window, and can be used by keyboard.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from distill.pages.colours import DARK, LIGHT
from distill.text import short_paths

TEMPLATES = Path(__file__).parent / "templates"
# A number with its sign, its unit and its interval; a cell that begins with a letter is none.
NUMBER = re.compile(r"[-+\[]*\d[^a-z]*(<small>.*)?$")
NOTHING = Markup()
DEFINITIONS = "Words"  # the heading of the section that explains words


def render(template: str, **values: object) -> Markup:
    """Render a template. Every value is escaped, unless it is Markup, which is finished HTML.

    A path from the root of this machine's file system is shortened in every text.
    """
    return Markup(_environment().get_template(template).render(values))


def part(name: str, *values: object) -> Markup:
    """Render a part of a page: a macro of `templates/parts.html`. Values are escaped as `render` does."""
    html: Markup = getattr(_environment().get_template("parts.html").module, name)(*values)
    return html


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "table") -> Markup:
    """Return a table. Its cells are texts or Markup; columns without a number are aligned left.

    Args:
        title: what a screen reader calls it.
    """
    is_words = [not any(NUMBER.match(row[i]) for row in rows) for i in range(len(header))]
    return part("table", header, rows, is_words, title)


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


def term(word: str, *, name: str | None = None) -> Markup:
    """Return a word that is explained where a reader points at it or comes to it by keyboard.

    Args:
        name: of its definition among those of `page`; None: the word.
    """
    return part("term", word, name or word)


def page(
    title: str,
    sections: Sequence[tuple[str, Markup]],
    *,
    lead: Markup = NOTHING,
    styles: Sequence[str] = (),
    definitions: Mapping[str, str] | None = None,
) -> str:
    """Return a complete page, with links to its sections.

    Args:
        sections: the heading of each, and its content.
        lead: what stands between the title and the links.
        styles: CSS templates beside `page.css`.
        definitions: of the words that `term` marks. Those that the page uses become its last section.
    """
    content = joined([lead, *(html for _, html in sections)])
    used = {name: text for name, text in (definitions or {}).items() if f'href="#{_word_anchor(name)}"' in content}
    shown = [*sections, (DEFINITIONS, part("definitions", list(used.items())))] if used else sections
    html = render("page.html", title=title, sections=shown, lead=lead, styles=styles, light=LIGHT, dark=DARK)
    return str(html)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_for_readers_elsewhere,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )
    environment.filters["anchor"] = _anchor
    environment.filters["word_anchor"] = _word_anchor
    return environment


def _for_readers_elsewhere(value: object) -> object:
    """Return what a template shows of a value: a text with short paths, and finished HTML as it is."""
    return short_paths(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _anchor(heading: str) -> str:
    return re.sub(r"\W+", "-", heading.lower()).strip("-")


def _word_anchor(word: str) -> str:
    return f"word-{_anchor(word)}"
