from __future__ import annotations

from distill.cards.writing import CARD_FILE, refresh_card


def test_models_that_were_not_trained_here_get_no_card(compared):
    refresh_card("quickstart")
    refresh_card(str(compared.place / "teacher.safetensors"))
    assert not (compared.place / CARD_FILE).exists()
