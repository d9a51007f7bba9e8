"""The forms in which models are run for serving: one model, an ensemble member by member, or all members at once.

A grown model is many models in one: every stage left a norm and a head for the blocks that were there. The depths of a
lineage that have their blocks in common run together: a step takes all its requests through the blocks, and each leaves
where its depth ends, by the *exit* of that stage. Heads and rules come after it, because every request may have its own
rule.

Shapes: T new tokens of all requests, R requests of a step, C of them that get a token, D hidden size, V vocabulary,
N members.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from growtx.compat.transformers import PagedCall
from growtx.models import GrowtxForCausalLM
from growtx.models.causal_lm import block_inputs
from growtx.models.ensemble import CombinationRule, GrowtxEnsembleForCausalLM, to_fused
from growtx.models.ensemble.fused import MemberLayerNorm

# Rules that need nothing but the members' logits, so that any request may ask for them.
STATELESS_RULES = ("mean", "mixture", "contrastive")

OF_ALL_BLOCKS = ("attention_mask", "position_ids", "use_cache")  # arguments that are no block's own

Depth = int | None  # what a request asks for; None: the last stage
Depths = Mapping[Depth, PreTrainedModel]
Weights = dict[str, torch.Tensor]


class Exit(nn.Module):
    """Where requests of one depth leave the blocks.

    Args:
        num_blocks: blocks that they run through.
        norm: of the states that leave; None where the blocks' own form ends with it.
        heads: of every member.
        weights: [N] of every rule whose weights do not look at the text.
    """

    def __init__(
        self, num_blocks: int, norm: nn.Module | None, heads: Sequence[nn.Module], weights: Weights | None = None
    ) -> None:
        super().__init__()
        self.num_blocks = num_blocks
        self.norm = norm or nn.Identity()
        self.heads = nn.ModuleList(heads)
        self.weights = weights or {}

    def leads_where(self, other: Exit) -> bool:
        """Whether the same requests could take the other one: the same depth, and the same tensors."""
        ours, theirs = list(self.parameters()), list(other.parameters())
        return self.num_blocks == other.num_blocks and _are_the_same(ours, theirs)


class Step(NamedTuple):
    """Packed requests [1, T], each with its exit, and the positions whose states are wanted, with theirs."""

    input_ids: torch.Tensor
    rows_C: torch.Tensor
    exits_R: Sequence[Exit]
    exits_C: Sequence[Exit]


class Found(NamedTuple):
    """Every member's final states [C, D] and every rule's weights [C, N] at the wanted positions, with their exits."""

    states: list[torch.Tensor]
    weights: Weights
    exits_C: Sequence[Exit]

    def part(self, rows: slice) -> Found:
        weights = {name: weights_CN[rows] for name, weights_CN in self.weights.items()}
        return Found([states_CD[rows] for states_CD in self.states], weights, self.exits_C[rows])


class Backbone(nn.Module):
    """Base: a single causal language model of any architecture, which has one depth."""

    def __init__(self, models: Depths) -> None:
        super().__init__()
        self.model = deepest(models)
        self.rules: dict[str, CombinationRule] = {}
        self.members: tuple[str, ...] = ()
        self.exits: dict[Depth, Exit] = {}
        self.distinct_exits = nn.ModuleList()
        self.set_exits({depth: self.exit_of(model) for depth, model in models.items()})

    def exit_of(self, model: PreTrainedModel) -> Exit:
        """Where requests of one of the models leave."""
        return Exit(model.config.num_hidden_layers, None, [model.get_output_embeddings()])

    def set_exits(self, exits: Mapping[Depth, Exit]) -> None:
        """Take these; the last stage is mostly one of the depths, too."""
        distinct: list[Exit] = []
        for depth, one in exits.items():
            self.exits[depth] = next((other for other in distinct if one.leads_where(other)), one)
            if self.exits[depth] is one:
                distinct.append(one)
        self.distinct_exits = nn.ModuleList(distinct)

    def read(self, step: Step, **kwargs: Any) -> Found:
        """Run the blocks over a step."""
        kwargs = {"use_cache": False, **kwargs}
        hidden_1TD = self.model.base_model(input_ids=step.input_ids, **kwargs).last_hidden_state
        return Found([hidden_1TD[0, step.rows_C]], {}, step.exits_C)

    def logits(self, states: Sequence[torch.Tensor], exits_C: Sequence[Exit]) -> list[torch.Tensor]:
        """Every member's logits [C, V] in fp32, each request's by the head of its own exit."""
        groups = list(rows_by_exit(exits_C))
        if len(groups) == 1:
            return [head(states_CD).float() for head, states_CD in zip(groups[0][0].heads, states, strict=True)]
        logits = [states[0].new_empty(len(exits_C), self.model.config.vocab_size, dtype=torch.float32) for _ in states]
        for one, rows in groups:
            for member_CV, head, states_CD in zip(logits, one.heads, states, strict=True):
                member_CV[rows] = head(states_CD[rows]).float()
        return logits


class GrownBackbone(Backbone):
    """Base: blocks of ours that several depths have in common.

    Subclasses say how tokens enter, which blocks there are, and what a group of them does.
    """

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.model.base_model.layers  # type: ignore[no-any-return]

    def enter(self, input_ids: torch.Tensor, attention_mask: Any, position_ids: Any) -> tuple[torch.Tensor, Any]:
        """States that enter the first block, and what all blocks share."""
        hidden_1TD = self.model.get_input_embeddings()(input_ids)
        return hidden_1TD, block_inputs(self.model.config, hidden_1TD, attention_mask, position_ids)

    def run(self, hidden: torch.Tensor, first: int, last: int, context: Mapping[str, Any]) -> torch.Tensor:
        """States that enter block `last`, from those that enter block `first`."""
        for block in self.blocks[first:last]:
            hidden = block(hidden, **context)
        return hidden

    def leave(self, hidden: torch.Tensor, one: Exit) -> torch.Tensor:
        """Every member's final states [N, T, D]."""
        normed_1TD: torch.Tensor = one.norm(hidden)
        return normed_1TD

    def final_states(self, step: Step, **kwargs: Any) -> torch.Tensor:
        """[N, T, D]; requests are computed as far as their exits, and those that have left cost nothing above."""
        arguments = {name: value for name, value in kwargs.items() if name not in OF_ALL_BLOCKS}
        hidden, context = self.enter(step.input_ids, kwargs.get("attention_mask"), kwargs.get("position_ids"))
        if len(set(step.exits_R)) == 1:
            (only,) = set(step.exits_R)
            return self.leave(self.run(hidden, 0, only.num_blocks, {**context, **arguments}), only)
        final_NTD = hidden.new_empty(max(1, len(self.members)), *hidden.shape[1:])
        positions_T, first, rest = torch.arange(hidden.shape[1], device=hidden.device), 0, list(step.exits_R)
        while rest:
            last = min(one.num_blocks for one in rest)
            hidden = self.run(hidden, first, last, {**context, **arguments})
            paged = PagedCall.of(arguments)
            assert paged is not None, "requests of several depths are a batch of the engine"
            for one in {one for one in rest if one.num_blocks == last}:
                rows_T = paged.positions_of([other is one for other in rest])
                final_NTD[:, positions_T[rows_T]] = self.leave(hidden[..., rows_T, :], one)
            stay = [one.num_blocks > last for one in rest]
            rest = [one for one in rest if one.num_blocks > last]
            if rest:
                rows_T, arguments = paged.positions_of(stay), paged.of_requests(stay)
                hidden, context, positions_T = hidden[..., rows_T, :], _select(context, rows_T), positions_T[rows_T]
                first = last
        return final_NTD


