"""Choosing tokens: the same choice for the same text, seed and settings, on any machine and in any company.

One sampler for the endpoint, `growtx generate` and the samples of reports. torch is imported by the functions that
compute: a front end that only passes settings on does without it.

Shapes: C texts, R those of them whose tokens are drawn, V vocabulary.
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


@dataclass(frozen=True)
class Choice:
    """How one text of a batch gets its next token: at which position, counted from its first token, and after what."""

    sampling: Sampling
    position: int
    text: TextSoFar = field(default_factory=TextSoFar)


def choose(scores_CV: torch.Tensor, choices: Sequence[Choice], eos_ids: Collection[int] = ()) -> list[int]:
    """The next tokens of texts, computed together on the device of their scores.

    Sampling adds Gumbel noise and takes the largest sum (Gumbel 1954; Maddison et al., arXiv:1411.0030), so that
    rounding of the scores changes a choice only where two sums are equal to the last bits. The noise is made of integer
    products, the same on every device, and nothing of a row depends on the other rows.

    Args:
        scores_CV: in fp32; untouched.
        eos_ids: tokens that end a text.
    """
    samplings = [choice.sampling for choice in choices]
    if any(sampling.adjusts for sampling in samplings):
        scores_CV = adjust(scores_CV, choices, eos_ids)
    drawn = [row for row, sampling in enumerate(samplings) if not sampling.is_greedy]
    if not drawn:
        return scores_CV.argmax(-1).tolist()  # type: ignore[no-any-return]
    tokens_C = scores_CV.argmax(-1)
    num_rows = len(drawn) if scores_CV.device.type != "cpu" else max(1, NUMBERS_AT_ONCE // scores_CV.shape[1])
    for start in range(0, len(drawn), num_rows):
        rows = drawn[start : start + num_rows]
        tokens_C[rows] = _draw(scores_CV[rows], [choices[row] for row in rows])
    return tokens_C.tolist()  # type: ignore[no-any-return]


def _draw(scores_RV: torch.Tensor, choices: Sequence[Choice]) -> torch.Tensor:
    """Tokens [R] by noise."""
    samplings = [choice.sampling for choice in choices]
    scaled_RV = scores_RV / _column(scores_RV, [sampling.temperature for sampling in samplings])
    noisy_RV = add_gumbel_noise(scaled_RV, [(choice.sampling.seed, choice.position) for choice in choices])
    if any(0 < sampling.top_k < scaled_RV.shape[1] for sampling in samplings):
        is_beyond_RV = scaled_RV < _kth_largest(scaled_RV, [sampling.top_k for sampling in samplings])
        for values_RV in (scaled_RV, noisy_RV):
            values_RV.masked_fill_(is_beyond_RV, float("-inf"))
    if any(sampling.min_p > 0 for sampling in samplings):
        least_R1 = _column(scores_RV, [sampling.min_p for sampling in samplings]).log()
        noisy_RV.masked_fill_(scaled_RV - scaled_RV.amax(-1, keepdim=True) < least_R1, float("-inf"))
    cut = [row for row, sampling in enumerate(samplings) if sampling.top_p < 1]
    tokens_R = noisy_RV.argmax(-1)
    if cut:
        top_ps = [samplings[row].top_p for row in cut]
        tokens_R[cut] = _within_nucleus(scaled_RV[cut], noisy_RV[cut], top_ps)
    return tokens_R


def _column(like: torch.Tensor, values: Sequence[float]) -> torch.Tensor:
    import torch

    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def _kth_largest(scaled_RV: torch.Tensor, top_ks: Sequence[int]) -> torch.Tensor:
    """The least score [R, 1] that each row keeps, -inf where it keeps all; ties with it stay, in whatever order."""
    import torch

    vocab_size = scaled_RV.shape[1]
    ranks_R1 = torch.tensor([min(k, vocab_size) - 1 for k in top_ks], device=scaled_RV.device)[:, None]
    largest_RK = scaled_RV.topk(int(ranks_R1.amax()) + 1).values
    return largest_RK.gather(1, ranks_R1.clamp(min=0)).masked_fill(ranks_R1 < 0, float("-inf"))


def _within_nucleus(scaled_RV: torch.Tensor, noisy_RV: torch.Tensor, top_ps: Sequence[float]) -> torch.Tensor:
    """The tokens [R] with the largest noisy score among those of the smallest set of probability `top_p`.

    Without sorting: the favourite is in the set if the tokens before it, which are more probable or equally so with
    a smaller id, have less than `top_p` together. If it is not, neither are those after it, and the next favourite is
    tried. Each is accepted with a probability of `top_p` or more, where one in doubt has lost half of its rivals.
    """
    import torch

    probabilities_RV, top_p_R = scaled_RV.softmax(-1), _column(scaled_RV, top_ps)[:, 0].double()
    ids_V = torch.arange(scaled_RV.shape[1], dtype=torch.int32, device=scaled_RV.device)
    tokens_R = noisy_RV.argmax(-1)
    left = torch.arange(len(tokens_R), device=scaled_RV.device)  # rows in doubt
    while True:
        tokens_L1 = tokens_R[left, None]
        own_L1 = probabilities_RV.gather(1, tokens_L1)
        is_before_LV = (probabilities_RV > own_L1) | ((probabilities_RV == own_L1) & (ids_V < tokens_L1.int()))
        # In fp64, so that the order of adding up, which depends on the number of rows, decides nothing.
        mass_before_L = (probabilities_RV * is_before_LV).sum(-1, dtype=torch.float64)
        is_outside_L = (mass_before_L >= top_p_R) & is_before_LV.any(-1)
        left, top_p_R = left[is_outside_L], top_p_R[is_outside_L]
        if not len(left):
            return tokens_R
        probabilities_RV = probabilities_RV[is_outside_L]
        noisy_RV = noisy_RV[is_outside_L].masked_fill_(~is_before_LV[is_outside_L], float("-inf"))
        tokens_R[left] = noisy_RV.argmax(-1)


def adjust(scores_CV: torch.Tensor, choices: Sequence[Choice], eos_ids: Collection[int]) -> torch.Tensor:
    """Scores after bias, penalties and `min_tokens`; the given ones stay as they are."""
    scores_CV = scores_CV.clone()
    _change(scores_CV, [[*choice.sampling.logit_bias] for choice in choices], _plus)
    _change(scores_CV, [_repeated(choice) for choice in choices], _penalised)
    _change(scores_CV, [_subtracted(choice) for choice in choices], _plus)
    early = [choice.text.num_generated < choice.sampling.min_tokens for choice in choices]
    _change(scores_CV, [[(token, float("-inf")) for token in eos_ids] if is_early else [] for is_early in early], _plus)
    return scores_CV


def _repeated(choice: Choice) -> list[tuple[int, float]]:
    penalty = choice.sampling.repetition_penalty
    return [] if penalty == 1 else [(token, penalty) for token in choice.text.prompt | choice.text.counts.keys()]


def _subtracted(choice: Choice) -> list[tuple[int, float]]:
    per_token, once = choice.sampling.frequency_penalty, choice.sampling.presence_penalty
    if not (per_token or once):
        return []
    return [(token, -(per_token * count + once)) for token, count in choice.text.counts.items()]


def _change(
    scores_CV: torch.Tensor,
    values: Sequence[Sequence[tuple[int, float]]],
    change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    """Change scores in place: in every row those of the named tokens, by the values beside them."""
    import torch

    cells = [(row, token, value) for row, pairs in enumerate(values) for token, value in pairs]
    if cells:
        rows, tokens, numbers = (torch.tensor(column, device=scores_CV.device) for column in zip(*cells, strict=True))
        scores_CV[rows, tokens] = change(scores_CV[rows, tokens], numbers.to(scores_CV.dtype))


def _plus(scores: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return scores + values


def _penalised(scores: torch.Tensor, penalties: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.where(scores > 0, scores / penalties, scores * penalties)


# Noise: a function of seed, position and token, whatever else is computed, on any device. 32-bit integers wrap around
# in the same way everywhere; multipliers and shifts are those that the project "hash-prospector" found to have
# the least bias; the key's second word comes in between the two products.

GOLDEN, FIRST, SECOND = 0x9E3779B9 - 2**32, 0x21F0AAAD, 0xD35A2D97 - 2**32
NUMBERS_AT_ONCE = 2**18  # on CPU: what stays in its cache through all passes


def add_gumbel_noise(scores_RV: torch.Tensor, places: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Scores plus standard Gumbel noise of each row's (seed, position)."""
    import torch

    keys_R2 = torch.tensor([_key(*place) for place in places], dtype=torch.int32, device=scores_RV.device)
    ids_V = torch.arange(scores_RV.shape[1], dtype=torch.int32, device=scores_RV.device).mul_(GOLDEN)
    return scores_RV - _negative_noise(ids_V, keys_R2)


