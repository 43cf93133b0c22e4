from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text

from distill.pages.labels import LONGEST_LABEL, Box, Spot, place_labels, shortened, write_labels
from distill.pages.plots import PLOT_WIDTH, new_figure

FRAME = Box(0, 0, 320, 220)
PLACES = st.tuples(st.floats(0, 320), st.floats(0, 220))


def markers(centres: list[tuple[float, float]]) -> list[Box]:
    return [Box(x - 5, y - 5, x + 5, y + 5) for x, y in centres]


@given(st.lists(st.tuples(PLACES, st.floats(20, 110)), min_size=1, max_size=9))
def test_no_label_covers_anything(drawn: list[tuple[tuple[float, float], float]]) -> None:
    centres, obstacles = [centre for centre, _ in drawn], markers([centre for centre, _ in drawn])
    boxes = place_labels(centres, [(width, 11) for _, width in drawn], FRAME, obstacles)
    if boxes is None:  # allowed where it is crowded, and never a part of the labels
        return
    assert all(box.is_inside(FRAME) for box in boxes)
    assert not any(first.overlaps(second) for first, second in itertools.combinations(boxes, 2))
    assert not any(box.overlaps(obstacle) for box in boxes for obstacle in obstacles)


def test_models_at_one_place_have_labels_of_their_own() -> None:
    centres = [(160.0, 110.0), (161.0, 110.0), (160.0, 112.0), (40.0, 200.0)]
    assert place_labels(centres, [(90, 11)] * 4, FRAME, markers(centres)) is not None


def test_labels_without_a_place_are_left_to_the_legend() -> None:
    assert place_labels([(10.0, 10.0)], [(400, 11)], FRAME, []) is None


@pytest.mark.parametrize("num", [1, 4, 8])
def test_drawn_labels_do_not_collide(num: int) -> None:
    """Measure the texts of a real plot, whose points lie close together."""
    with new_figure(PLOT_WIDTH, 3.9) as (figure, axes):
        spots = [Spot(100 + i % 3, 0.7 + 0.01 * i, (98, 105), (0.69, 0.72 + 0.01 * i)) for i in range(num)]
        for spot in spots:
            axes.plot(spot.x, spot.y, "o")
        axes.margins(0.3)
        assert write_labels(axes, [f"student_{i}" for i in range(num)], spots)
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in axes.texts if isinstance(text, Text)]
    assert len(boxes) == num and not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_a_long_label_keeps_its_ends() -> None:
    assert shortened("a" * 60 + "_mask") == f"{'a' * 13}…{'a' * 8}_mask" and shortened("short") == "short"
    assert len(shortened("x" * 100)) == LONGEST_LABEL
