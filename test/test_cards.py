"""Every shipped network has a card, which is short, complete, and leaves figures to the generated table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

MODELS = Path(__file__).parent.parent / "models"
CARDS = sorted(path for path in MODELS.glob("*.md") if path.name != "README.md")


def test_every_network_has_a_card_and_every_card_a_network() -> None:
    assert [card.stem for card in CARDS] == sorted(path.stem for path in MODELS.glob("*.safetensors"))


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)
def test_a_card_is_short_and_complete(card: Path) -> None:
    text = card.read_text()
    assert len(text.split()) <= 300
    assert text.startswith(f"# {card.stem}\n")
    for part in (
        "**For**",
        "ot for**",
        "**Data**",
        "**Command**",
        "**Figures**",
        "**Known weaknesses**",
        "**Licence**",
    ):
        assert part in text, part
    assert re.search(r"^tracker_ros train \w+ ", text, re.MULTILINE), "the recipe that made it"


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)
def test_a_card_has_no_figures_of_the_table(card: Path) -> None:
    text = card.read_text()
    assert "(README.md)" in text, "it links the table"
    assert not re.search(r"^\|.*\b(AUC|OP50|AO)\b", text, re.MULTILINE), "a table of figures made by hand"
    assert not re.search(r"\bAUC\b[^.]{0,60}\b0\.\d{3}\b", text), "figures are in models/README.md alone"


def test_the_readme_has_no_figures_of_its_own() -> None:
    text = (MODELS.parent / "README.md").read_text()
    assert "(models/README.md)" in text
    assert not re.search(r"\b0\.\d{3}\b", text), "figures are in models/README.md alone"
