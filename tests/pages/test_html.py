from __future__ import annotations

from markupsafe import Markup

from distill.pages.html import notes, page, table


def test_text_is_text() -> None:
    assert ">a &lt; b</td>" in table(["x"], [["a < b"]])
    assert "<b>1</b>" in table(["x"], [[Markup("<b>1</b>")]])
    assert "<title>R&amp;D</title>" in page("R&D", [])
    assert "<li>a &lt; b</li>" in notes(["a < b"]) and notes([]) == ""


def test_columns_of_words_are_aligned_left() -> None:
    html = table(["model", "score", "interval"], [["a 1", "–", "[-0.1, +0.2]"], ["b", "0.5", ""]])
    assert html.count('class="words"') == 3  # heading and two cells of the first column


def test_a_page_links_its_sections() -> None:
    html = page("title", [("By size", Markup("<p>content</p>"))])
    assert '<a href="#by-size">By size</a>' in html and '<section id="by-size">' in html
