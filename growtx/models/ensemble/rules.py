"""What every combination rule is: weights of the members at every position, and a way to pool with them.

Shapes: N members, B batch, T positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from growtx.exceptions import ConfigError
from growtx.models.ensemble.history import History
from growtx.models.loss import IGNORE_INDEX, chunked_cross_entropy


@dataclass
class TextSoFar:
    """What a rule may look at when it weighs the members: the tokens of this call and the rows kept of older ones.

    `rows_BTD` are the tokens' expanded substrate rows; `states` the members' final states, each [B, T, D];
    `trunk_BTD` the state after the blocks that all members share, None where they share none.
    """

    input_ids_BT: torch.Tensor
    rows_BTD: torch.Tensor
    states: Sequence[torch.Tensor]
    heads: Sequence[nn.Module]
    history: History
    trunk_BTD: torch.Tensor | None = None

    @cached_property
    @torch.no_grad()
    def log_likelihoods_BTN(self) -> torch.Tensor:
        """log p_n(x_t | x_<t) of the tokens of this call; 0 for a token that no position precedes."""
        columns = []
        for layer, (states_BTD, head) in enumerate(zip(self.states, self.heads, strict=True)):
            before_BTD, has_before_BT = self.history.rows_before(self.history.append(layer, states_BTD))
            targets_BT = self.input_ids_BT.masked_fill(~has_before_BT, IGNORE_INDEX)
            _, nll_BT = chunked_cross_entropy(before_BTD.to(states_BTD.dtype), head, targets_BT)
            assert nll_BT is not None
            columns.append(-nll_BT)
        return torch.stack(columns, dim=-1)


class CombinationRule(nn.Module):
    """Base of the rules. A rule's tensors are saved with the ensemble, its options in the ensemble's config."""

    name: ClassVar[str]
    pools_linearly: ClassVar[bool] = False  # fixed weights on logits: can be folded into one fused head
    reads_trunk: ClassVar[bool] = False  # weights from the state of the trunk, which members must then share
    fit_learning_rate: ClassVar[float] = 0.05  # Adam's, for a handful of scalars
    fit_effort: ClassVar[int] = 1  # times the steps that scalars need

    def __init__(self, num_members: int) -> None:
        super().__init__()
        self.num_members = num_members

    @staticmethod
    def num_history_layers(num_members: int) -> int:
        """Cache layers that the rule appends to; 0 for rules that do not look at the text."""
        return 0

    def options(self) -> dict[str, Any]:
        """Arguments, besides the number of members, that build an equal rule."""
        return {}

    def spec(self) -> dict[str, Any]:
        """JSON-able name and options."""
        return {"name": self.name, **self.options()}

    def weights(self, text: TextSoFar) -> torch.Tensor:
        """Weights in fp32: [N], the same everywhere, or [B, T, N]."""
        raise NotImplementedError

    def settle(self, logits: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        """The weights [..., N] that `combine` pools with, where the logits have a say in them, too."""
        return weights

    def combine(self, logits: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        """Pool the members' logits, each [..., V], with weights [..., N]."""
        return pool_logits(logits, weights)


