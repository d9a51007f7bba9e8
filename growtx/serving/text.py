"""Between text and token ids, and from a stream of tokens to a stream of text that stops where it should."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from growtx.data import surface
from growtx.serving.requests import ModelInfo, Token

LONGEST_CHARACTER = 4  # bytes in UTF-8
NUM_CONTEXT = 8  # ids before a token that decide how it is decoded
INCOMPLETE = "\ufffd"  # what a decoder puts for bytes that are not (yet) a character


class Codec:
    """A tokenizer as the model card carries it."""

    def __init__(self, card: ModelInfo) -> None:
        self._tokenizer = Tokenizer.from_str(card.tokenizer_json)
        self._tokenizer.encode_special_tokens = True  # text that spells a special token is text
        self._names = token_names(self._tokenizer)
        self._longest_token = max(len(token) for token in self._tokenizer.get_vocab())
        added = self._tokenizer.get_added_tokens_decoder()
        self.control_tokens = {token.content: index for index, token in added.items() if token.special}
        self.context_length = card.context_length
        self.start_token_id = card.start_token_id

    def encode(self, text: str) -> list[int] | None:
        """Ids of a document that begins with `text`; None if it is too long for any model context."""
        if not self.may_fit(len(text)):
            return None  # the library would spend seconds on a megabyte only to find the same
        return [self.start_token_id, *self.spell(text)]

    def may_fit(self, num_characters: int) -> bool:
        """Whether a text of that length could be short enough for the model's context."""
        return num_characters <= self.context_length * self._longest_token

    def spell(self, text: str) -> list[int]:
        """Ids of a text of any length, and no others."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of some ids; special tokens have none."""
        return str(self._tokenizer.decode(list(ids)))

    def decode_after(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """Text that ids add to those before them: some decoders drop a space at the beginning of a text."""
        start, whole = self.decode(before), self.decode([*before, *ids])
        return whole[len(start) :] if whole.startswith(start) else self.decode(ids)

    def name(self, token_id: int) -> str:
        """A name that no other token has: its text, `bytes:\\x..` if that is no text, or that of a special token."""
        return self._names[token_id]


def token_names(tokenizer: Tokenizer) -> list[str]:
    """Distinct names of all ids [V], in the form of OpenAI's completions."""
    names: dict[str, int] = {}
    for index, token in enumerate(surface.tokens(tokenizer)):
        spelled = surface.text(token)
        in_bytes = "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.spelled or b"")
        plain = token.name if token.spelled is None else spelled if spelled is not None else in_bytes
        free = (name for name in (plain, in_bytes, f"token_id:{index}") if name not in names and name != "bytes:")
        names[next(free)] = index
    return list(names)


@dataclass
class Piece:
    """What became sendable: text, and the tokens that begin inside it with their offsets in the whole text."""

    text: str = ""
    tokens: list[tuple[Token, int]] = field(default_factory=list)
    finish_reason: str | None = None
    is_generated: bool = False  # and not an echo of the prompt


class TextStream:
    """Turns tokens into text as they come.

    Text is held back while it could be the beginning of a stop sequence or of a character, so what has been sent
    never has to be taken back.

    Args:
        stop: sequences that end the text and are not part of it.
        offset: characters before the first one of this stream (an echoed prompt).
        after: ids before the first one, which may decide how that is decoded.
        min_tokens: a stop sequence does not end the text before so many tokens.
    """

    def __init__(
        self,
        codec: Codec,
        stop: Sequence[str] = (),
        offset: int = 0,
        *,
        after: Sequence[int] = (),
        min_tokens: int = 0,
    ) -> None:
        self._codec = codec
        self._stop = stop
        self._offset = offset
        self._context = list(after[-NUM_CONTEXT:])
        self._num_before_stop = min_tokens
        self._window: list[int] = []  # ids that are no whole character yet
        self._text = ""  # everything decoded
        self._num_sent = 0
        self._pending: list[tuple[Token, int]] = []

    def push(self, tokens: Sequence[Token]) -> Piece:
        """Add tokens; the piece has a `finish_reason` when the text ends with it."""
        reason = None
        for token in tokens:
            self._decode(token, is_last=token.finish_reason is not None)
            end = self._find_stop()
            if end is not None:
                self._pending = [(kept, start) for kept, start in self._pending if start - self._offset < end]
                return self._piece(end, "stop")
            reason = token.finish_reason
        return self._piece(len(self._text) if reason else self._num_safe(), reason)

    def _decode(self, token: Token, *, is_last: bool) -> None:
        """Add the text of a token, or keep it until it is a whole character with those after it."""
        self._num_before_stop -= 1
        if INCOMPLETE not in self._codec.decode([token.id]):
            self._flush()  # bytes that cannot become a character any more
        self._pending.append((token, self._offset + len(self._text)))
        self._window.append(token.id)
        is_whole = INCOMPLETE not in self._codec.decode_after(self._context, self._window)
        if is_whole or is_last or len(self._window) == LONGEST_CHARACTER:
            self._flush()

    def _flush(self) -> None:
        if self._window:
            self._text += self._codec.decode_after(self._context, self._window)
            self._context = [*self._context, *self._window][-NUM_CONTEXT:]
            self._window = []

    def _find_stop(self) -> int | None:
        if self._num_before_stop > 0:
            return None
        begins = [self._text.find(stop, self._num_sent) for stop in self._stop]
        return min((begin for begin in begins if begin >= 0), default=None)

    def _num_safe(self) -> int:
        """Length of the text without an ending that may become a stop sequence."""
        for start in range(self._num_sent, len(self._text)):
            if any(stop.startswith(self._text[start:]) for stop in self._stop):
                return start
        return len(self._text)

    def _piece(self, end: int, reason: str | None) -> Piece:
        text = self._text[self._num_sent : end]
        self._num_sent = end
        ready = [item for item in self._pending if reason or item[1] - self._offset < end]
        self._pending = self._pending[len(ready) :]
        return Piece(text, ready, reason, is_generated=True)
