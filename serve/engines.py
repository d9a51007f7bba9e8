"""All engines of one process: one for every depth of a lineage that is served."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from serve.engine import Engine
from serve.requests import Generation, ModelCard, Sampling, Token


class Engines:
    """An engine for every depth of a lineage, in this process.

    Args:
        models: by depth; `None` is what a request gets that names no depth.
        options: of every `Engine`.
    """

    def __init__(
        self,
        models: Mapping[int | None, PreTrainedModel],
        tokenizer: PreTrainedTokenizerFast,
        **options: int | float,
    ) -> None:
        self._engines = {depth: Engine(model, **options) for depth, model in models.items()}  # type: ignore[arg-type]
        self._tokenizer = tokenizer
        for engine in self._engines.values():
            engine.start()

    def stop(self) -> None:
        """End all generation threads."""
        for engine in self._engines.values():
            engine.stop()

    def check_health(self) -> None:
        """Raise `EngineError` if a generation thread has died."""
        for engine in self._engines.values():
            engine.check_health()

    @property
    def num_running(self) -> int:
        """Texts that run or wait."""
        return sum(engine.num_running for engine in self._engines.values())

    @property
    def batch_size(self) -> int:
        """Texts that the last step computed together."""
        return max(engine.batch_size if engine.num_running else 0 for engine in self._engines.values())

    async def card(self) -> ModelCard:
        engine = self._engines[None]
        return ModelCard(
            tokenizer_json=self._tokenizer.backend_tokenizer.to_str(),
            vocab_size=engine.decoder.config.vocab_size,
            context_length=engine.context_length,
            depths=tuple(depth for depth in self._engines if depth is not None),
            members=engine.decoder.members,
            rules=tuple(engine.decoder.rules),
            start_token_id=self._tokenizer.eos_token_id,
        )

    def generate(self, request: Generation) -> AsyncGenerator[list[Token], None]:
        return self._engines[request.depth].generate(request)

    async def score(self, token_ids: tuple[int, ...], sampling: Sampling, depth: int | None) -> list[Token]:
        return await self._engines[depth].score(token_ids, sampling)

    async def metrics(self) -> str:
        return f"# TYPE growtx_running_texts gauge\ngrowtx_running_texts {self.num_running}\n"
