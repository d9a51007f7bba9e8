"""What continuous batching runs at every step: the members, the requests' rules, and the choice of their tokens.

transformers' continuous batching knows one logits tensor and one way of sampling. Here every request has its own
rule, weights, seed and temperature, so the decoder combines and chooses itself and hands over one-hot logits.

Shapes: T new tokens of all requests, C requests that get a token, D hidden size, V vocabulary, N members.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from growtx.compat.transformers import BatchedModel
from growtx.models.ensemble.fused import MemberLinear
from growtx.models.varlen_attention import MIN_ROWS
from growtx.sampling import (
    Sampling,
    TextSoFar,
    attribute,
    choose,
    eos_token_ids,
    log_probabilities,
)
from growtx.serving.backbones import make_backbone
from growtx.serving.requests import Token

SCORED_ROWS = 128  # prompt positions whose logits exist at the same time


@dataclass(frozen=True)
class TokenChoice:
    """How a row of a step chooses its token, at which position of the text, and after what."""

    sampling: Sampling
    position: int
    text: TextSoFar = field(default_factory=TextSoFar)


class Decoder(BatchedModel):
    """A model or an ensemble, with the choice of tokens inside.

    Args:
        model: a causal language model; an ensemble offers its own rule and the stateless ones to every request.
        deliver: is called after every step with the tokens chosen for `choices`.
    """

    def __init__(self, model: PreTrainedModel, deliver: Callable[[list[Token]], None]) -> None:
        super().__init__()
        self.deliver = deliver
        self.backbone = make_backbone(model)
        self.config = self.backbone.model.config
        self.rules = self.backbone.rules
        self.members = self.backbone.members
        self.default_rule = next(iter(self.rules), "")
        self.choices: Sequence[TokenChoice] = ()
        self.eos_token_ids: Sequence[int] = eos_token_ids(model.config, model.generation_config)
        make_rows_independent(self.backbone)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.backbone.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.backbone.model.dtype
        return dtype

    def set_attn_implementation(self, name: str) -> None:
        self.backbone.model.set_attn_implementation(name)

    def step(self, input_ids: torch.Tensor, logits_to_keep: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """One step over packed requests [1, T].

        Returns:
            One-hot logits [1, C, V], whose argmax continuous batching takes as the next tokens.
        """
        states, weights = self.backbone.read(input_ids, logits_to_keep[: max(1, len(self.choices))], **kwargs)
        tokens = self._choose(states, weights)
        self.deliver(tokens)
        one_hot = torch.zeros(1, len(logits_to_keep), self.config.vocab_size)
        for row, token in enumerate(tokens):
            one_hot[0, row, token.id] = 1.0
        return one_hot

    @torch.no_grad()
    def score(self, token_ids: Sequence[int], sampling: Sampling) -> list[Token]:
        """The tokens of a text from the second on, each with its probability after those before it."""
        every = torch.arange(len(token_ids) - 1, device=self.device)
        states, weights = self.backbone.read(torch.tensor([token_ids], device=self.device), every)
        tokens = []
        for start in range(0, len(every), SCORED_ROWS):
            rows = slice(start, start + SCORED_ROWS)
            targets = token_ids[1:][rows]
            scores_CV, logits, weights_CN = self._combine(
                [state[rows] for state in states],
                {name: rule_weights[rows] for name, rule_weights in weights.items()},
                [sampling] * len(targets),
            )
            tokens += [
                self._describe(token, sampling, scores_CV[row], [part[row] for part in logits], weights_CN[row])
                for row, token in enumerate(targets)
            ]
        return tokens

    def _choose(self, states: list[torch.Tensor], weights: dict[str, torch.Tensor]) -> list[Token]:
        if not self.choices:
            return []
        samplings = [choice.sampling for choice in self.choices]
        scores_CV, logits, weights_CN = self._combine(states, weights, samplings)
        return [
            self._describe(
                choose(scores_CV[row], choice.sampling, choice.position, choice.text, self.eos_token_ids),
                choice.sampling,
                scores_CV[row],
                [part[row] for part in logits],
                weights_CN[row],
            )
            for row, choice in enumerate(self.choices)
        ]

    def _combine(
        self, states: list[torch.Tensor], weights: dict[str, torch.Tensor], samplings: Sequence[Sampling]
    ) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """Combined scores [C, V], the members' logits, and the weights [C, N] that each row used."""
        # On the host, where noise comes from the same random generator on every machine.
        logits = [head(states_CD).float().cpu() for head, states_CD in zip(self.backbone.heads, states, strict=True)]
        used_CN = torch.ones(len(samplings), len(logits))
        if not self.rules:
            return logits[0], logits, used_CN
        scores_CV = torch.empty_like(logits[0])
        for row, sampling in enumerate(samplings):  # one by one: elementwise rounding may depend on the place, too
            name = sampling.rule or self.default_rule
            used_CN[row] = weights[name][row] if sampling.weights is None else torch.tensor(sampling.weights)
            scores_CV[row] = self.rules[name].combine([member_CV[row] for member_CV in logits], used_CN[row])
        return scores_CV, logits, used_CN

    def _describe(
        self,
        token: int,
        sampling: Sampling,
        scores_V: torch.Tensor,
        member_logits: list[torch.Tensor],
        weights_N: torch.Tensor,
    ) -> Token:
        logprob: float | None = None
        top: tuple[tuple[int, float], ...] = ()
        if sampling.num_logprobs is not None:
            logprob, top = log_probabilities(scores_V, token, sampling.num_logprobs)
        if not self.rules:
            return Token(token, logprob, top)
        shares = attribute(member_logits, weights_N, token) if sampling.attribution else None
        return Token(token, logprob, top, tuple(weights_N.tolist()), shares)


def make_rows_independent(model: nn.Module) -> None:
    """Let no linear map see fewer than `MIN_ROWS` rows, so that a row's result does not depend on the other rows.

    Matrix products of one to three rows take another path through the CPU's library than those of more rows, and
    round differently.
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, MemberLinear)):
            plain = module.forward
            module.forward = _padded(plain)  # type: ignore[method-assign]


def _padded(linear: Callable[..., Any]) -> Callable[..., Any]:
    def forward(states: torch.Tensor, *targets: Any, **kwargs: Any) -> Any:
        num_rows = states.shape[-2]
        if num_rows >= MIN_ROWS or targets or kwargs:
            return linear(states, *targets, **kwargs)
        return linear(F.pad(states, (0, 0, 0, MIN_ROWS - num_rows)))[..., :num_rows, :]

    return forward
