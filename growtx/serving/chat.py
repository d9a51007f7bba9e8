"""`POST /v1/chat/completions`: a conversation becomes the prompt of a completion, and its parts become messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, model_validator

from growtx.serving.chat_template import TRANSCRIPT_STOP, ChatTemplate
from growtx.serving.completions import Completions, Prompt
from growtx.serving.errors import ApiError
from growtx.serving.protocol import (
    MAX_TOKEN_ID,
    NEUTRAL,
    Attribution,
    Choice,
    Completion,
    CompletionRequest,
    Logprobs,
    SamplingRequest,
    Strict,
    Usage,
    one_problem,
)

NO_TEMPLATE = (
    "This model has no chat template: start the server with chat_template=transcript (or a file with one), "
    "or use /v1/completions"
)
IN_BYTES = "bytes:"
MOST_CHARACTERS = 300  # of a template's error message


class TextPart(Strict):
    """One part of a message in OpenAI's longer form."""

    type: Literal["text"]
    text: str


class ChatMessage(Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        str | list[TextPart] | None,
        one_problem("a text, or a list of parts of the type text: the model reads no other"),
    ] = None
    name: Annotated[str, Field(max_length=1024)] | None = Field(None, description="given to the chat template")

    @model_validator(mode="before")
    @classmethod
    def _drop_what_is_empty(cls, message: Any) -> Any:
        """Clients send answers back as they got them, with fields such as `refusal` and `tool_calls` empty."""
        if not isinstance(message, dict):
            return message
        return {key: value for key, value in message.items() if key in cls.model_fields or value not in (None, [])}

    @property
    def for_template(self) -> dict[str, str]:
        """What templates know a message to be."""
        parts = self.content if isinstance(self.content, list) else [self.content or ""]
        text = "\n".join(part if isinstance(part, str) else part.text for part in parts)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": text, **({"name": self.name} if self.name else {})}


Messages = Annotated[list[ChatMessage], Field(min_length=1)]


class ChatRequest(SamplingRequest):
    """Body of POST /v1/chat/completions."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        **NEUTRAL,
        "add_generation_prompt": (True,),
        "add_special_tokens": (True, False),  # the template decides what begins a prompt
        "chat_template_kwargs": ({},),
        "continue_final_message": (False,),
        "echo": (False,),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "modalities": (["text"],),
        "parallel_tool_calls": (True, False),
        "reasoning_effort": ("none",),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "verbosity": ("medium",),
    }

    messages: Messages
    max_tokens: int | None = Field(
        None, ge=1, le=MAX_TOKEN_ID, description="at most this many; default: what the context holds"
    )
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20, description="return this many tokens per position")

    @model_validator(mode="after")
    def _has_logprobs_for_top(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self

    def as_completion(self) -> CompletionRequest:
        """The same request of a text; the prompt is made by the template."""
        shared = {name: getattr(self, name) for name in SamplingRequest.model_fields}
        if self.max_tokens is None:
            shared["max_tokens"] = MAX_TOKEN_ID  # cut to what there is room for
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return CompletionRequest.model_construct(**shared, prompt="", logprobs=logprobs)


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """OpenAI's logprobs of chats: an entry per token."""

    content: list[TokenLogprob]


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    growtx: Attribution | None = None


