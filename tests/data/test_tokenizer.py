from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growtx.config import build_config
from growtx.data import tokenizer as tokenizers
from growtx.data.tokenizer import (
    Encoder,
    TokenizerConfig,
    build_tokenizer,
    encoder_definition,
    load_tokenizer,
    token_num_bytes,
    token_surfaces,
    tokenizer_fingerprint,
)
from growtx.exceptions import ConfigError, DataError
from tests.data import small_tokenizers

NASTY = [
    "<s>", "</s>", "<pad>", "<unk>", "<0x41>", "<reserved_57348>", "<unused_65535>", "<|end|>", "Ġ", "▁", " ", "  ",
    "\x00", "\r\n", "\n\n", "\t", "\u0301", "e\u0301", "\ue000", "\uf8ff", "\uffff", "\ud7ff", "\U0010ffff",
    "\U0001f468\u200d\U0001f469", "\U00020000", "the", "река", "天之后",
]  # fmt: skip
any_text = st.one_of(st.text(), st.lists(st.one_of(st.sampled_from(NASTY), st.text(max_size=3))).map("".join))


@pytest.fixture(scope="module", params=["compact", "unicode", "surface"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "surface":
        path = small_tokenizers.save_byte_level(tmp_path_factory.mktemp("byte-level"))
        return build_tokenizer(TokenizerConfig(family="surface", path=str(path)))
    return getattr(small_tokenizers, request.param)()


@settings(max_examples=300, deadline=None)
@given(text=any_text)
def test_decoding_gives_back_every_unicode_text(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def library_ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(any_text, max_size=4))
def test_an_encoder_gives_the_tokens_of_the_library(tokenizer: Any, texts: list[str]) -> None:
    encoder = Encoder(encoder_definition(tokenizer))
    for _ in range(2):  # the second time, it remembers
        assert [ids.tolist() for ids in encoder.encode(texts)] == [library_ids(tokenizer, text) for text in texts]


@pytest.mark.parametrize(
    "limits", [{"MOST_KEPT": 3}, {"MOST_TOKENS_KEPT": 9}, {"CHARACTERS_OF_A_GROUP": 2}, {"TABLE_BITS": 2}]
)
def test_what_an_encoder_remembers_and_how_it_cuts_texts_does_not_show(
    tokenizer: Any, limits: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in limits.items():
        monkeypatch.setattr(tokenizers, name, value)
    texts = [text * 3 for text in (*small_tokenizers.TEXTS, *NASTY, "")]
    expected = [library_ids(tokenizer, text) for text in texts]
    encoder = Encoder(encoder_definition(tokenizer))
    for longest in (1, 5, 1 << 20):
        monkeypatch.setattr(tokenizers, "CHARACTERS_AT_ONCE", longest)
        assert [ids.tolist() for ids in encoder.encode(texts)] == expected


def test_our_tokenizers_are_cut_and_byte_level_ones_are_left_to_the_library(tmp_path: Path) -> None:
    encoder = Encoder(encoder_definition(small_tokenizers.compact()))
    encoder.encode(small_tokenizers.TEXTS)
    assert len(encoder.known) > 50
    small_tokenizers.save_byte_level(tmp_path)
    other = Encoder(encoder_definition(load_tokenizer(str(tmp_path))))
    other.encode(small_tokenizers.TEXTS)
    assert not hasattr(other, "known")


def test_ids_stand_for_as_many_bytes_as_the_text_has(tokenizer: Any) -> None:
    num_bytes = token_num_bytes(tokenizer)
    assert num_bytes.shape == (len(tokenizer),)

    @settings(max_examples=150, deadline=None)
    @given(text=any_text)
    def check(text: str) -> None:
        assert int(num_bytes[tokenizer.encode(text)].sum()) == len(text.encode())

    check()


def test_text_that_spells_control_tokens_is_text_unless_asked(tokenizer: Any) -> None:
    end = tokenizer.eos_token
    assert tokenizer.eos_token_id not in tokenizer.encode(f"a{end}b")
    assert tokenizer.eos_token_id not in tokenizer.backend_tokenizer.encode(f"a{end}b").ids
    assert tokenizer.eos_token_id in tokenizer(f"a{end}b", split_special_tokens=False)["input_ids"]
    assert tokenizer.eos_token_id not in tokenizer.encode(f"a{end}b")  # asking once does not stick


def test_control_tokens_count_no_bytes(tokenizer: Any) -> None:
    assert not token_num_bytes(tokenizer)[tokenizer.all_special_ids].any()


def test_a_saved_tokenizer_is_the_same_for_auto_tokenizer(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))):
        text = "".join(NASTY)
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.decode(loaded.encode(text)) == text
        assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)
        assert loaded.eos_token_id == tokenizer.eos_token_id


def test_the_fingerprint_ignores_what_calls_leave_behind(tokenizer: Any) -> None:
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "longer"], padding=True, truncation=True, max_length=4)
    assert tokenizer_fingerprint(tokenizer) == before


def test_different_vocabularies_have_different_fingerprints() -> None:
    prints = {
        tokenizer_fingerprint(tokenizer) for tokenizer in (small_tokenizers.compact(), small_tokenizers.unicode())
    }
    assert len(prints | {tokenizer_fingerprint(small_tokenizers.compact(421))}) == 3


def test_building_twice_gives_the_same_tokenizer_whatever_the_order_of_texts() -> None:
    config = TokenizerConfig(vocab_size=420)
    again = build_tokenizer(config, reversed(small_tokenizers.TEXTS))
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(small_tokenizers.compact())


