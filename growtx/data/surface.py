"""What each id of a Hugging Face tokenizer stands for: bytes of text, or control.

Vocabularies write text in three ways: as it is, with one printable letter per byte (byte-level BPE), or with `▁`
for the space and `<0xNN>` for bytes (SentencePiece). The decoder in tokenizer.json tells which.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
FULL_WIDTH = {ord(digit): ord(digit) + 0xFEE0 for digit in "0123456789ABCDEF"}


@dataclass(frozen=True)
class VocabularyToken:
    """One id: the name it has in the vocabulary, and the bytes it spells (None for a control token)."""

    name: str
    spelled: bytes | None


def definition(tokenizer: PreTrainedTokenizerFast | Tokenizer) -> dict[str, Any]:
    """The content of tokenizer.json that decides which ids spell a text.

    Padding, truncation and what is put around a text are settings of calls, which libraries change at will.
    """
    content: dict[str, Any] = json.loads(getattr(tokenizer, "backend_tokenizer", tokenizer).to_str())
    return {key: content[key] for key in content.keys() - {"padding", "truncation", "post_processor"}}


def tokens(tokenizer: PreTrainedTokenizerFast | Tokenizer) -> list[VocabularyToken]:
    """Every id in order [V]; ids without an entry are control tokens named `<unused_N>`."""
    content = definition(tokenizer)
    decoders = _decoder_types(content.get("decoder"))
    added = {entry["id"]: entry for entry in content["added_tokens"]}
    names = {index: name for name, index in tokenizer.get_vocab().items()}
    result = []
    for index in range(max(names) + 1):
        name = names.get(index, f"<unused_{index}>")
        if index in added:
            spelled = None if added[index]["special"] else name.encode()
        elif index not in names or name == f"<unused_{index}>":
            spelled = None
        else:
            spelled = _spelled(name, decoders)
        result.append(VocabularyToken(name, spelled))
    return result


def text(token: VocabularyToken) -> str | None:
    """The text that a token spells; None for control tokens and for bytes that are a part of a character."""
    if token.spelled is None or BYTE_TOKEN.fullmatch(token.name):
        return None
    try:
        return token.spelled.decode("utf-8")
    except UnicodeDecodeError:
        return None


def drawn(token: VocabularyToken) -> str:
    """The string that a substrate draws for a token: its text, or the name of a control token.

    Bytes are drawn as full-width hex digits, which no text of the vocabulary looks like.
    """
    if token.spelled is None:
        return token.name
    spelled_text = text(token)
    return token.spelled.hex().upper().translate(FULL_WIDTH) if spelled_text is None else spelled_text


def num_bytes(token: VocabularyToken) -> int:
    """Bytes of text that the token decodes to."""
    return 0 if token.spelled is None else len(token.spelled)


def _decoder_types(decoder: dict[str, Any] | None) -> set[str]:
    if decoder is None:
        return set()
    nested = decoder.get("decoders", [])
    return {decoder["type"], *(kind for child in nested for kind in _decoder_types(child))}


def _spelled(name: str, decoders: set[str]) -> bytes:
    if "ByteLevel" in decoders:
        return bytes(BYTE_LEVEL[char] for char in name)
    if "ByteFallback" in decoders and (match := BYTE_TOKEN.fullmatch(name)):
        return bytes.fromhex(match[1])
    if "Metaspace" in decoders or "Replace" in decoders:
        name = name.replace("\u2581", " ")
    return name.encode()


def _byte_level_alphabet() -> dict[str, int]:
    """The printable letter that byte-level BPE writes for each byte: itself, or one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + order): byte for order, byte in enumerate(others)}


BYTE_LEVEL = _byte_level_alphabet()