def pool_logits(logits: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """Weighted sum of logits: a product of experts, as log-probabilities differ from logits by a constant."""
    weights = weights.to(logits[0].dtype)
    total = logits[0] * weights[..., 0, None]
    for index, member in enumerate(logits[1:], start=1):
        total = total + member * weights[..., index, None]
    return total


def pool_probabilities(logits: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """Log of the weighted sum of probabilities: a mixture of experts."""
    log_weights = _log(weights)
    total = logits[0].float().log_softmax(-1) + log_weights[..., 0, None]
    for index, member in enumerate(logits[1:], start=1):
        total = torch.logaddexp(total, member.float().log_softmax(-1) + log_weights[..., index, None])
    return total


class ProbabilityMixture(CombinationRule):
    """Base of the rules that average probabilities: mixtures of experts, with constant weights or not.

    A token's probability then depends on the members' probabilities of that token alone.
    """

    def combine(self, logits: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        """Log of the weighted sum of probabilities."""
        return pool_probabilities(logits, weights)

    def token_nll(self, log_likelihoods: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Nats [...] of tokens from the members' log-likelihoods [..., N] of them."""
        return -(log_likelihoods + _log(weights)).logsumexp(-1)


def _log(weights: torch.Tensor) -> torch.Tensor:
    """Weights may underflow to 0, where the logarithm has no usable gradient."""
    return weights.clamp(min=1e-30).log()


# `adapter`: a trainable map of the members' concatenated logits.
#
# The growth paper (arXiv:2507.07129) merges specialists by their mean or by "an adapter over the concatenated
# logits". A dense one has N V^2 parameters; this one adds a low-rank correction to the mean, (N + 1) V r, in the way
# of LoRA (arXiv:2106.09685), and starts exactly as the mean.


class AdapterRule(CombinationRule):
    """Mean of logits plus a rank-r map of all of them.

    Args:
        vocab_size: V of the ensemble.
        rank: r; the adapter has (N + 1) V r parameters.
    """

    name = "adapter"
    fit_learning_rate = 1e-3  # a step moves every logit by about rank * |logit| times this: scalars' 0.05 diverges

    def __init__(self, num_members: int, vocab_size: int, rank: int = 16) -> None:
        super().__init__(num_members)
        self.down = nn.Parameter(torch.randn(num_members, rank, vocab_size) / (num_members * vocab_size) ** 0.5)
        self.up = nn.Parameter(torch.zeros(vocab_size, rank))

    def options(self) -> dict[str, Any]:
        return {"vocab_size": self.up.shape[0], "rank": self.up.shape[1]}

    def weights(self, text: TextSoFar) -> torch.Tensor:
        """Weights of the mean only; what the map adds has no weight per member."""
        return torch.full((self.num_members,), 1.0 / self.num_members, device=text.rows_BTD.device)

    def combine(self, logits: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        narrow = torch.stack([member @ down.t() for member, down in zip(logits, self.down, strict=True)]).sum(0)
        return pool_logits(logits, weights) + narrow @ self.up.t()


# `cluster`: a mixture whose weights say how near the text so far is to each member's training text.
#
# c-BTM, Gururangan et al., arXiv:2303.14177: members belong to clusters of documents, and a context is routed by the
# distance between its tf-idf vector and the clusters' centres. Here the vector is made of the frozen substrate's
# rows, which costs nothing and needs no embedding model; the centres come from each member's own text.


class ClusterRule(ProbabilityMixture):
    """Weights proportional to exp(-distance^2 / temperature) between the context and the members' centres.

    Args:
        hidden_size, vocab_size: of the ensemble.
        decay: factor per position by which older tokens fade from the context.
        temperature: of the distances between vectors of length one.

    `place_centres` must be called before the rule means anything; until then all members weigh the same.
    """

    name = "cluster"

    def __init__(
        self, num_members: int, hidden_size: int, vocab_size: int, decay: float = 0.98, temperature: float = 0.1
    ) -> None:
        super().__init__(num_members)
        self.decay_logit = nn.Parameter(torch.tensor(decay).clamp(1e-6, 1 - 1e-6).logit())
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())
        self.register_buffer("centres_ND", torch.zeros(num_members, hidden_size))
        self.register_buffer("rarity_V", torch.ones(vocab_size))
        self.centres_ND: torch.Tensor
        self.rarity_V: torch.Tensor

    @staticmethod
    def num_history_layers(num_members: int) -> int:
        return 1  # the tokens' weighted rows

    def options(self) -> dict[str, Any]:
        return {
            "hidden_size": self.centres_ND.shape[1],
            "vocab_size": len(self.rarity_V),
            "decay": self.decay_logit.sigmoid().item(),
            "temperature": self.log_temperature.exp().item(),
        }

    @torch.no_grad()
    def place_centres(self, substrate: nn.Module, texts: Sequence[torch.Tensor]) -> None:
        """Set centres and inverse document frequencies.

        Args:
            substrate: maps ids to rows of width D (`ensemble.embed_tokens`).
            texts: one tensor of windows [num_windows, T] per member, of its own training or held-out text.
        """
        windows = [window for member in texts for window in member]
        seen_in_V = torch.zeros_like(self.rarity_V)
        for window in windows:
            seen_in_V[window.unique()] += 1
        self.rarity_V.copy_(((1 + len(windows)) / (1 + seen_in_V)).log() + 1)
        for member, windows_WT in enumerate(texts):
            rows_WTD = substrate(windows_WT) * self.rarity_V[windows_WT][..., None]
            contexts_WD = F.normalize(rows_WTD.sum(1), dim=-1)
            self.centres_ND[member] = F.normalize(contexts_WD.sum(0), dim=-1)

    def weights(self, text: TextSoFar) -> torch.Tensor:
        rarity_BT1 = self.rarity_V[text.input_ids_BT][..., None]
        rows_BSD = text.history.append(0, text.rows_BTD.float() * rarity_BT1)
        context_BTD = F.normalize(text.history.decayed_sum(rows_BSD, self.decay_logit.float().sigmoid()), dim=-1)
        distances_BTN = (context_BTD[..., None, :] - self.centres_ND.float()).square().sum(-1)
        return (-distances_BTN / self.log_temperature.float().exp()).softmax(-1)


# `contrastive`: what the experts say beyond what an amateur says too.
#
# Contrastive decoding, Li et al., arXiv:2210.15097, in the logit form of DExperts, Liu et al., arXiv:2105.03023:
# (1 + s) times the experts' mean minus s times the amateur. The amateur may be a specialist, or a shallower stage of
# the same lineage, whose blocks the ensemble then shares (the contrast of layers of DoLa, arXiv:2309.03883).


class ContrastiveRule(CombinationRule):
    """Experts' mean minus the amateur.

    Args:
        amateur: index of the member that is subtracted.
        strength: s above; learnable, 0 is the experts' mean.
        cutoff: tokens less probable for the experts than this fraction of their best are excluded. For decoding
            only: an excluded token costs infinitely many bits.
    """

    name = "contrastive"

    def __init__(self, num_members: int, amateur: int = 0, strength: float = 0.5, cutoff: float = 0.0) -> None:
        super().__init__(num_members)
        if num_members < 2 or not 0 <= amateur < num_members:
            raise ConfigError(
                f"the rule contrastive got amateur {amateur} among {num_members} members",
                "Name one of at least two members by its index, counted from 0",
            )
        self.amateur = amateur
        self.cutoff = cutoff
        self.strength = nn.Parameter(torch.tensor(strength))

    def options(self) -> dict[str, Any]:
        return {"amateur": self.amateur, "strength": self.strength.item(), "cutoff": self.cutoff}

    def weights(self, text: TextSoFar) -> torch.Tensor:
        is_amateur_N = torch.arange(self.num_members, device=self.strength.device) == self.amateur
        strength = self.strength.float()
        return torch.where(is_amateur_N, -strength, (1 + strength) / (self.num_members - 1))

    def combine(self, logits: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        pooled = pool_logits(logits, weights)
        if self.cutoff == 0.0:
            return pooled
        experts = [member for index, member in enumerate(logits) if index != self.amateur]
        expert_scores = torch.stack(list(experts)).float().mean(0)
        floor = expert_scores.amax(-1, keepdim=True) + torch.tensor(self.cutoff).log()
        return pooled.masked_fill(expert_scores < floor, float("-inf"))


# `mean`: the average of the members' logits.
#
# The merge of the growth paper (arXiv:2507.07129): specialists on one frozen substrate, logits averaged. As logits
# and log-probabilities differ by a constant per position, it is the normalised geometric mean of the members'
# distributions, Hinton's product of experts (2002) with exponents 1/N.


class MeanRule(CombinationRule):
    """Every member has weight 1/N."""

    name = "mean"
    pools_linearly = True

    def weights(self, text: TextSoFar) -> torch.Tensor:
        return torch.full((self.num_members,), 1.0 / self.num_members, device=text.rows_BTD.device)


# `mixture`: the weighted average of the members' probabilities.
#
# The linear opinion pool (Stone 1961) and the mixture of experts with constant gates (Jacobs et al. 1991). Where
# members disagree it keeps both opinions, while a mean of logits keeps only what all of them find possible.


class MixtureRule(ProbabilityMixture):
    """Constant member probabilities; uniform before they are fitted."""

    name = "mixture"

    def __init__(self, num_members: int) -> None:
        super().__init__(num_members)
        self.log_prior = nn.Parameter(torch.zeros(num_members))

    def weights(self, text: TextSoFar) -> torch.Tensor:
        return self.log_prior.float().softmax(-1)


# `posterior`: a mixture whose weights are each member's probability given the text so far.
#
# Branch-Train-Merge, Li et al., arXiv:2208.03306, section 2.2: the domain of a text is a hidden variable, and Bayes'
# rule gives its distribution from how well every member predicted the text up to here. Two additions, both learnable
# by `fit_rule`: older evidence fades (decay), so that a text may change its domain, and evidence is divided by a
# temperature, because neighbouring tokens are not independent evidence.


class PosteriorRule(ProbabilityMixture):
    """Member weights proportional to prior * likelihood of the text so far.

    Args:
        decay: factor per position by which older evidence fades; 1 is Bayes' rule as it stands.
        temperature: divides the evidence.
    """

    name = "posterior"

    def __init__(self, num_members: int, decay: float = 0.95, temperature: float = 2.0) -> None:
        super().__init__(num_members)
        self.log_prior = nn.Parameter(torch.zeros(num_members))
        self.decay_logit = nn.Parameter(torch.tensor(decay).clamp(1e-6, 1 - 1e-6).logit())
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())

    @staticmethod
    def num_history_layers(num_members: int) -> int:
        return num_members + 1  # every member's final states, and all likelihoods

    def options(self) -> dict[str, Any]:
        return {"decay": self.decay_logit.sigmoid().item(), "temperature": self.log_temperature.exp().item()}

    def weights(self, text: TextSoFar) -> torch.Tensor:
        total_BTN = _decayed_evidence(text, self.num_members, text.log_likelihoods_BTN, self.decay_logit)
        return (self.log_prior.float() + total_BTN / self.log_temperature.float().exp()).softmax(-1)


def _decayed_evidence(
    text: TextSoFar, layer: int, evidence_BTN: torch.Tensor, decay_logit: torch.Tensor
) -> torch.Tensor:
    """Evidence of the text up to each position, older evidence faded; it is kept in a cache layer of the rule."""
    num_members = evidence_BTN.shape[-1]
    unused = text.rows_BTD.shape[-1] - num_members  # rows of the cache have the model's width
    rows_BSN = text.history.append(layer, F.pad(evidence_BTN, (0, unused)))[..., :num_members]
    return text.history.decayed_sum(rows_BSN, decay_logit.float().sigmoid())


# `weighted-mean`: a sum of logits with weights fitted on held-out text.
#
# The logarithmic opinion pool of Heskes, "Selecting weighting factors in logarithmic opinion pools" (NIPS 1997).
# The loss is convex in the weights. They need not sum to one: a larger sum sharpens the pool as a temperature below
# one would, which the mean of unlike specialists needs, because averaging flattens.


class WeightedMeanRule(CombinationRule):
    """One free weight per member; 1/N before it is fitted."""

    name = "weighted-mean"
    pools_linearly = True

    def __init__(self, num_members: int) -> None:
        super().__init__(num_members)
        self.member_weights = nn.Parameter(torch.full((num_members,), 1.0 / num_members))

    def weights(self, text: TextSoFar) -> torch.Tensor:
        return self.member_weights.float()


# `trunk-state`: a mixture whose weights a linear map reads off the trunk's hidden state.
#
# The router of sparse mixtures of experts (Shazeer et al., arXiv:1701.06538), over whole branches. `fit_rule` fits it
# to the mixture's own cross entropy, so held-out text needs no labels of its source. Weights are known before any
# branch runs, where a posterior needs the likelihoods of all. What the map reads off one position is evidence that adds
# up over the text and fades, as in `posterior`: one state alone of a small trunk says too little of what text it is in
# (measured: documents that switch language, with memory 0.9 of the posterior's gain and more, without 0.4).


class TrunkStateRule(ProbabilityMixture):
    """Softmax of the faded sum of a linear map, of the state after the shared blocks and of the token's own row.

    Uniform before it is fitted.
    """

    name = "trunk-state"
    reads_trunk = True
    fit_learning_rate = 5e-3  # 0.02 ends in certainties, many of them wrong
    fit_effort = 10

    def __init__(self, num_members: int, hidden_size: int, decay: float = 0.85) -> None:
        super().__init__(num_members)
        self.evidence = nn.Linear(2 * hidden_size, num_members, bias=False)
        nn.init.zeros_(self.evidence.weight)
        self.log_prior = nn.Parameter(torch.zeros(num_members))
        self.decay_logit = nn.Parameter(torch.tensor(decay).clamp(1e-6, 1 - 1e-6).logit())

    @staticmethod
    def num_history_layers(num_members: int) -> int:
        return 1  # the evidence

    def options(self) -> dict[str, Any]:
        return {"decay": self.decay_logit.sigmoid().item()}

    def weights(self, text: TextSoFar) -> torch.Tensor:
        assert text.trunk_BTD is not None, "an ensemble builds this rule only where there is a trunk"
        parts = [F.layer_norm(part_BTD, part_BTD.shape[-1:]) for part_BTD in (text.trunk_BTD, text.rows_BTD)]
        evidence_BTN = self.evidence(torch.cat(parts, dim=-1).to(self.evidence.weight)).float()
        return (self.log_prior.float() + _decayed_evidence(text, 0, evidence_BTN, self.decay_logit)).softmax(-1)


# `gate`: the likeliest member alone, and the others only where it is unsure.
#
# SAFE (arXiv:2510.15346) combines models at few tokens: everywhere else the best one answers alone, and the others
# need not run. Which one is best the trunk's state says, as in `trunk-state`, because a posterior would need all of
# them. What mixing can change at a position is bounded by the others' weight and by the probability that the best one
# leaves open, so the *doubt* is the product of both. `fit_rule` chooses the doubt from which on members are mixed.


GATE_RAMP = 0.1  # of the threshold: the others come in over this width, so that rounding cannot switch them on


class GateRule(CombinationRule):
    """The member of the largest weight where `doubt` is at most `threshold`, else the mixture by `trunk-state`.

    Here it is a rule like any other, which looks at all members' logits. What it saves is saved where members are run
    one position after another and late (`growtx.models.ensemble.lazy`).

    Args:
        threshold: of the doubt, (1 - largest weight) * (1 - that member's highest probability); 0 mixes everywhere.
    """

    name = "gate"
    reads_trunk = True

    def __init__(self, num_members: int, hidden_size: int, threshold: float = 0.0) -> None:
        super().__init__(num_members)
        self.router = TrunkStateRule(num_members, hidden_size)
        self.register_buffer("threshold", torch.tensor(threshold))
        self.threshold: torch.Tensor

    @staticmethod
    def num_history_layers(num_members: int) -> int:
        return TrunkStateRule.num_history_layers(num_members)

    def options(self) -> dict[str, Any]:
        return {"threshold": self.threshold.item()}

    def weights(self, text: TextSoFar) -> torch.Tensor:
        """The router's; `settle` says what becomes of them."""
        return self.router.weights(text)

    def openness(self, doubt: torch.Tensor, threshold: torch.Tensor | None = None) -> torch.Tensor:
        """How far the others are let in, [...] from 0 (they need not run) to 1 (with their whole weight)."""
        threshold = self.threshold if threshold is None else threshold
        return ((doubt - threshold) / (GATE_RAMP * threshold).clamp(min=1e-30)).clamp(0, 1)

    def settle(self, logits: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        highest = torch.stack([member.float().softmax(-1).amax(-1) for member in logits], dim=-1)
        best = weights.argmax(-1, keepdim=True)
        open_ = self.openness(doubt(weights, highest.gather(-1, best)[..., 0]))[..., None]
        alone = torch.zeros_like(weights).scatter(-1, best, 1.0)
        return open_ * weights + (1 - open_) * alone

    def combine(self, logits: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        return pool_probabilities(logits, self.settle(logits, weights))


def doubt(weights: torch.Tensor, highest: torch.Tensor) -> torch.Tensor:
    """What mixing may change, [...], from weights [..., N] and the highest probability [...] of the best member."""
    return (1 - weights.amax(-1)) * (1 - highest)


# The combination rules, one file per method; `build_rule` makes one from its name and options.


RULES: dict[str, type[CombinationRule]] = {
    rule.name: rule
    for rule in (
        MeanRule,
        WeightedMeanRule,
        MixtureRule,
        PosteriorRule,
        TrunkStateRule,
        GateRule,
        ClusterRule,
        ContrastiveRule,
        AdapterRule,
    )
}

__all__ = [
    "RULES",
    "CombinationRule",
    "ProbabilityMixture",
    "TextSoFar",
    "build_rule",
    "num_history_layers",
    "rule_class",
]


def rule_class(name: str) -> type[CombinationRule]:
    """The class of a rule.

    Raises:
        ConfigError: there is no such rule.
    """
    if name not in RULES:
        raise ConfigError(f"combination rule {name!r} is unknown", f"Use one of {', '.join(RULES)}")
    return RULES[name]


def build_rule(spec: dict[str, Any] | str, *, num_members: int, hidden_size: int, vocab_size: int) -> CombinationRule:
    """A new rule, not fitted, from a name or a spec `{name: ..., option: ...}`.

    Raises:
        ConfigError: unknown rule or option.
    """
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    made = rule_class(options.pop("name", "mean"))
    known = set(inspect.signature(made).parameters)
    shape = {"num_members": num_members, "hidden_size": hidden_size, "vocab_size": vocab_size}
    unknown = sorted(set(options) - known - set(shape))
    if unknown:
        settable = sorted(known - set(shape)) or ["none"]
        raise ConfigError(f"rule {made.name} has no option {', '.join(unknown)}", f"Its options: {', '.join(settable)}")
    return made(**{**options, **{key: value for key, value in shape.items() if key in known}})


def num_history_layers(spec: dict[str, Any], num_members: int) -> int:
    """Cache layers that the rule of a spec needs beside those of the blocks."""
    return rule_class(spec["name"]).num_history_layers(num_members)
