from __future__ import annotations

from typing import Any

import pytest

from growtx.config import build_config
from growtx.exceptions import ConfigError
from growtx.microworld.config import MicroworldConfig


@pytest.mark.parametrize(
    ("tree", "named"),
    [
        ({"languages": []}, "languages"),
        ({"languages": ["en", "en"]}, "at most once"),
        ({"languages": ["de"]}, "languages"),
        ({"num_people": 3}, "num_people"),
        ({"num_documents": 5, "target_bytes": 5}, "not both"),
        ({"shares": {"story": -1.0}}, "negative"),
        ({"shares": {"translation": 1.0}, "languages": ["en"]}, "above 0"),
        ({"peple": 5}, "peple"),
    ],
)
def test_wrong_values_are_refused_by_name(tree: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build_config(MicroworldConfig, tree)


def test_some_people_stay_on_both_sides_of_the_held_out_line() -> None:
    for share in (0.001, 0.25, 0.999):
        config = MicroworldConfig(num_people=40, held_out_people=share)
        assert 8 <= config.num_held_out_people <= 32


def test_one_language_alone_has_no_translations() -> None:
    assert "translation" not in MicroworldConfig(languages=("ru",)).document_shares
    assert "translation" in MicroworldConfig(languages=("ru", "en")).document_shares
