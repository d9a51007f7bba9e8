"""Fits a rule's few parameters (weights, decay, adapter) to held-out text; no member changes.

Shapes: W windows, B batch, T positions, N members, D hidden size.
"""

from __future__ import annotations

import torch

from growtx.exceptions import ConfigError, DataError
from growtx.models.ensemble.flat import GrowtxEnsembleForCausalLM
from growtx.models.ensemble.rules import CombinationRule, ProbabilityMixture, TextSoFar
from growtx.models.loss import checkpointed_cross_entropy, mean_over_targets, shift_labels


def fit_rule(
    ensemble: GrowtxEnsembleForCausalLM,
    rule: CombinationRule,
    labels_WT: torch.Tensor,
    *,
    num_steps: int = 100,
    learning_rate: float | None = None,
    batch_size: int = 8,
) -> list[float]:
    """Minimise the rule's nats per token on held-out windows, in place, by Adam with a falling learning rate.

    The members run over the text once; their final states (W T N D numbers) stay in memory.

    Args:
        labels_WT: windows of tokens, -100 where nothing is to be predicted.
        learning_rate: None: the rule's own.

    Returns:
        Loss of every step. Empty for a rule without parameters.

    Raises:
        DataError: there is no text.
        ConfigError: the rule was built for another number of members.
    """
    if not len(labels_WT):
        raise DataError("there is no held-out text to fit a combination rule on", "Give at least one window")
    if rule.num_members != ensemble.config.num_members:
        raise ConfigError(
            f"rule {rule.name} is for {rule.num_members} members, the ensemble has {ensemble.config.num_members}",
            "Make the rule with ensemble.build_rule",
        )
    parameters = list(rule.parameters())
    if not parameters:
        return []
    batches = [
        (_read(ensemble, labels_BT), shift_labels(labels_BT)) for labels_BT in torch.split(labels_WT, batch_size)
    ]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate or rule.fit_learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=num_steps)
    losses = []
    for step in range(num_steps):
        loss = _loss(ensemble, rule, *batches[step % len(batches)])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def _read(ensemble: GrowtxEnsembleForCausalLM, labels_BT: torch.Tensor) -> TextSoFar:
    """The members' states; padding may sit at the end of a window only, where no later position sees it."""
    return ensemble.read(labels_BT.clamp(min=0))


def _loss(
    ensemble: GrowtxEnsembleForCausalLM, rule: CombinationRule, text: TextSoFar, targets_BT: torch.Tensor
) -> torch.Tensor:
    members = range(ensemble.config.num_members)
    weights_BTN = rule.weights(text).expand(*targets_BT.shape, len(members))
    if isinstance(rule, ProbabilityMixture):  # the members' likelihoods are enough, and they are computed once
        nll_BT = rule.token_nll(text.log_likelihoods_BTN[:, 1:], weights_BTN[:, :-1])
        return mean_over_targets(nll_BT.masked_fill(targets_BT[:, :-1] < 0, 0.0).sum(), targets_BT)

    def pool(weights_CN: torch.Tensor, *states_CD: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits = ensemble.member_logits(members, states_CD)
        return rule.combine(logits, weights_CN)

    rows = [weights_BTN.flatten(0, 1), *(states_BTD.flatten(0, 1) for states_BTD in text.states)]
    loss, _ = checkpointed_cross_entropy(pool, rows, targets_BT.flatten())
    return mean_over_targets(loss, targets_BT)
