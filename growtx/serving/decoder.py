"""What continuous batching runs at every step: the members, the requests' rules, and the choice of their tokens.

transformers' continuous batching knows one logits tensor and one way of sampling. Here every request has its own
rule, weights, seed and temperature, so the decoder combines and chooses itself and hands over one-hot logits.

Shapes: T new tokens of all requests, R requests of a step, C of them that get a token, D hidden size, V vocabulary,
N members.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from growtx.compat.transformers import BatchedModel
from growtx.models.ensemble.fused import MemberLinear
from growtx.models.ensemble.rules import CombinationRule
from growtx.models.varlen_attention import MIN_ROWS
from growtx.sampling import Choice, Sampling, attribute, choose, eos_token_ids, log_probabilities
from growtx.serving.backbones import Depth, Depths, Found, Step, deepest, make_backbone
from growtx.serving.requests import Token

SCORED_ROWS = 128  # prompt positions whose logits exist at the same time


class Place(NamedTuple):
    """A request in a step: the depth that it asks for, and its choice if it gets a token."""

    depth: Depth
    choice: Choice | None


class Decoder(BatchedModel):
    """A model or an ensemble at all depths that have their blocks in common, with the choice of tokens inside.

    Args:
        models: causal language models by depth, a stack (`stacks_of`); an ensemble offers its own rule and the
            stateless ones to every request.
        deliver: is called after every step with the tokens chosen for the requests that get one.
    """

    def __init__(self, models: Depths, deliver: Callable[[list[Token]], None]) -> None:
        super().__init__()
        self.deliver = deliver
        self.backbone = make_backbone(models)
        self.config = self.backbone.model.config
        self.rules = self.backbone.rules
        self.members = self.backbone.members
        self.default_rule = next(iter(self.rules), "")
        self.places: Sequence[Place] = ()
        model = deepest(models)
        self.eos_token_ids: Sequence[int] = eos_token_ids(model.config, model.generation_config)
        make_rows_independent(self.backbone)
        for rule in self.rules.values():
            make_rows_independent(rule)

    def num_blocks(self, depth: Depth) -> int:
        """Blocks that requests of this depth run through."""
        return self.backbone.exits[depth].num_blocks

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
        exits = self.backbone.exits
        exits_R = [exits[place.depth] for place in self.places]
        chosen = [place for place in self.places if place.choice is not None]
        exits_C = [exits[place.depth] for place in chosen]
        step = Step(input_ids, logits_to_keep[: len(chosen)], exits_R, exits_C)
        found = self.backbone.read(step, **kwargs)
        tokens = self._choose(found, [place.choice for place in chosen if place.choice])
        self.deliver(tokens)
        one_hot_1CV = torch.zeros(1, len(logits_to_keep), self.config.vocab_size, device=self.device)
        ids_C1 = torch.tensor([[token.id] for token in tokens], dtype=torch.long, device=self.device)
        one_hot_1CV[0, : len(tokens)].scatter_(1, ids_C1.view(-1, 1), 1.0)
        return one_hot_1CV

    @torch.no_grad()
    def score(self, token_ids: Sequence[int], sampling: Sampling, depth: Depth = None) -> list[Token]:
        """The tokens of a text from the second on, each with its probability after those before it."""
        every = torch.arange(len(token_ids) - 1, device=self.device)
        own = self.backbone.exits[depth]
        tokens_1T = torch.tensor([token_ids], device=self.device)
        found = self.backbone.read(Step(tokens_1T, every, [own], [own] * len(every)))
        tokens = []
        for start in range(0, len(every), SCORED_ROWS):
            rows = slice(start, start + SCORED_ROWS)
            targets = token_ids[1:][rows]
            samplings = [sampling] * len(targets)
            combined = self._combine(found.part(rows), samplings)
            tokens += self._describe(targets, samplings, combined)
        return tokens

    def _choose(self, found: Found, choices: Sequence[Choice]) -> list[Token]:
        if not choices:
            return []
        samplings = [choice.sampling for choice in choices]
        combined = self._combine(found, samplings)
        return self._describe(choose(combined.scores_CV, choices, self.eos_token_ids), samplings, combined)

    def _combine(self, found: Found, samplings: Sequence[Sampling]) -> _Combined:
        logits = self.backbone.logits(found.states, found.exits_C)
        used_CN = torch.ones(len(samplings), len(logits), device=logits[0].device)
        if not self.rules:
            return _Combined(logits[0], logits, used_CN)
        names = [sampling.rule or self.default_rule for sampling in samplings]
        for row, (name, sampling) in enumerate(zip(names, samplings, strict=True)):
            used_CN[row] = found.weights[name][row] if sampling.weights is None else torch.tensor(sampling.weights)
        scores_CV = torch.empty_like(logits[0])
        for name in dict.fromkeys(names):
            for rows in _together(self.rules[name], [row for row, other in enumerate(names) if other == name], used_CN):
                members = [member_CV[rows] for member_CV in logits]
                scores_CV[rows] = self.rules[name].combine(members, used_CN[rows])
                used_CN[rows] = self.rules[name].settle(members, used_CN[rows])
        return _Combined(scores_CV, logits, used_CN)

    def _describe(self, tokens: Sequence[int], samplings: Sequence[Sampling], combined: _Combined) -> list[Token]:
        """The tokens with what their requests want to know of them."""
        nothing: tuple[float | None, tuple[tuple[int, float], ...]] = (None, ())
        logprobs = [nothing] * len(tokens)
        asked = [row for row, sampling in enumerate(samplings) if sampling.num_logprobs is not None]
        if asked:
            numbers = [samplings[row].num_logprobs or 0 for row in asked]
            found = log_probabilities(combined.scores_CV[asked], [tokens[row] for row in asked], numbers)
            for row, logprob in zip(asked, found, strict=True):
                logprobs[row] = logprob
        if not self.rules:
            return [Token(token, *logprob) for token, logprob in zip(tokens, logprobs, strict=True)]
        shares: list[tuple[float, ...] | None] = [None] * len(tokens)
        asked = [row for row, sampling in enumerate(samplings) if sampling.attribution]
        if asked:
            logits = [member_CV[asked] for member_CV in combined.logits]
            parts = attribute(logits, combined.weights_CN[asked], [tokens[row] for row in asked])
            for row, part in zip(asked, parts, strict=True):
                shares[row] = part
        return [
            Token(token, *logprob, tuple(weights), part)
            for token, logprob, weights, part in zip(
                tokens, logprobs, combined.weights_CN.tolist(), shares, strict=True
            )
        ]


class _Combined(NamedTuple):
    """Combined scores [C, V], the members' logits, and the weights [C, N] that each row used."""

    scores_CV: torch.Tensor
    logits: list[torch.Tensor]
    weights_CN: torch.Tensor


def _together(rule: CombinationRule, rows: list[int], like: torch.Tensor) -> Sequence[list[int] | slice]:
    """The rows of a rule in groups that may be computed at once without a row's result depending on the others.

    Weighted sums round in one way only. Functions beyond those are vectorized on a CPU, and what is left over at the
    end of a tensor is computed by others, which round differently.
    """
    if like.device.type == "cpu" and type(rule).combine is not CombinationRule.combine:
        return [[row] for row in rows]
    return [slice(None) if len(rows) == len(like) else rows]


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