def _select(context: Mapping[str, Any], rows_T: torch.Tensor) -> dict[str, Any]:
    """What the blocks share, [1, T, ...] each, of some positions."""
    assert context["attention_mask"] is None, "the engine's requests lie in one row without padding"
    selected = dict(context)
    selected["rotary"] = tuple(angles[:, rows_T] for angles in context["rotary"])
    for name in ("position_ids", "substrate_BTD"):
        if context.get(name) is not None:
            selected[name] = context[name][:, rows_T]
    return selected


class SingleBackbone(GrownBackbone):
    """One grown model, at any of its depths."""

    def exit_of(self, model: PreTrainedModel) -> Exit:
        return Exit(model.config.num_hidden_layers, model.base_model.norm, [model.lm_head])

    def enter(self, input_ids: torch.Tensor, attention_mask: Any, position_ids: Any) -> tuple[torch.Tensor, Any]:
        hidden_1TD, context = super().enter(input_ids, attention_mask, position_ids)
        if self.model.config.substrate_reinjection:
            context["substrate_BTD"] = hidden_1TD
        return hidden_1TD, context

    def read(self, step: Step, **kwargs: Any) -> Found:
        return Found([self.final_states(step, **kwargs)[0, step.rows_C]], {}, step.exits_C)


class FlatBackbone(Backbone):
    """Member after member: any depths, shared blocks once, rules that look at the text. It has one exit."""

    model: GrowtxEnsembleForCausalLM

    def __init__(self, models: Depths) -> None:
        super().__init__(models)
        self.rules = _rules_of(self.model)
        self.members = tuple(self.model.config.member_names or ())

    def exit_of(self, model: PreTrainedModel) -> Exit:
        return Exit(model.config.num_blocks, None, list(model.lm_heads))

    def read(self, step: Step, **kwargs: Any) -> Found:
        kwargs.pop("use_cache", None)
        text, shape = self.model.read(step.input_ids, **kwargs), step.input_ids.shape
        weights = {name: rule.weights(text).expand(*shape, -1)[0, step.rows_C] for name, rule in self.rules.items()}
        return Found([states_1TD[0, step.rows_C] for states_1TD in text.states], weights, step.exits_C)


