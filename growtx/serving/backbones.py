"""The forms in which a model is run for serving: one model, an ensemble member by member, or all members at once.

A backbone yields the members' final states; heads and rules come after it, because every request may have its own rule.

Shapes: T new tokens of all requests, C requests that get a token, D hidden size, V vocabulary, N members.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from growtx.models.ensemble import CombinationRule, GrowtxEnsembleForCausalLM, to_fused

# Rules that need nothing but the members' logits, so that any request may ask for them.
STATELESS_RULES = ("mean", "mixture", "contrastive")

Weights = dict[str, torch.Tensor]


class Backbone(nn.Module):
    """Base: a single causal language model of any architecture."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.rules: dict[str, CombinationRule] = {}
        self.members: tuple[str, ...] = ()
        self.heads = nn.ModuleList([model.get_output_embeddings()])

    def read(self, input_ids: torch.Tensor, rows_C: torch.Tensor, **kwargs: Any) -> tuple[list[torch.Tensor], Weights]:
        """Every member's final states [C, D] and every rule's weights [C, N] at the given positions of a row [1, T]."""
        kwargs = {"use_cache": False, **kwargs}
        hidden_1TD = self.model.base_model(input_ids=input_ids, **kwargs).last_hidden_state
        return [hidden_1TD[0, rows_C]], {}


class FlatBackbone(Backbone):
    """Member after member: any depths, shared blocks once, rules that look at the text."""

    def __init__(self, ensemble: GrowtxEnsembleForCausalLM) -> None:
        super().__init__(ensemble)
        self.rules = _rules_of(ensemble)
        self.members = tuple(ensemble.config.member_names or ())
        self.heads = nn.ModuleList(ensemble.lm_heads)

    def read(self, input_ids: torch.Tensor, rows_C: torch.Tensor, **kwargs: Any) -> tuple[list[torch.Tensor], Weights]:
        kwargs.pop("use_cache", None)
        text = self.model.read(input_ids, **kwargs)
        weights = {
            name: rule.weights(text).expand(*input_ids.shape, -1)[0, rows_C] for name, rule in self.rules.items()
        }
        return [states_1TD[0, rows_C] for states_1TD in text.states], weights


class FusedBackbone(Backbone):
    """Members of equal depth fused into one decoder, their common trunk run once: fewer and larger operations.

    The weights of its rules are constants, or read off the trunk's state.
    """

    def __init__(self, ensemble: GrowtxEnsembleForCausalLM) -> None:
        rules, own = _rules_of(ensemble), ensemble.rule
        some_text = ensemble.read(torch.zeros(1, 1, dtype=torch.long, device=ensemble.device))
        constants = {name: rule.weights(some_text).detach() for name, rule in rules.items() if not rule.reads_trunk}
        ensemble.set_rule("mean")  # `to_fused` folds a linear rule into the head, which is not used here
        fused = to_fused(ensemble, num_history_layers=own.num_history_layers(ensemble.config.num_members))
        ensemble.set_rule(own)
        fused.set_submodule("lm_head", nn.Identity())  # each member's own is used instead
        super().__init__(fused)
        self.rules, self.constants = rules, constants
        self.members = tuple(ensemble.config.member_names or ())
        self.heads = nn.ModuleList(ensemble.lm_heads)

    def read(self, input_ids: torch.Tensor, rows_C: torch.Tensor, **kwargs: Any) -> tuple[list[torch.Tensor], Weights]:
        kwargs.pop("use_cache", None)
        text = self.model.read(input_ids, **kwargs)
        weights = {
            name: self.constants[name].expand(len(rows_C), -1)
            if name in self.constants
            else rule.weights(text)[0, rows_C]
            for name, rule in self.rules.items()
        }
        return [states_1TD[0, rows_C] for states_1TD in text.states], weights


def make_backbone(model: PreTrainedModel) -> Backbone:
    """The fastest form that serves every rule of the model. The fused form has its own copy of all but the trunk.

    The flat one also runs blocks once that some members share, but not all; the fused form would have to repeat them.
    """
    if not isinstance(model, GrowtxEnsembleForCausalLM):
        return Backbone(model)
    config = model.config
    has_equal_depths = len({len(blocks) for blocks in config.blocks_of_members}) == 1
    needs_likelihoods = model.rule.num_history_layers(config.num_members) > 0 and not model.rule.reads_trunk
    shares_trunk_only = len(config.shared_blocks) == config.num_trunk_blocks
    can_be_fused = config.num_members > 1 and has_equal_depths and shares_trunk_only and not needs_likelihoods
    return FusedBackbone(model) if can_be_fused else FlatBackbone(model)


def _rules_of(ensemble: GrowtxEnsembleForCausalLM) -> dict[str, CombinationRule]:
    """Its own rule first, then those that any ensemble can offer."""
    own = ensemble.rule
    others = [ensemble.build_rule(name) for name in STATELESS_RULES if name != own.name]
    return {rule.name: rule for rule in (own, *others)}