class ChatCompletion(BaseModel):
    """Body of a 200."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None


class ChatChunkChoice(BaseModel):
    index: int
    delta: dict[str, str] = Field(description="what is added to `content`; `role` stands in the first one only")
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    growtx: Attribution | None = None


class ChatChunk(BaseModel):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class Chat:
    """Conversations with the model behind `completions`; without a template each gets a sentence."""

    def __init__(self, completions: Completions, template: ChatTemplate | None) -> None:
        self._completions = completions
        self._template = template

    async def prompt(self, messages: Sequence[ChatMessage], *, add_generation_prompt: bool = True) -> Prompt:
        """What the model reads.

        Raises:
            ApiError: there is no template, it refuses the messages, or they are too long.
        """
        if self._template is None:
            raise ApiError(400, NO_TEMPLATE, param="messages", code="no_chat_template")
        return await asyncio.to_thread(self._prompt, self._template, messages, add_generation_prompt)

    def _prompt(self, template: ChatTemplate, messages: Sequence[ChatMessage], add_generation_prompt: bool) -> Prompt:
        spoken = [message.for_template for message in messages]
        try:
            parts = template.parts(spoken, add_generation_prompt=add_generation_prompt)
        except Exception as error:  # the template is a program; whatever it raises, these messages made it so
            reason = " ".join(str(error).split())[:MOST_CHARACTERS] or type(error).__name__
            raise ApiError(400, f"messages: the chat template refuses them: {reason}", param="messages") from error
        codec = self._completions.codec
        if not codec.may_fit(sum(len(part) for part in parts if isinstance(part, str))):
            raise self._completions.too_long("messages", 1)
        ids = [token for part in parts for token in ([part] if isinstance(part, int) else codec.spell(part))]
        if ids[:1] == [codec.start_token_id]:  # a template that writes it itself
            del ids[0]
        stop = TRANSCRIPT_STOP if template.is_transcript else ()
        return Prompt([codec.start_token_id, *ids], num_hidden=1, stop=stop, name="messages")

    async def run(self, body: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        """Events of a stream; see `Completions.run`."""
        begun: dict[int, bool] = {}
        async with aclosing(self._parts(body)) as parts:
            async for part in parts:
                choices = [self._chunk(choice, begun) for choice in part.choices]
                yield ChatChunk(
                    id=_chat_id(part), created=part.created, model=part.model, choices=choices, usage=part.usage
                )

    async def answer(self, body: ChatRequest) -> ChatCompletion:
        """The whole answer at once."""
        completion = body.as_completion()
        self._completions.check(completion)
        whole = await self._completions.answer(completion, await self.prompt(body.messages))
        choices = [
            ChatChoice(
                index=choice.index,
                message=AnswerMessage(content=self._without_margin(choice.text)),
                logprobs=_logprobs(choice.logprobs),
                finish_reason=choice.finish_reason,
                growtx=choice.growtx,
            )
            for choice in whole.choices
        ]
        return ChatCompletion(
            id=_chat_id(whole), created=whole.created, model=whole.model, choices=choices, usage=whole.usage
        )

    async def _parts(self, body: ChatRequest) -> AsyncGenerator[Completion, None]:
        completion = body.as_completion()
        self._completions.check(completion)
        async with aclosing(self._completions.run(completion, await self.prompt(body.messages))) as parts:
            async for part in parts:
                yield part

    def _chunk(self, choice: Choice, begun: dict[int, bool]) -> ChatChunkChoice:
        """One event; `begun` are the messages of which something was sent, and whether that was text."""
        has_text = begun.get(choice.index, False)
        text = choice.text if has_text else self._without_margin(choice.text)
        delta = {"content": text} if choice.index in begun else {"role": "assistant", "content": text}
        begun[choice.index] = has_text or bool(choice.text)
        return ChatChunkChoice(
            index=choice.index,
            delta=delta,
            logprobs=_logprobs(choice.logprobs),
            finish_reason=choice.finish_reason,
            growtx=choice.growtx,
        )

    def _without_margin(self, text: str) -> str:
        """The beginning of an answer, without the space after `Assistant:`."""
        return text.removeprefix(" ") if self._template is not None and self._template.is_transcript else text


def _chat_id(part: Completion) -> str:
    return f"chat{part.id}"


def _logprobs(logprobs: Logprobs | None) -> ChatLogprobs | None:
    if logprobs is None:
        return None
    return ChatLogprobs(
        content=[
            TokenLogprob(
                token=token,
                logprob=logprob or 0.0,
                bytes=_bytes(token),
                top_logprobs=[
                    TopLogprob(token=name, logprob=value, bytes=_bytes(name)) for name, value in (top or {}).items()
                ],
            )
            for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True)
        ]
    )


def _bytes(name: str) -> list[int]:
    """The bytes of a token by its name in completions: its text, or `bytes:\\x..`."""
    if name.startswith(IN_BYTES + "\\x"):
        return [int(byte, 16) for byte in name.removeprefix(IN_BYTES + "\\x").split("\\x")]
    return list(name.encode())