class FusedBackbone(GrownBackbone):
    """Members of equal depth fused into one decoder, their common trunk run once: fewer and larger operations.

    The weights of its rules are constants, or read off the trunk's state; with such a rule it has one exit.
    """

    def __init__(self, models: Depths) -> None:
        super().__init__(models)
        ensemble = self.model
        self.rules, own = _rules_of(ensemble), ensemble.rule
        ensemble.set_rule("mean")  # `to_fused` folds a linear rule into the head, which is not used here
        fused = to_fused(ensemble, num_history_layers=own.num_history_layers(ensemble.config.num_members))
        ensemble.set_rule(own)
        fused.set_submodule("lm_head", nn.Identity())  # heads are those of the exits
        self.members = tuple(ensemble.config.member_names or ())
        self.model = fused

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.model.layers  # type: ignore[no-any-return]

    def exit_of(self, model: PreTrainedModel) -> Exit:
        some_text = model.read(torch.zeros(1, 1, dtype=torch.long, device=model.device))
        constant = {name: rule for name, rule in _rules_of(model).items() if not rule.reads_trunk}
        weights = {name: rule.weights(some_text).detach() for name, rule in constant.items()}
        norm = MemberLayerNorm(model.config)
        for name in ("weight", "bias"):
            stacked_ND = torch.stack([getattr(member, name).detach() for member in model.norms])
            setattr(norm, name, nn.Parameter(stacked_ND[:, None, None], requires_grad=False))
        return Exit(len(model.config.blocks_of_members[0]), norm, list(model.lm_heads), weights)

    def run(self, hidden: torch.Tensor, first: int, last: int, context: Mapping[str, Any]) -> torch.Tensor:
        """Up to the end of the trunk [1, T, D], beyond it [N, 1, T, D]."""
        end = self.model.config.num_trunk_layers
        hidden = super().run(hidden, first, min(last, end), context)
        if last > end:
            hidden = hidden if hidden.dim() == 4 else hidden.expand(len(self.members), -1, -1, -1)
            hidden = super().run(hidden, max(first, end), last, context)
        return hidden

    def leave(self, hidden: torch.Tensor, one: Exit) -> torch.Tensor:
        of_members = hidden if hidden.dim() == 4 else hidden.expand(len(self.members), -1, -1, -1)
        normed_NTD: torch.Tensor = one.norm(of_members)[:, 0]
        return normed_NTD

    def read(self, step: Step, **kwargs: Any) -> Found:
        readers = {name: rule for name, rule in self.rules.items() if rule.reads_trunk}
        if readers:
            kwargs.pop("use_cache", None)
            text = self.model.read(step.input_ids, **kwargs)
            states = [states_1TD[0, step.rows_C] for states_1TD in text.states]
            weights = {name: rule.weights(text)[0, step.rows_C] for name, rule in readers.items()}
        else:
            states, weights = list(self.final_states(step, **kwargs)[:, step.rows_C]), {}
        if step.exits_C:
            for name in self.rules.keys() - readers.keys():
                weights[name] = torch.stack([one.weights[name] for one in step.exits_C])
        return Found(states, weights, step.exits_C)


