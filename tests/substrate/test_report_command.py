"""`growtx substrate report`: what cannot be is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from growtx.cli.main import main
from tests.data import small_tokenizers


@pytest.fixture
def vocabulary(tmp_path: Path) -> str:
    return str(small_tokenizers.save_byte_level(tmp_path / "byte-level"))


def report(vocabulary: str, *options: str) -> int:
    return main(["substrate", "report", "--vocabulary", vocabulary, "--hidden-size", "32", *options])


def test_what_cannot_be_is_one_sentence(vocabulary: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.ttf").write_text("no font")
    cases = {
        ("--font", str(tmp_path / "text.ttf")): "text.ttf is not a font",
        ("--font", str(tmp_path / "none.ttf")): "There is no font file",
        ("--hidden-size", "2000"): "A picture of 1024 pixels lacks the 2000 components that hidden_size asks for",
    }
    for options, sentence in cases.items():
        assert report(vocabulary, *options) != 0
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1
    (Path(vocabulary) / "tokenizer.json").write_text('{"model": 3}')
    assert report(vocabulary) != 0
    said = capsys.readouterr().err
    assert "cannot be read" in said and said.count("\n") == 1
