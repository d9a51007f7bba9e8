"""The HTTP contract: what a completion request may contain and what is answered (OpenAI's, plus `growtx`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MAX_SEED = 2**63 - 1
MAX_TOKEN_ID = 2**31 - 1
MAX_STOP_CHARACTERS = 256

TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
StopSequence = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Weight = Annotated[float, Field(ge=-100, le=100)]


class Strict(BaseModel):
    """Strict types, no unknown fields, no infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class GrowtxExtension(Strict):
    """What OpenAI's API has no field for."""

    rule: Annotated[str, Field(max_length=64)] | None = Field(None, description="how members are combined")
    weights: Annotated[list[Weight], Field(min_length=1, max_length=256)] | None = Field(
        None, description="one weight per member, instead of the rule's own"
    )
    depth: Annotated[int, Field(ge=1, le=100_000)] | None = Field(None, description="stage of the lineage, in blocks")
    attribution: bool = Field(False, description="return, for every token, each member's weight and share")


class StreamOptions(Strict):
    """OpenAI's `stream_options`."""

    include_usage: bool = False


class CompletionRequest(Strict):
    """Body of POST /v1/completions."""

    model: Annotated[str, Field(max_length=1024)]
    prompt: str | TokenIds | Annotated[list[str], Field(min_length=1)] | Annotated[list[TokenIds], Field(min_length=1)]
    max_tokens: int | None = Field(16, ge=0, le=MAX_TOKEN_ID, description="0 is allowed only with echo")
    temperature: float | None = Field(1.0, ge=0, le=2)
    top_p: float | None = Field(1.0, gt=0, le=1)
    n: int | None = Field(1, ge=1, le=128)
    seed: int | None = Field(None, ge=-MAX_SEED - 1, le=MAX_SEED)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    stop: StopSequence | list[StopSequence] | None = None
    logprobs: int | None = Field(None, ge=0, le=20, description="return this many of the top tokens per position")
    echo: bool | None = False
    user: Annotated[str, Field(max_length=1024)] | None = Field(None, description="accepted but ignored")
    growtx: GrowtxExtension = GrowtxExtension()
    # Parts of OpenAI's API that are accepted only where they change nothing.
    best_of: int | None = Field(None, ge=1, le=128, description="must equal n")
    presence_penalty: float | None = Field(0, ge=0, le=0, description="not supported: 0")
    frequency_penalty: float | None = Field(0, ge=0, le=0, description="not supported: 0")
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = Field(None, description="not supported: empty")
    suffix: None = Field(None, description="not supported: null")

    @field_validator("stream", "echo", mode="before")
    @classmethod
    def _null_is_false(cls, value: Any) -> Any:
        return False if value is None else value

    @model_validator(mode="after")
    def _fits_together(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of is not supported: leave it out or set it to n")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0, so nothing would be returned: raise it, or set echo")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream to be true")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """Every prompt by itself."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return self.prompt  # type: ignore[return-value]

    @property
    def stop_sequences(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class ErrorBody(BaseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """What every status but 200 carries."""

    error: ErrorBody


class Logprobs(BaseModel):
    """OpenAI's logprobs of legacy completions: parallel lists over tokens."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Attribution(BaseModel):
    """Per generated token: its text, every member's weight, and every member's share in the token."""

    tokens: list[str]
    weights: list[list[float]]
    shares: list[list[float]]


class Choice(BaseModel):
    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    growtx: Attribution | None = None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(BaseModel):
    """Body of a 200, and of every event of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None


class ModelDetails(BaseModel):
    """What this model offers to clients."""

    members: list[str]
    rules: list[str]
    depths: list[int]
    context_length: int
    vocab_size: int


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "growtx"
    growtx: ModelDetails


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]