def rows_by_exit(exits_C: Sequence[Exit]) -> Iterator[tuple[Exit, list[int]]]:
    """The requests that take each exit."""
    for one in dict.fromkeys(exits_C):
        yield one, [row for row, other in enumerate(exits_C) if other is one]


# Which depths run together.


def make_backbone(models: Depths) -> Backbone:
    """The fastest form that serves every rule of the models, which must be a stack (`stacks_of`).

    The fused form has its own copy of all but the trunk. The flat one also runs blocks once that some members share,
    but not all; the fused form would have to repeat them.
    """
    model = deepest(models)
    if isinstance(model, GrowtxEnsembleForCausalLM):
        return FusedBackbone(models) if _can_be_fused(model) else FlatBackbone(models)
    return SingleBackbone(models) if isinstance(model, GrowtxForCausalLM) else Backbone(models)


def stacks_of(models: Depths) -> list[dict[Depth, PreTrainedModel]]:
    """The depths of a lineage in groups that have their blocks in common, each to be run by one engine.

    A depth belongs to a deeper one if its blocks are the lowest of that one: the same tensors, not equal ones. LoRA
    phases change lower blocks, so depths before and after one have none in common.
    """
    stacks: list[dict[Depth, PreTrainedModel]] = []
    for depth, model in sorted(models.items(), key=lambda item: -num_blocks_of(item[1])):
        stack = next((stack for stack in stacks if _is_lower_part(model, deepest(stack))), None)
        if stack is None:
            stacks.append(stack := {})
        stack[depth] = model
    return stacks


def deepest(models: Depths) -> PreTrainedModel:
    return max(models.values(), key=num_blocks_of)


def num_blocks_of(model: PreTrainedModel) -> int:
    """Blocks that are computed for a token, those of all members."""
    if isinstance(model, GrowtxEnsembleForCausalLM):
        return model.config.num_blocks
    blocks: int = model.config.num_hidden_layers
    return blocks


def _is_lower_part(model: PreTrainedModel, whole: PreTrainedModel) -> bool:
    if type(model) is not type(whole):
        return False
    parts: list[tuple[nn.Module, nn.Module]] = [(model.get_input_embeddings(), whole.get_input_embeddings())]
    if isinstance(model, GrowtxForCausalLM):
        parts += zip(model.model.layers, whole.model.layers, strict=False)
    elif isinstance(model, GrowtxEnsembleForCausalLM) and _has_exits(model) and _has_exits(whole):
        for ours, theirs in zip(model.config.blocks_of_members, whole.config.blocks_of_members, strict=True):
            parts += [(model.layers[a], whole.layers[b]) for a, b in zip(ours, theirs, strict=False)]
    else:  # one depth alone: the last stage under both of its names
        parts = [(model, whole)]
    return all(_are_the_same(list(ours.parameters()), list(theirs.parameters())) for ours, theirs in parts)


def _are_the_same(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> bool:
    """Whether tensors lie at the same places."""
    return [tensor.data_ptr() for tensor in ours] == [tensor.data_ptr() for tensor in theirs]


def _can_be_fused(ensemble: GrowtxEnsembleForCausalLM) -> bool:
    config = ensemble.config
    has_equal_depths = len({len(blocks) for blocks in config.blocks_of_members}) == 1
    needs_likelihoods = ensemble.rule.num_history_layers(config.num_members) > 0 and not ensemble.rule.reads_trunk
    shares_trunk_only = len(config.shared_blocks) == config.num_trunk_blocks
    return config.num_members > 1 and has_equal_depths and shares_trunk_only and not needs_likelihoods


def _has_exits(ensemble: GrowtxEnsembleForCausalLM) -> bool:
    """Whether depths can leave where theirs ends: a rule that reads the trunk wants all of it."""
    return _can_be_fused(ensemble) and not ensemble.rule.reads_trunk


def _rules_of(ensemble: GrowtxEnsembleForCausalLM) -> dict[str, CombinationRule]:
    """Its own rule first, then those that any ensemble can offer."""
    own = ensemble.rule
    others = [ensemble.build_rule(name) for name in STATELESS_RULES if name != own.name]
    return {rule.name: rule for rule in (own, *others)}
