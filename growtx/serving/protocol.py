"""The HTTP contract: what a completion request may contain and what is answered (OpenAI's, plus `growtx`)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

MAX_SEED = 2**63 - 1
MAX_TOKEN_ID = 2**31 - 1
MAX_STOP_CHARACTERS = 256

TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
StopSequence = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Weight = Annotated[float, Field(ge=-100, le=100)]
Bias = Annotated[float, Field(ge=-100, le=100)]
MAX_BIASES = 1024


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
    """OpenAI's `stream_options`, and vLLM's `continuous_usage_stats`."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = Field(False, description="usage so far in every event")
    include_obfuscation: bool | None = Field(False, description="accepted but ignored")


# What clients send by default and what changes nothing: accepted with these values, refused by name with others.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),  # and n, see below
    "early_stopping": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "priority": (0,),
    "response_format": ({"type": "text"},),
    "return_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "stop_token_ids": ([],),
    "store": (False,),
    "suffix": ("",),
    "tfs": (1,),
    "typical_p": (1,),
    "use_beam_search": (False,),
}
IGNORED = ("metadata", "service_tier", "safety_identifier", "prompt_cache_key")


def one_problem(what: str) -> WrapValidator:
    """Let a union say what it takes, instead of what each of its members misses."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            raise PydanticCustomError("union", "must be {what}", {"what": what}) from error

    return WrapValidator(check)


Prompt = Annotated[
    str | TokenIds | Annotated[list[str], Field(min_length=1)] | Annotated[list[TokenIds], Field(min_length=1)],
    one_problem("a text, a list of token ids, or a list of either, none of them empty"),
]
Stop = Annotated[
    StopSequence | list[StopSequence],
    one_problem(f"a text of 1 to {MAX_STOP_CHARACTERS} characters, or a list of them"),
]
BiasedToken = Annotated[str, Field(pattern=r"^[0-9]{1,10}$")]


class SamplingRequest(Strict):
    """What a request for texts may contain, however it says what to continue."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = NEUTRAL

    model: Annotated[str, Field(max_length=1024)]
    max_tokens: int | None = Field(None, ge=0, le=MAX_TOKEN_ID, description="at most this many")
    temperature: float | None = Field(1.0, ge=0, le=2)
    top_p: float | None = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=MAX_TOKEN_ID, description="keep so many tokens; 0 and -1: all")
    min_p: float | None = Field(0.0, ge=0, le=1, description="drop tokens below this share of the most probable one")
    n: int | None = Field(1, ge=1, le=128)
    seed: int | None = Field(None, ge=-MAX_SEED - 1, le=MAX_SEED)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    stop: Stop | None = None
    presence_penalty: float | None = Field(0.0, ge=-2, le=2)
    frequency_penalty: float | None = Field(0.0, ge=-2, le=2)
    repetition_penalty: float | None = Field(1.0, gt=0, le=10)
    logit_bias: Annotated[dict[BiasedToken, Bias], Field(max_length=MAX_BIASES)] | None = Field(
        None, description="added to the scores of tokens, by id"
    )
    min_tokens: int | None = Field(0, ge=0, le=MAX_TOKEN_ID, description="no end of the text before so many tokens")
    ignore_eos: bool | None = Field(False, description="an end-of-text token does not end the text")
    user: Annotated[str, Field(max_length=1024)] | None = Field(None, description="accepted but ignored")
    growtx: GrowtxExtension | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_what_changes_nothing(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        kept = dict(body)
        if "max_completion_tokens" in kept and kept.get("max_tokens") is None:
            kept["max_tokens"] = kept.pop("max_completion_tokens")
        for name in set(kept) - set(cls.model_fields):
            value = kept[name]
            is_default = any(_same(value, neutral) for neutral in cls.neutral.get(name, ()))
            if value is None or name in IGNORED or is_default or (name == "best_of" and _same(value, body.get("n"))):
                del kept[name]
            elif name in cls.neutral:
                raise PydanticCustomError("unsupported", "{name} is not supported: leave it out", {"name": name})
        return kept

    @field_validator("stream", mode="before")
    @classmethod
    def _null_is_false(cls, value: Any) -> Any:
        return False if value is None else value

    @model_validator(mode="after")
    def _streams_what_it_has_options_for(self) -> SamplingRequest:
        options = self.stream_options
        if options is not None and not self.stream and (options.include_usage or options.continuous_usage_stats):
            raise ValueError("stream_options needs stream to be true")
        return self

    @property
    def extension(self) -> GrowtxExtension:
        return self.growtx or GrowtxExtension()

    @property
    def stop_sequences(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class CompletionRequest(SamplingRequest):
    """Body of POST /v1/completions."""

    prompt: Prompt
    max_tokens: int | None = Field(
        None, ge=0, le=MAX_TOKEN_ID, description="at most this many; default 16; 0 only with echo"
    )
    logprobs: int | None = Field(None, ge=0, le=20, description="return this many of the top tokens per position")
    echo: bool | None = False
    add_special_tokens: bool | None = Field(True, description="a text prompt begins a document")

    @field_validator("echo", mode="before")
    @classmethod
    def _no_echo_is_false(cls, value: Any) -> Any:
        return False if value is None else value

    @model_validator(mode="after")
    def _returns_something(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0, so nothing would be returned: raise it, or set echo")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """Every prompt by itself."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return self.prompt  # type: ignore[return-value]


def _same(value: Any, neutral: Any) -> bool:
    """Equal, where true is not 1."""
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)


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
    max_model_len: int = Field(description="tokens of a text prompt and its continuation together")
    growtx: ModelDetails


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]
