"""Text to ids and back for clients that have no tokenizer of the model: vLLM's routes, which lm-eval asks, too."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from growtx.serving.chat import Chat, Messages
from growtx.serving.completions import Completions
from growtx.serving.errors import ApiError
from growtx.serving.protocol import Strict, TokenId
from growtx.serving.requests import ModelInfo

ModelName = Annotated[str, Field(max_length=1024)]


class TokenizeRequest(Strict):
    """Body of POST /tokenize: a text, or a conversation for the chat template."""

    model: ModelName | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = Field(True, description="with the token that begins a document")
    add_generation_prompt: bool | None = Field(True, description="of messages: up to where the answer begins")
    return_token_strs: bool | None = False

    @model_validator(mode="after")
    def _says_one_thing(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class TokenizeResponse(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Strict):
    """Body of POST /detokenize."""

    model: ModelName | None = None
    tokens: list[TokenId]


class DetokenizeResponse(BaseModel):
    prompt: str


class TokenizerInfo(BaseModel):
    """What GET /tokenizer_info says; names as in tokenizer_config.json."""

    tokenizer_class: Literal["PreTrainedTokenizerFast"] = "PreTrainedTokenizerFast"
    model_max_length: int
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    unk_token: str | None = None
    chat_template: str | None = None


async def tokenize(completions: Completions, chat: Chat, body: TokenizeRequest) -> TokenizeResponse:
    """The ids that a completion of the text or the conversation would begin with.

    Raises:
        ApiError: another model, or messages without a template.
    """
    if body.model is not None:
        completions.check_model(body.model)
    ids = await _ids(completions, chat, body)
    codec = completions.codec
    return TokenizeResponse(
        count=len(ids),
        max_model_len=completions.card.longest_text,
        tokens=ids,
        token_strs=[codec.name(index) for index in ids] if body.return_token_strs else None,
    )


async def _ids(completions: Completions, chat: Chat, body: TokenizeRequest) -> list[int]:
    codec, with_start = completions.codec, body.add_special_tokens is not False
    if body.messages is not None:
        prompt = await chat.prompt(body.messages, add_generation_prompt=body.add_generation_prompt is not False)
        return prompt.token_ids if with_start else prompt.token_ids[prompt.num_hidden :]
    text = body.prompt or ""
    if not with_start and text in codec.control_tokens:  # how lm-eval asks for the id of the end-of-text token
        return [codec.control_tokens[text]]
    ids = await asyncio.to_thread(codec.spell, text)
    return [codec.start_token_id, *ids] if with_start else ids


async def detokenize(completions: Completions, body: DetokenizeRequest) -> DetokenizeResponse:
    """The text of some ids; control tokens have none.

    Raises:
        ApiError: another model, or ids that it does not have.
    """
    if body.model is not None:
        completions.check_model(body.model)
    if max(body.tokens, default=0) >= completions.card.vocab_size:
        raise ApiError(400, f"tokens: ids must be below {completions.card.vocab_size}", param="tokens")
    return DetokenizeResponse(prompt=await asyncio.to_thread(completions.codec.decode, body.tokens))


def tokenizer_info(card: ModelInfo, chat_template: str | None) -> TokenizerInfo:
    """What clients need to know of the tokenizer."""
    return TokenizerInfo(model_max_length=card.longest_text, chat_template=chat_template, **card.special_tokens)