def _key(seed: int, position: int) -> tuple[int, int]:
    digest = hashlib.blake2b(struct.pack("<qq", seed, position), digest_size=8).digest()
    return struct.unpack("<ii", digest)


def _negative_noise(ids_V: torch.Tensor, keys_R2: torch.Tensor) -> torch.Tensor:
    """log(-log(1 - u)) [R, V] for u in (0, 1) with 31 bits, of which a float keeps the leading 24."""
    hashed_RV = ids_V ^ keys_R2[:, :1]
    _fold(hashed_RV, 16).mul_(FIRST).bitwise_xor_(keys_R2[:, 1:])
    _fold(hashed_RV, 15).mul_(SECOND)
    _fold(hashed_RV, 15).bitwise_and_(0x7FFFFFFF)
    negative_RV = hashed_RV.float().add_(0.5).mul_(-(2.0**-31)).clamp_(min=-(1 - 2.0**-24))
    return negative_RV.log1p_().neg_().log_()


def _fold(words: torch.Tensor, shift: int) -> torch.Tensor:
    """words ^= words >> shift, in place; torch shifts in copies of the sign, which are masked away."""
    return words.bitwise_xor_((words >> shift).bitwise_and_((1 << (32 - shift)) - 1))


def seed_of_choice(seed: int, choice: int) -> int:
    """The seed of one of several texts for a prompt: the given one for the first, independent ones for the others."""
    if choice == 0:
        return seed
    digest = hashlib.blake2b(struct.pack("<qq", seed, choice), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


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
            ids = torch.tensor([new], device=device)
            output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        position = len(token_ids) + len(generated)
        (token,) = choose(output.logits[:, -1].float(), [Choice(sampling, position, text)], eos_ids)
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


def log_probabilities(
    scores_RV: torch.Tensor, tokens: Sequence[int], num_top: Sequence[int]
) -> list[tuple[float, tuple[tuple[int, float], ...]]]:
    """Natural logarithms of each token's probability, and each row's `num_top` most probable tokens with theirs."""
    import torch

    logprobs_RV = scores_RV.log_softmax(-1)
    top, ids = (found.tolist() for found in logprobs_RV.topk(max(num_top)))
    own = logprobs_RV.gather(1, torch.tensor(tokens, device=scores_RV.device)[:, None])[:, 0].tolist()
    return [
        (logprob, tuple(zip(row_ids[:number], row_top[:number], strict=True)))
        for logprob, row_ids, row_top, number in zip(own, ids, top, num_top, strict=True)
    ]


def attribute(
    member_logits: Sequence[torch.Tensor], weights_RN: torch.Tensor, tokens: Sequence[int]
) -> list[tuple[float, ...]]:
    """Each member's share in each row's token: weight times the probability that it gave the token, normalised."""
    import torch

    tokens_R1 = torch.tensor(tokens, device=weights_RN.device)[:, None]
    logprobs = [logits_RV.gather(1, tokens_R1)[:, 0] - logits_RV.logsumexp(-1) for logits_RV in member_logits]
    shares_RN = (weights_RN.clamp(min=0).log() + torch.stack(logprobs, dim=-1)).softmax(-1).nan_to_num(0.0)
    return [tuple(shares) for shares in shares_RN.tolist()]
