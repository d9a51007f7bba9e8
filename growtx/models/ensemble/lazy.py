"""An ensemble that runs a member's branch only when it is asked for: the rule `gate`, for one text at a time.

The trunk reads every token. A branch reads none until it is the best one, or the best one is in doubt; then it reads
all tokens that it has missed in one chunk, since attention wants their keys and values. So what is saved is time, where
a chunk costs hardly more than a token (weights are read from memory once for all of them); of the products those of
tokens after a branch was last asked, of its head, and of members that are never asked.

A request in a batch cannot lag behind others (one step runs one set of layers for all), so continuous batching runs all
members: there, this rule gives the same logits and saves nothing.

Shapes: N members, T new positions, S positions so far, C positions whose logits are wanted, D hidden size,
V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from growtx.compat.transformers import attention_of
from growtx.exceptions import ConfigError
from growtx.models.causal_lm import block_inputs
from growtx.models.ensemble.history import History
from growtx.models.ensemble.rules import GateRule, TextSoFar, doubt

if TYPE_CHECKING:
    from growtx.models.ensemble.configuration import GrowtxEnsembleConfig
    from growtx.models.ensemble.flat import GrowtxEnsembleForCausalLM

MASKED_ATTENTION = ("sdpa", "eager")  # attention that takes the mask of a chunk behind a past


class LateBranches(DynamicCache):
    """A cache of one text whose branches may lag behind its trunk: pass it as `past_key_values`.

    Attributes:
        num_tokens: positions whose logits were asked for.
        num_opened: those of them where the best member was in doubt, so that all ran.
        num_read: positions that each member's branch has read, in chunks or one by one.
    """

    def __init__(self, config: GrowtxEnsembleConfig) -> None:
        if not can_lag(config):
            raise ConfigError(
                "members of this ensemble cannot lag behind each other: only branches of a common trunk can, which "
                f"share nothing above it and attend by {' or '.join(MASKED_ATTENTION)}",
                "Use the cache that generate() makes by itself",
            )
        super().__init__(config=config)
        self.trunk_1SD = torch.empty(0)
        self.num_tokens = self.num_opened = 0
        self.num_read = [0] * config.num_members

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last positions; their number is negative, as transformers has it."""
        length = self.get_seq_length() - abs(tokens_to_remove)
        for layer in self.layers:
            layer.crop(-max(0, layer.get_seq_length() - length))
        self.trunk_1SD = self.trunk_1SD[:, :length]
        self.num_read = [min(read, length) for read in self.num_read]


def can_lag(config: GrowtxEnsembleConfig) -> bool:
    """Whether members are branches of a trunk that share nothing above it, on an attention that takes masks."""
    shares_trunk_only = len(config.shared_blocks) == config.num_trunk_blocks
    return config.num_trunk_blocks > 0 and shares_trunk_only and attention_of(config) in MASKED_ATTENTION


