"""What every member and every rule makes of the same text, from one pass of the members over it.

Shapes: N members, B batch, T positions, C rows of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from growtx.models.ensemble.flat import GrowtxEnsembleForCausalLM
from growtx.models.ensemble.rules import CombinationRule, ProbabilityMixture
from growtx.models.loss import CHUNK_ROWS, IGNORE_INDEX, shift_labels


@dataclass(frozen=True)
class EnsembleScores:
    """Nats of the tokens at positions 1..T-1 (0 where ignored), as `token_nll` of a forward pass has them.

    `members` and `rules` map names to [B, T-1]; `weights` maps rules to the member weights [B, T-1, N] with which
    these tokens were predicted.
    """

    members: dict[str, torch.Tensor]
    rules: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]


@torch.no_grad()
def score(
    ensemble: GrowtxEnsembleForCausalLM,
    tokens_BT: torch.Tensor,
    labels_BT: torch.Tensor,
    rules: Mapping[str, CombinationRule],
    attention_mask: torch.Tensor | None = None,
) -> EnsembleScores:
    """Score all members and rules together: blocks and heads run once, whatever the number of rules."""
    text = ensemble.read(tokens_BT, attention_mask)
    num_members = ensemble.config.num_members
    weights_BTN = {name: rule.weights(text).expand(*tokens_BT.shape, num_members) for name, rule in rules.items()}
    on_logits = {name: rule for name, rule in rules.items() if not isinstance(rule, ProbabilityMixture)}
    targets_BT = shift_labels(labels_BT)
    pieces: list[torch.Tensor] = []
    for start in range(0, targets_BT.numel(), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        logits = ensemble.member_logits(range(num_members), [states.flatten(0, 1)[rows] for states in text.states])
        pooled = [rule.combine(logits, weights_BTN[name].flatten(0, 1)[rows]) for name, rule in on_logits.items()]
        pieces.append(torch.stack([_nll(each_CV, targets_BT.flatten()[rows]) for each_CV in (*logits, *pooled)]))
    nll_XBT = torch.cat(pieces, dim=1).view(-1, *tokens_BT.shape)
    nll = dict(zip(on_logits, nll_XBT[num_members:], strict=True))
    log_likelihoods_BTN = -nll_XBT[:num_members].movedim(0, -1)
    for name, rule in rules.items():
        if isinstance(rule, ProbabilityMixture):
            nll[name] = rule.token_nll(log_likelihoods_BTN, weights_BTN[name]).masked_fill(targets_BT < 0, 0.0)
    names = ensemble.config.member_names or []
    return EnsembleScores(
        members={name: member_BT[:, :-1] for name, member_BT in zip(names, nll_XBT, strict=False)},
        rules={name: nll[name][:, :-1] for name in rules},
        weights={name: weights[:, :-1] for name, weights in weights_BTN.items()},
    )


def _nll(logits_CV: torch.Tensor, targets_C: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits_CV.float(), targets_C, ignore_index=IGNORE_INDEX, reduction="none")
