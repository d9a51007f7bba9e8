"""Choosing tokens: the same choice for the same text, seed and settings, on any machine and in any company.

One sampler for the endpoint, `growtx generate` and the samples of reports. torch is imported by the functions that
compute: a front end that only passes settings on does without it.

Shapes: V vocabulary.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

GREEDY_BELOW = 1e-5  # temperatures below are greedy: scores divided by them would leave the range of fp32
MAX_SORTED = 1024  # a nucleus nearly always fits into this many tokens, and finding them costs less than sorting V


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    `seed` and the position in the text alone decide the noise, so a choice does not depend on which replica makes
    it, beside which requests, or how much of the text was there before. Penalties and `min_tokens` depend on what was
    generated before, which `TextSoFar` carries.

    Attributes:
        top_k: keep so many of the most probable tokens; 0: all.
        top_p: keep the smallest set of that probability (Holtzman et al., arXiv:1904.09751).
        min_p: drop tokens less probable than this share of the most probable one (arXiv:2407.01082).
        repetition_penalty: divides positive and multiplies negative scores of tokens in prompt and text
            (arXiv:1909.05858).
        frequency_penalty, presence_penalty: subtracted per occurrence in the text, and once, as OpenAI defines them.
        logit_bias: (token id, added score) pairs.
        min_tokens: no end-of-text token before so many tokens.
        ignore_eos: an end-of-text token does not end the text.
        rule, weights: of an ensemble: how its members are combined.
    """

    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    num_logprobs: int | None = None
    rule: str | None = None
    weights: tuple[float, ...] | None = None
    attribution: bool = False

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is taken."""
        return self.temperature < GREEDY_BELOW

    @property
    def adjusts(self) -> bool:
        """Whether scores depend on more than the model."""
        plain = (1.0, 0.0, 0.0, (), 0)
        return plain != (
            self.repetition_penalty, self.frequency_penalty, self.presence_penalty, self.logit_bias, self.min_tokens
        )  # fmt: skip


@dataclass
class TextSoFar:
    """What penalties look at: the tokens of the prompt, without the hidden start token, and of the text."""

    prompt: frozenset[int] = frozenset()
    counts: Counter[int] = field(default_factory=Counter)

    @property
    def num_generated(self) -> int:
        return self.counts.total()


NOTHING_YET = TextSoFar()


def choose(
    scores_V: torch.Tensor,
    sampling: Sampling,
    position: int,
    text: TextSoFar = NOTHING_YET,
    eos_ids: Collection[int] = (),
) -> int:
    """The token at `position` of the text, counted from its first token.

    Sampling adds Gumbel noise and takes the largest sum (Gumbel 1954; Maddison et al., arXiv:1411.0030), so that
    rounding of the scores changes a choice only where two sums are equal to the last bits.
    """
    if sampling.adjusts:
        scores_V = adjust(scores_V, sampling, text, eos_ids)
    if sampling.is_greedy:
        return int(scores_V.argmax())
    scaled_V = scores_V / sampling.temperature
    if 0 < sampling.top_k < len(scaled_V):
        scaled_V = _only(scaled_V, scaled_V.topk(sampling.top_k).indices)
    if sampling.top_p < 1:
        scaled_V = keep_nucleus(scaled_V, sampling.top_p)
    if sampling.min_p > 0:
        probabilities_V = scaled_V.softmax(-1)
        scaled_V = scaled_V.masked_fill(probabilities_V < sampling.min_p * probabilities_V.max(), float("-inf"))
    return int((scaled_V + gumbel_noise(len(scaled_V), sampling.seed, position)).argmax())


def adjust(scores_V: torch.Tensor, sampling: Sampling, text: TextSoFar, eos_ids: Collection[int]) -> torch.Tensor:
    """Scores after bias, penalties and `min_tokens`; the given ones stay as they are."""
    import torch

    scores_V = scores_V.clone()
    if sampling.logit_bias:
        ids, biases = zip(*sampling.logit_bias, strict=True)
        scores_V[list(ids)] += torch.tensor(biases)
    seen = list(text.prompt | text.counts.keys())
    if sampling.repetition_penalty != 1 and seen:
        before = scores_V[seen]
        penalty = sampling.repetition_penalty
        scores_V[seen] = torch.where(before > 0, before / penalty, before * penalty)
    if text.counts and (sampling.frequency_penalty or sampling.presence_penalty):
        counts = torch.tensor(list(text.counts.values()), dtype=scores_V.dtype)
        scores_V[list(text.counts)] -= sampling.frequency_penalty * counts + sampling.presence_penalty
    if text.num_generated < sampling.min_tokens:
        scores_V[list(eos_ids)] = float("-inf")
    return scores_V


def gumbel_noise(num_tokens: int, seed: int, position: int) -> torch.Tensor:
    """Standard Gumbel noise [V], a function of seed and position (any machine, any number of threads)."""
    import torch

    digest = hashlib.blake2b(struct.pack("<qq", seed, position), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))
    uniform_V = torch.rand(num_tokens, generator=generator).clamp_(min=2.0**-25)
    return uniform_V.log_().neg_().log_().neg_()


def seed_of_choice(seed: int, choice: int) -> int:
    """The seed of one of several texts for a prompt: the given one for the first, independent ones for the others."""
    if choice == 0:
        return seed
    digest = hashlib.blake2b(struct.pack("<qq", seed, choice), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def keep_nucleus(scores_V: torch.Tensor, top_p: float) -> torch.Tensor:
    """Scores without the tokens outside the smallest set of probability `top_p` (Holtzman et al., arXiv:1904.09751)."""
    probabilities_V = scores_V.softmax(-1)
    largest, ids = probabilities_V.topk(min(MAX_SORTED, len(scores_V)))
    if float(largest.sum()) < top_p and len(ids) < len(scores_V):
        largest, ids = probabilities_V.sort(descending=True)
    mass_before = largest.cumsum(-1) - largest
    return _only(scores_V, ids[mass_before < top_p])


def _only(scores_V: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.full_like(scores_V, float("-inf")).index_copy_(0, kept, scores_V[kept])


def continue_text(
    model: Callable[..., Any],
    token_ids: Sequence[int],
    max_tokens: int,
    sampling: Sampling,
    *,
    eos_ids: Collection[int] = (),
    num_hidden: int = 0,
) -> list[int]:
    """Continue one text with a model in memory; the endpoint chooses the same tokens.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        token_ids: what is there, the hidden start token included; at least one.
        num_hidden: tokens at the beginning that were not part of the prompt.

    Returns:
        The new tokens, an end-of-text token included.
    """
    import torch

    text = TextSoFar(frozenset(token_ids[num_hidden:]))
    generated: list[int] = []
    new, cache = list(token_ids), None
    device = next(iter(getattr(model, "parameters", lambda: ())()), torch.zeros(0)).device
    while len(generated) < max_tokens:
        with torch.no_grad():
            output = model(input_ids=torch.tensor([new], device=device), past_key_values=cache, use_cache=True)
        scores_V = output.logits[0, -1].float().cpu()
        token = choose(scores_V, sampling, len(token_ids) + len(generated), text, eos_ids)
        generated.append(token)
        text.counts[token] += 1
        if token in eos_ids and not sampling.ignore_eos:
            break
        new, cache = [token], output.past_key_values
    return generated


def eos_token_ids(config: Any, generation_config: Any = None) -> list[int]:
    """End-of-text tokens of a model by its configurations; empty if it has none."""
    found = getattr(generation_config, "eos_token_id", None)
    found = getattr(config, "eos_token_id", None) if found is None else found
    return [] if found is None else [found] if isinstance(found, int) else list(found)


def log_probabilities(scores_V: torch.Tensor, token: int, num_top: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Natural logarithm of the token's probability, and the `num_top` most probable tokens with theirs."""
    logprobs_V = scores_V.log_softmax(-1)
    top, ids = logprobs_V.topk(num_top)
    return float(logprobs_V[token]), tuple(zip(ids.tolist(), top.tolist(), strict=True))


def attribute(member_logits: list[torch.Tensor], weights_N: torch.Tensor, token: int) -> tuple[float, ...]:
    """Each member's share in a token: weight times the probability that it gave the token, normalised."""
    import torch

    logprobs_N = torch.stack([logits_V[token] - logits_V.logsumexp(-1) for logits_V in member_logits])
    return tuple((weights_N.clamp(min=0).log() + logprobs_N).softmax(-1).nan_to_num(0.0).tolist())
