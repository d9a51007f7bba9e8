"""From a conversation to the ids of a prompt, by the model's jinja template or by a plain transcript.

A template is a program that writes text, and control tokens are text to it (`<|im_start|>`). So that a message cannot
forge one, the template never sees what is in the messages: it gets a random word for each, the words are replaced
by the messages afterwards, and control tokens are read only in what the template itself wrote.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from jinja2 import Template

TRANSCRIPT = (
    "{% for message in messages %}"
    "{{ {'system': '', 'user': 'User: ', 'assistant': 'Assistant: '}[message.role] ~ message.content ~ '\n' }}"
    "{% endfor %}{{ 'Assistant:' if add_generation_prompt }}"
)
TRANSCRIPT_STOP = ("\nUser:",)  # a model that has learned no end of an answer goes on with the next question

Message = Mapping[str, str]


class ChatTemplate:
    """A template as an endpoint uses it.

    Args:
        source: jinja, as in a tokenizer's `chat_template`.
        control_tokens: ids of the tokens that no text spells, by name.
        special_tokens: variables of the template such as `eos_token`.
    """

    def __init__(self, source: str, control_tokens: Mapping[str, int], special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self.is_transcript = source == TRANSCRIPT
        self._control_tokens = control_tokens
        # The token that begins a document is put first in any case (`ModelInfo.start_token_id`).
        self._variables = {**special_tokens, "bos_token": "", "tools": None, "documents": None}
        longest_first = sorted(filter(None, control_tokens), key=len, reverse=True)
        self._control = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        self._space_is_text = not any(re.search(r"\s", token) for token in control_tokens)

    def parts(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[str | int]:
        """The prompt: texts, which spell no control token whatever they look like, and ids of control tokens.

        Raises:
            jinja2.TemplateError: the template is wrong or refuses the messages; other errors of its program come, too.
        """
        word = f"x{secrets.token_hex(16)}x"
        texts: list[str] = []

        def hidden(text: str) -> str:
            core = text.strip() if self._space_is_text else text
            if not core:
                return text
            texts.append(core)
            before, _, after = text.partition(core)  # white space stays, for templates that trim it
            return f"{before}{word}{len(texts) - 1}x{after}"

        concealed = [
            {key: value if key == "role" else hidden(value) for key, value in message.items()} for message in messages
        ]
        written = self._template.render(
            messages=concealed, add_generation_prompt=add_generation_prompt, **self._variables
        )
        pieces = re.split(rf"{word}(\d+)x", written)
        if any(word[:12] in piece.lower() for piece in pieces[::2]):
            raise ValueError("it changes the text of messages in a way that cannot be followed")
        return self._revealed(pieces, texts)

    def _revealed(self, pieces: Sequence[str], texts: Sequence[str]) -> list[str | int]:
        """Parts of the prompt from what the template wrote and, at odd places, the numbers of concealed texts."""
        parts: list[str | int] = []
        run = ""
        for at, piece in enumerate(pieces):
            if at % 2:
                run += texts[int(piece)]
                continue
            plain, *others = self._control.split(piece)
            run += plain
            for control, following in zip(others[::2], others[1::2], strict=True):
                parts += [run, self._control_tokens[control]]
                run = following
        return [part for part in [*parts, run] if part != ""]

    @cached_property
    def _template(self) -> Template:
        return compiled(self.source)


def compiled(source: str) -> Template:
    """A template in a sandbox, with what the templates of transformers may use.

    Raises:
        jinja2.TemplateSyntaxError: it is none.
    """
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.filters["tojson"] = _to_json
    return environment.from_string(source)


def _refuse(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    """jinja's own would escape letters for HTML."""
    import json

    return json.dumps(value, ensure_ascii=options.pop("ensure_ascii", False), indent=indent, **options)
