from __future__ import annotations

from markupsafe import Markup

from distill.pages.html import notes, page, remark, table, term


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


def test_no_text_of_a_page_names_a_place_on_this_machine(tmp_path) -> None:
    place = tmp_path / "runs" / "a"
    html = page(f"of {place}", [("A", remark(f"{place}: gone") + table(["x"], [[str(place)]]))])
    assert str(tmp_path) not in html and ">runs/a: gone<" in html and ">runs/a</td>" in html
    assert "https://example.org/a" in remark("see https://example.org/a")


def test_words_are_explained_once() -> None:
    words = {"mIoU": "the mean < IoU", "AP": "average precision"}
    html = page("title", [("Scores", table([term("mIoU")], [["0.5"]]) + term("mIoU"))], definitions=words)
    assert html.count('aria-describedby="word-miou"') == 2 and html.count("the mean &lt; IoU") == 1
    assert "average precision" not in html  # the page does not use it
    assert 'id="word-' not in page("title", [("Scores", table(["x"], [["1"]]))], definitions=words)


def test_a_page_has_both_colour_schemes_and_fits_a_telephone() -> None:
    html = page("title", [])
    assert "prefers-color-scheme: dark" in html and 'content="width=device-width, initial-scale=1"' in html