def test_surfaces_are_text_names_of_control_tokens_and_hex_digits_of_bytes() -> None:
    tokenizer = small_tokenizers.unicode()
    surfaces = token_surfaces(tokenizer)
    assert surfaces[ord("a")] == "a" and surfaces[tokenizer.pad_token_id] == "<pad>"
    assert surfaces[tokenizer.convert_tokens_to_ids("<0xE2>")] == "Ｅ２"
    assert surfaces[tokenizer.convert_tokens_to_ids("<0x41>")] == "４１"  # drawn as a byte, not as the letter A
    assert surfaces[tokenizer.convert_tokens_to_ids("the")] == "the"


def test_surfaces_of_a_byte_level_vocabulary_are_decoded(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(small_tokenizers.save_byte_level(tmp_path)))
    surfaces = token_surfaces(tokenizer)
    assert surfaces[tokenizer.encode(" the")[0]] == " the"
    assert surfaces[tokenizer.encode(" вода")[0]].startswith(" в")
    assert "Ｅ２" in surfaces and not any("Ġ" in surface for surface in surfaces)
    assert surfaces[tokenizer.eos_token_id] == "<|end|>"


def test_surfaces_of_a_sentence_piece_vocabulary_have_spaces() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    model = models.BPE({"<unk>": 0, "<0xE2>": 1, "▁": 2, "▁the": 3}, [], byte_fallback=True, unk_token="<unk>")
    backend = Tokenizer(model)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert token_surfaces(tokenizer) == ["<unk>", "Ｅ２", " ", " the"]
    assert token_num_bytes(tokenizer).tolist() == [0, 1, 1, 4]


def test_roles_that_a_foreign_tokenizer_does_not_have_share_its_end_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(small_tokenizers.save_byte_level(tmp_path)))
    assert tokenizer.pad_token_id == tokenizer.bos_token_id == tokenizer.eos_token_id == 0


def test_common_strings_of_tokenizers_come_first(tmp_path: Path) -> None:
    one = small_tokenizers.save_byte_level(tmp_path / "one")
    config = TokenizerConfig(family="unicode-max", common_to=(str(one),))
    assert config.fingerprint() != TokenizerConfig(family="unicode-max").fingerprint()
    from growtx.data.tokenizer import _common_strings

    common = _common_strings(config.common_to)
    assert " the" in common and all(len(text) > 1 for text in common) and "<|end|>" not in common


class TestWhatCannotBeUsedIsSaidInOneSentence:
    def test_a_lossy_tokenizer(self, tmp_path: Path) -> None:
        from tokenizers import normalizers

        small_tokenizers.save_byte_level(tmp_path, normalizer=normalizers.NFC())
        with pytest.raises(DataError, match=r"changes text such as .*Use one without a normalizer"):
            load_tokenizer(str(tmp_path))

    def test_a_tokenizer_without_an_end(self, tmp_path: Path) -> None:
        small_tokenizers.save_byte_level(tmp_path, eos_token=None)
        with pytest.raises(DataError, match="no end-of-text token"):
            load_tokenizer(str(tmp_path))

    def test_a_directory_without_a_tokenizer(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"has no tokenizer\.json"):
            load_tokenizer(str(tmp_path))

    @pytest.mark.parametrize("damage", ["cut", "emptied", "merges"])
    def test_a_damaged_tokenizer(self, tmp_path: Path, damage: str) -> None:
        small_tokenizers.compact().save_pretrained(tmp_path)
        file = tmp_path / "tokenizer.json"
        content = json.loads(file.read_text())
        content["model"]["merges"] = [["no such", "token"]]
        damaged = {"cut": file.read_text()[:1000], "emptied": "", "merges": json.dumps(content)}[damage]
        file.write_text(damaged)
        with pytest.raises(DataError, match="cannot be read"):
            load_tokenizer(str(tmp_path))

    def test_compact_without_text(self) -> None:
        with pytest.raises(DataError, match="made from text"):
            build_tokenizer(TokenizerConfig())

    def test_counted_ngrams_without_data(self) -> None:
        with pytest.raises(DataError, match="needs text to count"):
            build_tokenizer(TokenizerConfig(family="unicode-2-3", ngrams="counted"))

    def test_a_size_too_small_for_the_basic_plane(self) -> None:
        with pytest.raises(ConfigError, match="vocab_size=60000 is too small"):
            build_tokenizer(TokenizerConfig(family="unicode-2-3", vocab_size=60_000))

    @pytest.mark.parametrize(
        "tree",
        [
            {"family": "surface"},
            {"path": "x"},
            {"ngrams": "counted"},
            {"family": "surface", "path": "x", "vocab_size": 9},
        ],
    )
    def test_keys_of_another_family(self, tree: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            build_config(TokenizerConfig, tree)


def test_a_compact_vocabulary_is_made_from_so_many_bytes_of_text_and_no_more() -> None:
    texts = [f"{words} " * 20 for words in ("anna sah", "zwei Wege", "drei Burgen", "vier Pferde", "kein Licht")]
    config = {"family": "compact", "vocab_size": 290}
    assert len(build_tokenizer(TokenizerConfig(**config, max_training_bytes=2000), texts)) == 290
    with pytest.raises(DataError, match="have only"):
        build_tokenizer(TokenizerConfig(**config, max_training_bytes=20), texts)
