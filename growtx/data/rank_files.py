"""Byte-level vocabularies that are published as ranks: `.tiktoken` files (GPT-2, Whisper) and `tekken.json` (Mistral).

Neither lists merges: a pair of tokens is merged if the result is a token, the lowest rank first.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growtx.exceptions import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# How GPT-2 cuts text into words before its byte-level BPE (Radford et al. 2019); Whisper does the same.
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT2_END = "<|endoftext|>"
TEKKEN_END = "</s>"
TEKKEN_SPECIAL = ("<unk>", "<s>", TEKKEN_END)  # where a file does not list its special tokens, as published
SUFFIX = ".tiktoken"


@dataclass(frozen=True)
class RankFile:
    """What a file says: bytes by rank, the pattern that cuts text into words, special tokens and their first id."""

    ranks: dict[bytes, int]
    words: str
    special_tokens: tuple[str, ...]
    special_first: bool
    end: str


def is_rank_file(path: str) -> bool:
    """Whether a path is a file of one of the two kinds."""
    return Path(path).is_file() and (path.endswith(SUFFIX) or Path(path).name.startswith("tekken"))


def tokenizer_from_ranks(path: str) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a file of ranks, with the ids that it was published with.

    A `.tiktoken` file does not say how text is cut into words: GPT-2's way is taken.

    Raises:
        DataError: the file is damaged.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    try:
        file = _read_tiktoken(path) if path.endswith(SUFFIX) else _read_tekken(path)
        vocab, merges = _vocab_and_merges(file)
    except (ValueError, KeyError, TypeError) as error:
        detail = " ".join(str(error).split())[:100]
        raise DataError(f"The tokenizer in {path} cannot be read: {detail}", "Save or copy it again") from error
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(file.words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(file.special_tokens))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=file.end, split_special_tokens=True)


def _read_tiktoken(path: str) -> RankFile:
    """A line for each token: its bytes in base64, and its rank."""
    lines = Path(path).read_text("ascii").splitlines()
    ranks = {_bytes(encoded): int(rank) for encoded, rank in (line.split() for line in lines)}
    return RankFile(ranks, GPT2_WORDS, (GPT2_END,), special_first=False, end=GPT2_END)


def _read_tekken(path: str) -> RankFile:
    """JSON with settings, special tokens (in some versions) and more ranks than are used."""
    content: dict[str, Any] = json.loads(Path(path).read_text("utf-8"))
    config = content["config"]
    num_special = config["default_num_special_tokens"]
    listed = {entry["rank"]: entry["token_str"] for entry in content.get("special_tokens") or ()}
    listed = listed or dict(enumerate(TEKKEN_SPECIAL))
    entries = content["vocab"][: config["default_vocab_size"] - num_special]
    return RankFile(
        {_bytes(entry["token_bytes"]): entry["rank"] for entry in entries},
        config["pattern"],
        tuple(listed.get(rank, f"<SPECIAL_{rank}>") for rank in range(num_special)),
        special_first=True,
        end=TEKKEN_END,
    )


def _bytes(encoded: str) -> bytes:
    return base64.b64decode(encoded, validate=True)


def _vocab_and_merges(file: RankFile) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges in the alphabet of byte-level BPE."""
    from growtx.compat.transformers import ranks_to_merges

    if len(set(file.ranks.values())) != len(file.ranks) or any(bytes([byte]) not in file.ranks for byte in range(256)):
        raise ValueError("two tokens have one rank, or a byte has none")

    vocab, merges = ranks_to_merges(file.ranks)
    first = len(file.special_tokens) if file.special_first else 0
    special_from = 0 if file.special_first else len(vocab)
    ids = {name: rank + first for name, rank in vocab.items()}
    return ids | {name: special_from + order for order, name in enumerate(file.special_tokens)}, merges
