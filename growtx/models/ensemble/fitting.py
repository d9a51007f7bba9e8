"""Fits a rule's few parameters (weights, decay, adapter) to held-out text; no member changes.

Shapes: W windows, B batch, T positions, N members, D hidden size.
"""

from __future__ import annotations

import torch

from growtx.exceptions import ConfigError, DataError
from growtx.models.ensemble.flat import GrowtxEnsembleForCausalLM
from growtx.models.ensemble.rules import (
    CombinationRule,
    GateRule,
    PosteriorRule,
    ProbabilityMixture,
    TextSoFar,
    doubt,
)
from growtx.models.loss import CHUNK_ROWS, checkpointed_cross_entropy, mean_over_targets, shift_labels

KEPT_GAIN = 0.95  # of the posterior's, which a gate must keep
NUM_THRESHOLDS = 256

Batch = tuple[TextSoFar, torch.Tensor]


def fit_rule(
    ensemble: GrowtxEnsembleForCausalLM,
    rule: CombinationRule,
    labels_WT: torch.Tensor,
    *,
    num_steps: int = 100,
    learning_rate: float | None = None,
    batch_size: int = 8,
    judged_WT: torch.Tensor | None = None,
) -> list[float]:
    """Minimise the rule's nats per token on held-out windows, in place, by Adam with a falling learning rate.

    The members run over the text once; their final states (W T N D numbers) stay in memory. A gate's router is fitted
    so, and its threshold chosen afterwards: the largest that keeps 95 % of what a posterior fitted beside it gains over
    the best member, or of what its own router gains, if that is less.

    Args:
        labels_WT: windows of tokens, -100 where nothing is to be predicted.
        learning_rate: None: the rule's own.
        judged_WT: windows that a gate's threshold is chosen on; None: the same, which its router knows too well.

    Returns:
        Loss of every step (of `rule.fit_effort` times as many as asked for). Empty for a rule without parameters.

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
    batches = _batches(ensemble, labels_WT, batch_size)
    if not isinstance(rule, GateRule):
        return _minimise(ensemble, rule, batches, num_steps, learning_rate)
    losses = _minimise(ensemble, rule.router, batches, num_steps, learning_rate)
    posterior = PosteriorRule(rule.num_members).to(ensemble.device)
    _minimise(ensemble, posterior, batches, num_steps, None)
    judged = batches if judged_WT is None else _batches(ensemble, judged_WT, batch_size)
    rule.threshold.fill_(_choose_threshold(ensemble, rule, posterior, judged))
    return losses


def _batches(ensemble: GrowtxEnsembleForCausalLM, labels_WT: torch.Tensor, batch_size: int) -> list[Batch]:
    parts = torch.split(labels_WT, batch_size)
    return [(_read(ensemble, labels_BT), shift_labels(labels_BT)) for labels_BT in parts]


def _minimise(
    ensemble: GrowtxEnsembleForCausalLM,
    rule: CombinationRule,
    batches: list[Batch],
    num_steps: int,
    learning_rate: float | None,
) -> list[float]:
    num_steps *= rule.fit_effort
    optimizer = torch.optim.Adam(rule.parameters(), lr=learning_rate or rule.fit_learning_rate)
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
def _choose_threshold(
    ensemble: GrowtxEnsembleForCausalLM, gate: GateRule, posterior: PosteriorRule, batches: list[Batch]
) -> float:
    """The largest doubt that may be left alone such that the gate keeps `KEPT_GAIN` of the gain over the best member.

    Of the posterior's gain, or, where its router is worse than that, of what mixing everywhere would gain.
    """
    parts = [_what_opening_does(ensemble, gate, posterior, *batch) for batch in batches]
    doubts_C, alone_C, mixed_C, yardstick_C = (
        torch.cat(columns) for columns in zip(*(p[:4] for p in parts), strict=True)
    )
    best_member = torch.cat([part[4] for part in parts]).mean(0).min()
    thresholds = doubts_C.quantile(torch.linspace(1, 0, NUM_THRESHOLDS, device=doubts_C.device))
    thresholds = torch.cat([thresholds, thresholds.new_zeros(1)])
    opens = [gate.openness(doubts_C, threshold) for threshold in thresholds]
    nll = torch.stack([-torch.logaddexp((1 - o).log() - alone_C, o.log() - mixed_C).mean() for o in opens])
    reachable = torch.maximum(yardstick_C.mean(), nll.min())
    wanted = best_member - KEPT_GAIN * (best_member - reachable)
    keeps = (nll <= wanted).nonzero()[:, 0]
    return float(thresholds[keeps[0] if len(keeps) else nll.argmin()])  # no gain at all: the lowest loss


def _what_opening_does(
    ensemble: GrowtxEnsembleForCausalLM,
    gate: GateRule,
    posterior: PosteriorRule,
    text: TextSoFar,
    targets_BT: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """Of C predicted tokens the doubt; nats of the best member, the mixture, the posterior; of each member [C, N]."""
    is_target_BT = targets_BT[:, :-1] >= 0
    log_p_CN = text.log_likelihoods_BTN[:, 1:][is_target_BT]
    weights_BTN = gate.weights(text)[:, :-1]
    best_BT = weights_BTN.argmax(-1)
    highest_BT = torch.empty_like(weights_BTN[..., 0])
    for member in range(gate.num_members):
        is_best_BT = best_BT == member
        chunks = torch.split(text.states[member][:, :-1][is_best_BT], CHUNK_ROWS)
        head = ensemble.lm_heads[member]
        highest_BT[is_best_BT] = torch.cat([head(states_CD).float().softmax(-1).amax(-1) for states_CD in chunks])
    weights_CN, best_C = weights_BTN[is_target_BT], best_BT[is_target_BT]
    return (
        doubt(weights_CN, highest_BT[is_target_BT]),
        -log_p_CN.gather(-1, best_C[:, None])[:, 0],
        gate.router.token_nll(log_p_CN, weights_CN),
        posterior.token_nll(log_p_CN, posterior.weights(text)[:, :-1][is_target_BT]),
        -log_p_CN,
    )


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
