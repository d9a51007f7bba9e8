"""Vocabularies published as ranks: the ids, cuts and bytes of their authors, as an ordinary lossless tokenizer."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growtx.cli.main import main
from growtx.data.tokenizer import TokenizerConfig, build_tokenizer, load_tokenizer, token_num_bytes, token_surfaces
from growtx.exceptions import DataError

TOKENS = [*(bytes([byte]) for byte in range(256)), b"th", b"the", b" t", b" the", "в".encode(), "во".encode(), b"  "]


def write_tiktoken(path: Path) -> str:
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(TOKENS)))
    return str(path)


def write_tekken(path: Path, *, special: list[dict[str, Any]] | None = None) -> str:
    unused = [b"zz", b"zzz"]  # a file holds more ranks than its default size uses
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode()} for rank, token in enumerate([*TOKENS, *unused])
    ]
    config = {
        "pattern": r"\p{L}+|\s|[^\s\p{L}]+",
        "default_vocab_size": len(TOKENS) + 10,
        "default_num_special_tokens": 10,
    }
    path.write_text(json.dumps({"config": config, "vocab": vocab, **({"special_tokens": special} if special else {})}))
    return str(path)


@pytest.fixture(params=["tiktoken", "tekken"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "tiktoken":
        return write_tiktoken(tmp_path / "small.tiktoken")
    return write_tekken(tmp_path / "tekken_small.json")


def test_ids_are_those_of_the_file(tmp_path: Path) -> None:
    gpt2 = load_tokenizer(write_tiktoken(tmp_path / "small.tiktoken"))
    assert gpt2.encode("the the") == [257, 259] and gpt2.encode("th") == [256] and gpt2.encode("вода")[0] == 260
    assert (gpt2.eos_token, gpt2.eos_token_id, len(gpt2)) == ("<|endoftext|>", len(TOKENS), len(TOKENS) + 1)
    tekken = load_tokenizer(write_tekken(tmp_path / "tekken.json"))
    assert tekken.encode("the the") == [267, 42, 267]  # behind ten special tokens; its pattern cuts off the space
    assert (tekken.eos_token, tekken.eos_token_id, len(tekken)) == ("</s>", 2, len(TOKENS) + 10)
    assert tekken.convert_ids_to_tokens([0, 1, 3]) == ["<unk>", "<s>", "<SPECIAL_3>"]


def test_special_tokens_that_a_file_lists_keep_their_names(tmp_path: Path) -> None:
    listed = [{"rank": rank, "token_str": text} for rank, text in enumerate(("<unk>", "<s>", "</s>", "[INST]"))]
    tokenizer = load_tokenizer(write_tekken(tmp_path / "tekken.json", special=listed))
    assert tokenizer.convert_ids_to_tokens([3, 4]) == ["[INST]", "<SPECIAL_4>"]


def test_every_text_comes_back_and_counts_its_bytes(path: str) -> None:
    tokenizer = build_tokenizer(TokenizerConfig(family="surface", path=path))
    num_bytes = token_num_bytes(tokenizer)

    @settings(max_examples=150, deadline=None)
    @given(text=st.one_of(st.text(), st.sampled_from(["</s>", "<|endoftext|>", "\x00\r\n", "вода the", "\U0001f600"])))
    def check(text: str) -> None:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and int(num_bytes[ids].sum()) == len(text.encode())
        assert tokenizer.eos_token_id not in ids

    check()


def test_surfaces_are_decoded_bytes_and_saving_changes_nothing(path: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(path)
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = load_tokenizer(str(tmp_path / "saved"))
    surfaces = token_surfaces(tokenizer)
    assert {" the", "во"} <= set(surfaces) and "Ｄ０" in surfaces and not any("Ġ" in surface for surface in surfaces)
    assert token_surfaces(saved) == surfaces and saved.encode("the вода\n") == tokenizer.encode("the вода\n")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.tiktoken", "not base64 at all"),
        ("x.tiktoken", "AA== 0\n"),
        ("x.tiktoken", ""),
        ("tekken.json", "{"),
        ("tekken.json", json.dumps({"config": {}})),
        ("tekken.json", "[]"),
    ],
)
def test_a_damaged_file_is_one_sentence_on_the_command_line_too(
    name: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=r"The tokenizer in .* cannot be read: .*Save or copy it again"):
        load_tokenizer(str(path))
    assert main(["substrate", "report", "--vocabulary", str(path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
