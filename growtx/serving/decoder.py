"""What continuous batching runs at every step: the members, the requests' rules, and the choice of their tokens.

transformers' continuous batching knows one logits tensor and one way of sampling. Here every request has its own
rule, weights, seed and temperature, so the decoder combines and chooses itself and hands over one-hot logits.

Shapes: T new tokens of all requests, C requests that get a token, D hidden size, V vocabulary, N members.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from growtx.compat.transformers import BatchedModel
from growtx.models.ensemble.fused import MemberLinear
from growtx.models.varlen_attention import MIN_ROWS
from growtx.serving.backbones import make_backbone
from growtx.serving.requests import Sampling, Token

# Choosing tokens so that nothing but seed and position decides.
#
# Shapes: V vocabulary, N members.


MAX_SORTED = 1024  # a nucleus nearly always fits into this many tokens, and finding them costs less than sorting V


def choose(scores_V: torch.Tensor, sampling: Sampling, position: int) -> int:
    """The token at `position` of the text.

    Sampling adds Gumbel noise and takes the largest sum (Gumbel 1954; Maddison et al., arXiv:1411.0030), so that
    rounding of the scores changes a choice only where two sums are equal to the last bits.
    """
    if sampling.temperature == 0:
        return int(scores_V.argmax())
    scaled_V = scores_V / sampling.temperature
    if sampling.top_p < 1:
        scaled_V = keep_nucleus(scaled_V, sampling.top_p)
    return int((scaled_V + gumbel_noise(len(scaled_V), sampling.seed, position)).argmax())


def gumbel_noise(num_tokens: int, seed: int, position: int) -> torch.Tensor:
    """Standard Gumbel noise [V], a function of seed and position (any machine, any number of threads)."""
    digest = hashlib.blake2b(struct.pack("<qq", seed, position), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))
    uniform_V = torch.rand(num_tokens, generator=generator).clamp_(min=2.0**-25)
    return uniform_V.log_().neg_().log_().neg_()


def keep_nucleus(scores_V: torch.Tensor, top_p: float) -> torch.Tensor:
    """Scores without the tokens outside the smallest set of probability `top_p` (Holtzman et al., arXiv:1904.09751)."""
    probabilities_V = scores_V.softmax(-1)
    largest, ids = probabilities_V.topk(min(MAX_SORTED, len(scores_V)))
    if float(largest.sum()) < top_p and len(ids) < len(scores_V):
        largest, ids = probabilities_V.sort(descending=True)
    mass_before = largest.cumsum(-1) - largest
    kept = ids[mass_before < top_p]
    return torch.full_like(scores_V, float("-inf")).index_copy_(0, kept, scores_V[kept])


def log_probabilities(scores_V: torch.Tensor, token: int, num_top: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Natural logarithm of the token's probability, and the `num_top` most probable tokens with theirs."""
    logprobs_V = scores_V.log_softmax(-1)
    top, ids = logprobs_V.topk(num_top)
    return float(logprobs_V[token]), tuple(zip(ids.tolist(), top.tolist(), strict=True))


def attribute(member_logits: list[torch.Tensor], weights_N: torch.Tensor, token: int) -> tuple[float, ...]:
    """Each member's share in a token: weight times the probability that it gave the token, normalised."""
    logprobs_N = torch.stack([logits_V[token] - logits_V.logsumexp(-1) for logits_V in member_logits])
    return tuple((weights_N.clamp(min=0).log() + logprobs_N).softmax(-1).nan_to_num(0.0).tolist())


SCORED_ROWS = 128  # prompt positions whose logits exist at the same time

TokenChoice = tuple[Sampling, int]  # how, and at which position of the text


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
        samplings = [sampling for sampling, _ in self.choices]
        scores_CV, logits, weights_CN = self._combine(states, weights, samplings)
        return [
            self._describe(
                choose(scores_CV[row], sampling, position),
                sampling,
                scores_CV[row],
                [part[row] for part in logits],
                weights_CN[row],
            )
            for row, (sampling, position) in enumerate(self.choices)
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
