"""Choosing tokens so that seed and position decide, and nothing else.

Shapes: V vocabulary, N members.
"""

from __future__ import annotations

import hashlib
import struct

import torch

from serve.requests import Sampling

MAX_SORTED = 1024  # a nucleus is nearly always inside so few tokens, and finding them costs less than sorting V


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
