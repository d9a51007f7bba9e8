"""The ensemble as it is trained and analysed: every member's blocks and head as modules of their own.

Shapes: B batch, T positions, D hidden size, V vocabulary, N members.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.output_capturing import capture_outputs

from growtx.compat.transformers import PagedCall
from growtx.exceptions import ConfigError
from growtx.models.causal_lm import GrowtxBlock, GrowtxOutput, GrowtxPreTrainedModel, SubstrateEmbedding, block_inputs
from growtx.models.ensemble.configuration import GrowtxEnsembleConfig
from growtx.models.ensemble.history import History
from growtx.models.ensemble.lazy import LateBranches, can_lag, predict
from growtx.models.ensemble.rules import CombinationRule, GateRule, TextSoFar, build_rule
from growtx.models.loss import LMHead, checkpointed_cross_entropy, mean_over_targets, shift_labels

MemberWeights = Sequence[float] | torch.Tensor


@dataclass
class GrowtxEnsembleOutput(GrowtxOutput):
    """`member_weights` [B, T, N]: the weight of each member at each position (T as in the logits)."""

    member_weights: torch.Tensor | None = None


class GrowtxEnsembleForCausalLM(GrowtxPreTrainedModel, GenerationMixin):
    """Specialists on one frozen substrate whose outputs are combined at every token.

    Members may differ in depth; blocks that they share are computed once. There is one KV cache with a layer per
    block, so `generate()`, beams, static caches and continuous batching treat it like any decoder. Every linear map
    is a plain module, so peft and the training loop do so too. `from_members` builds one.
    """

    config_class = GrowtxEnsembleConfig
    config: GrowtxEnsembleConfig
    base_model_prefix = "ensemble"
    _tied_weights_keys: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, config: GrowtxEnsembleConfig) -> None:
        super().__init__(config)
        self.embed_tokens = SubstrateEmbedding(config)
        self.layers = nn.ModuleList([GrowtxBlock(config, index) for index in range(config.num_blocks)])
        self.norms = nn.ModuleList(
            [nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in range(config.num_members)]
        )
        self.lm_heads = nn.ModuleList([LMHead(config) for _ in range(config.num_members)])
        self.rule = self.build_rule(config.rule or "mean")
        self.gradient_checkpointing = False
        self.post_init()

    def build_rule(self, spec: dict[str, Any] | str) -> CombinationRule:
        """A rule, not fitted, for this ensemble's members, from a name or a spec with options.

        Raises:
            ConfigError: unknown rule or option, or the rule reads a trunk that the members do not share.
        """
        config = self.config
        shape = {"hidden_size": config.hidden_size, "vocab_size": config.vocab_size, "num_members": config.num_members}
        rule = build_rule(spec, **shape)
        if rule.reads_trunk and not config.num_trunk_blocks:
            raise ConfigError(
                f"rule {rule.name} reads the state after the blocks that all members share, but these "
                f"{config.num_members} share none",
                "Use posterior, or grow the members as branches of one trunk: growtx specialists with trunk.plan",
            )
        return rule.to(self.embed_tokens.weight.device)

    def set_rule(self, rule: CombinationRule | dict[str, Any] | str) -> None:
        """Combine by another rule from now on; it is saved with the ensemble."""
        self.rule = rule if isinstance(rule, CombinationRule) else self.build_rule(rule)
        self.config.set_rule(self.rule.spec())

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def get_output_embeddings(self) -> None:
        """None: there is a head per member."""

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers does it; rules that keep a history need their rows exact."""
        if self.rule.num_history_layers(self.config.num_members) and self.dtype != torch.float32:
            raise ConfigError(
                f"rule {self.rule.name} remembers the text so far in the cache, which continuous batching keeps in "
                f"{self.dtype}",
                "Load the ensemble in float32, use generate(), or use the rule mean, weighted-mean or mixture",
            )
        return super().init_continuous_batching(*args, **kwargs)

    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: int | torch.Tensor | None = None,
        skip_logits: bool | None = None,
        rule: CombinationRule | str | None = None,
        member_weights: MemberWeights | None = None,
        **kwargs: Any,
    ) -> GrowtxEnsembleOutput:
        """Combined logits; with `labels` the loss, and in training the loss alone (see `GrowtxForCausalLM.forward`).

        Args:
            rule: combines this call's outputs; a name means that rule with its default options, or the ensemble's
                own rule if it has that name.
            member_weights: N numbers, or [B, N], in place of the rule's weights. Without a cache, members of weight
                0 are not computed: `[0, 1]` is the second member alone, bit for bit.
            past_key_values: `LateBranches` runs members late, by the rule `gate`. Where none is given, that rule takes
                one for a single text whose last logits alone are wanted.
        """
        if input_ids is None:
            raise ValueError("an ensemble needs input_ids: its rules look at the tokens themselves")
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and labels is None
        chosen = self._chosen(rule)
        if use_cache and past_key_values is None:
            is_late = isinstance(chosen, GateRule) and len(input_ids) == 1 and logits_to_keep == 1
            is_late = is_late and attention_mask is None and position_ids is None and can_lag(self.config)
            past_key_values = (LateBranches if is_late else DynamicCache)(config=self.config)
        given = None if member_weights is None else self._given_weights(member_weights, len(input_ids))
        if isinstance(past_key_values, LateBranches):
            inputs = {"attention_mask": attention_mask, "position_ids": position_ids, "labels": labels}
            _check_late(chosen, past_key_values, input_ids_BT=input_ids, **inputs)
            assert isinstance(chosen, GateRule)
            scores, settled = predict(
                self, chosen, input_ids, past_key_values, logits_to_keep=logits_to_keep, given=given, **kwargs
            )
            return GrowtxEnsembleOutput(logits=scores, past_key_values=past_key_values, member_weights=settled)
        is_cached = past_key_values is not None or PagedCall.of(kwargs) is not None
        members = self._members_to_run(given, is_cached=is_cached)
        text = self.read(
            input_ids,
            attention_mask,
            members=members,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )

        def pool(weights: torch.Tensor, *states: torch.Tensor) -> torch.Tensor:
            return chosen.combine(self.member_logits(members, states), weights[..., members])

        # A cached call asks the rule even for weights that are not used: its history must miss no token.
        own = chosen.weights(text) if given is None or is_cached else given
        weights = own if given is None else given
        weights_BTN = weights.expand(*input_ids.shape, self.config.num_members)
        result = GrowtxEnsembleOutput()
        if labels is not None:
            result = self._loss(pool, text.states, weights_BTN, labels, num_items_in_batch)
            if self.training if skip_logits is None else skip_logits:
                return result
        weights_BTN = slice_logits_to_keep(weights_BTN, logits_to_keep)
        states = [slice_logits_to_keep(states_BTD, logits_to_keep) for states_BTD in text.states]
        result.logits = pool(weights_BTN, *states)
        result.past_key_values = past_key_values
        result.member_weights = weights_BTN.detach()
        return result

    def read(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        members: Sequence[int] | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> TextSoFar:
        """Run the members (all, or some) over tokens [B, T] and return what rules combine: their final states."""
        rows_BTD = self.embed_tokens(input_ids)
        context = block_inputs(self.config, rows_BTD, attention_mask, position_ids, past_key_values)
        paged = PagedCall.of(kwargs)
        history = History.of(
            self.config, context["position_ids"], past_key_values, attention_mask=attention_mask, paged=paged
        )
        members = range(self.config.num_members) if members is None else members
        shared, computed = self.config.shared_blocks, dict[int, torch.Tensor]()
        states = []
        for member in members:
            hidden_BTD = rows_BTD
            for index in self.config.blocks_of_members[member]:
                if index in computed:
                    hidden_BTD = computed[index]
                    continue
                hidden_BTD = self.layers[index](hidden_BTD, past_key_values=past_key_values, **context, **kwargs)
                if index in shared:
                    computed[index] = hidden_BTD
            states.append(self.norms[member](hidden_BTD))
        num_trunk = self.config.num_trunk_blocks
        trunk_BTD = computed[self.config.blocks_of_members[0][num_trunk - 1]] if num_trunk else None
        return TextSoFar(input_ids, rows_BTD, states, list(self.lm_heads), history, trunk_BTD)

    def member_logits(self, members: Sequence[int], states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Logits [..., V] of each of the given members from its final states [..., D]."""
        return [self.lm_heads[member](hidden) for member, hidden in zip(members, states, strict=True)]

    def _loss(
        self,
        pool: Callable[..., torch.Tensor],
        states: Sequence[torch.Tensor],
        weights_BTN: torch.Tensor,
        labels_BT: torch.Tensor,
        num_items_in_batch: int | torch.Tensor | None,
    ) -> GrowtxEnsembleOutput:
        targets_BT = shift_labels(labels_BT)
        rows = [weights_BTN.flatten(0, 1), *(states_BTD.flatten(0, 1) for states_BTD in states)]
        loss, nll_N = checkpointed_cross_entropy(pool, rows, targets_BT.flatten())
        return GrowtxEnsembleOutput(
            loss=mean_over_targets(loss, targets_BT, num_items_in_batch),
            token_nll=nll_N.view(targets_BT.shape)[:, :-1],
            member_weights=weights_BTN.detach(),
        )

    def _chosen(self, rule: CombinationRule | str | None) -> CombinationRule:
        if rule is None or rule == self.rule.name:
            return self.rule
        return rule if isinstance(rule, CombinationRule) else self.build_rule(rule)

    def _given_weights(self, member_weights: MemberWeights, batch_size: int) -> torch.Tensor:
        weights = torch.as_tensor(member_weights, dtype=torch.float32, device=self.embed_tokens.weight.device)
        num_members = self.config.num_members
        fits = weights.shape in {(num_members,), (batch_size, num_members)}
        if not (fits and weights.isfinite().all() and (weights >= 0).all()):
            raise ConfigError(
                f"member_weights {weights.tolist()} do not fit {num_members} members",
                "Give one finite number of at least 0 per member, or one row of them per sequence",
            )
        return weights if weights.dim() == 1 else weights[:, None, :]

    def _members_to_run(self, weights: torch.Tensor | None, *, is_cached: bool) -> list[int]:
        """Members of weight 0 are left out, but not with a cache, whose layers must all see the same tokens."""
        every = list(range(self.config.num_members))
        if weights is None or is_cached or weights.dim() > 1:
            return every
        return [member for member in every if weights[member] != 0]


def _check_late(
    rule: CombinationRule,
    cache: LateBranches,
    *,
    input_ids_BT: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    labels: torch.Tensor | None,
) -> None:
    """Raise ConfigError for what a cache whose branches lag behind cannot do."""
    num_past = cache.get_seq_length()
    every_T = torch.arange(num_past, num_past + input_ids_BT.shape[1], device=input_ids_BT.device)
    problem = None
    if not isinstance(rule, GateRule):
        problem = f"is for the rule gate, not {rule.name}"
    elif len(input_ids_BT) > 1:
        problem = f"holds one text, not {len(input_ids_BT)}"
    elif (attention_mask is not None and not bool(attention_mask.all())) or (
        position_ids is not None and not torch.equal(position_ids[0], every_T)
    ):
        problem = "takes no padding and no positions of its own"
    elif labels is not None:
        problem = "is for generating, not for a loss"
    if problem is not None:
        raise ConfigError(f"the cache LateBranches {problem}", "Call without it, or pass a DynamicCache")