def predict(
    ensemble: GrowtxEnsembleForCausalLM,
    rule: GateRule,
    input_ids_1T: torch.Tensor,
    cache: LateBranches,
    *,
    logits_to_keep: int | torch.Tensor = 0,
    given: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rule's log-probabilities [1, C, V] and the weights [1, C, N] that it settled on; branches run where needed.

    Args:
        given: weights [..., N] in place of the router's.
    """
    num_past, num_new = cache.get_seq_length(), input_ids_1T.shape[1]
    rows_1TD = ensemble.embed_tokens(input_ids_1T)
    context = block_inputs(ensemble.config, rows_1TD, None, None, cache)
    history = History.of(ensemble.config, context["position_ids"], cache)
    trunk_1TD = rows_1TD
    for index in ensemble.config.blocks_of_members[0][: ensemble.config.num_trunk_blocks]:
        trunk_1TD = ensemble.layers[index](trunk_1TD, past_key_values=cache, **context, **kwargs)
    cache.trunk_1SD = torch.cat([cache.trunk_1SD, trunk_1TD], dim=1) if num_past else trunk_1TD
    every_T = torch.arange(num_new, device=input_ids_1T.device)
    if isinstance(logits_to_keep, int):
        wanted_C = every_T[-logits_to_keep:] if logits_to_keep else every_T
    else:
        wanted_C = every_T[logits_to_keep]
    # The rule is asked even for weights that are not used: its history must miss no token.
    own_1TN = rule.weights(TextSoFar(input_ids_1T, rows_1TD, [], [], history, trunk_1TD))
    weights_1TN = own_1TN if given is None else given.expand(1, num_new, -1)
    weights_CN = weights_1TN[0, wanted_C]
    later = _Later(ensemble, cache, kwargs)
    scores_CV, settled_CN = _combine(rule, later, wanted_C + num_past, weights_CN)
    return scores_CV[None], settled_CN[None]


def _combine(
    rule: GateRule, later: _Later, positions_C: torch.Tensor, weights_CN: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """First the best member of every position, then all members of the positions where that one is in doubt."""
    scores_CV = torch.empty(len(positions_C), later.ensemble.config.vocab_size, device=weights_CN.device)
    settled_CN = torch.zeros_like(weights_CN)
    best_C = weights_CN.argmax(-1)
    for member in sorted(set(best_C.tolist())):
        rows = (best_C == member).nonzero()[:, 0]
        scores_CV[rows] = later.logits(member, positions_C[rows]).float().log_softmax(-1)
        settled_CN[rows, member] = 1.0
    open_C = rule.openness(doubt(weights_CN, scores_CV.amax(-1).exp())) > 0
    rows = open_C.nonzero()[:, 0]
    if len(rows):
        logits = [later.logits(member, positions_C[rows]) for member in range(rule.num_members)]
        settled_CN[rows] = rule.settle(logits, weights_CN[rows])
        scores_CV[rows] = rule.combine(logits, weights_CN[rows])
    later.cache.num_tokens += len(positions_C)
    later.cache.num_opened += len(rows)
    return scores_CV, settled_CN


class _Later:
    """Runs branches up to the positions that they are asked for; final states of this call's positions are kept."""

    def __init__(self, ensemble: GrowtxEnsembleForCausalLM, cache: LateBranches, kwargs: dict[str, Any]) -> None:
        self.ensemble, self.cache, self.kwargs = ensemble, cache, kwargs
        self.states: dict[int, list[torch.Tensor]] = {}
        self.first: dict[int, int] = {}

    def logits(self, member: int, positions_C: torch.Tensor) -> torch.Tensor:
        """[C, V]"""
        end = int(positions_C.max()) + 1
        start = self.cache.num_read[member]
        if start < end:
            self.first.setdefault(member, start)
            self.states.setdefault(member, []).append(self._catch_up(member, start, end))
            self.cache.num_read[member] = end
        states_1SD = torch.cat(self.states[member], dim=1)
        logits_CV: torch.Tensor = self.ensemble.lm_heads[member](states_1SD[0, positions_C - self.first[member]])
        return logits_CV

    def _catch_up(self, member: int, start: int, end: int) -> torch.Tensor:
        """Final states of the positions from `start` to `end`; all before are in the cache."""
        config, hidden_1TD = self.ensemble.config, self.cache.trunk_1SD[:, start:end]
        positions_1T = torch.arange(start, end, device=hidden_1TD.device)[None]
        is_hidden_TS = torch.arange(end, device=hidden_1TD.device) > positions_1T[0, :, None]
        mask = torch.zeros_like(is_hidden_TS, dtype=hidden_1TD.dtype)
        mask = mask.masked_fill(is_hidden_TS, torch.finfo(mask.dtype).min)[None, None]
        context = block_inputs(config, hidden_1TD, mask, positions_1T)
        for index in config.blocks_of_members[member][config.num_trunk_blocks :]:
            block = self.ensemble.layers[index]
            hidden_1TD = block(hidden_1TD, past_key_values=self.cache, **context, **self.kwargs)
        states_1TD: torch.Tensor = self.ensemble.norms[member](hidden_1TD)
        return states_1TD
