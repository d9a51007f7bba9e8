"""Shape of an ensemble: which blocks each member runs, and how the members' outputs are combined."""

from __future__ import annotations

from collections import Counter
from itertools import takewhile
from typing import Any

from huggingface_hub.dataclasses import strict

from growtx.exceptions import ConfigError
from growtx.models.configuration import GrowtxConfig
from growtx.models.ensemble.rules import num_history_layers


@strict
class GrowtxEnsembleConfig(GrowtxConfig):
    """Configuration of `GrowtxEnsembleForCausalLM`.

    Args:
        member_names: one name per member.
        member_blocks: for each member the indices of its blocks, lowest first. Members that share lower blocks
            name the same indices; a shared block is stored and computed once.
        rule: name and options of the combination rule, as `CombinationRule.spec` gives them.

    `num_hidden_layers` is derived: every block has its own layer in the one cache, and rules that weigh members by
    the text so far keep their history in further layers.

    Raises:
        ConfigError: when members or rule are not possible.
    """

    model_type = "growtx_ensemble"
    keys_to_ignore_at_inference = ["past_key_values", "token_nll", "member_weights"]  # noqa: RUF012

    member_names: list[str] | None = None
    member_blocks: list[list[int]] | None = None
    rule: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: object) -> None:
        self.member_names = list(self.member_names or ["member-0"])
        self.member_blocks = [list(blocks) for blocks in self.member_blocks or [[0]]]
        self.set_rule(self.rule or {"name": "mean"})
        super().__post_init__(**kwargs)

    def set_rule(self, spec: dict[str, Any]) -> None:
        """Change the rule and the number of cache layers that it needs."""
        self.rule = spec
        self.num_hidden_layers = self.num_blocks + num_history_layers(spec, self.num_members)

    @property
    def blocks_of_members(self) -> list[list[int]]:
        """`member_blocks`, resolved."""
        return self.member_blocks or []

    @property
    def num_members(self) -> int:
        return len(self.blocks_of_members)

    @property
    def num_blocks(self) -> int:
        """Distinct blocks of all members."""
        return 1 + max(index for blocks in self.blocks_of_members for index in blocks)

    @property
    def shared_blocks(self) -> frozenset[int]:
        """Blocks that more than one member runs."""
        uses = Counter(index for blocks in self.blocks_of_members for index in blocks)
        return frozenset(index for index, count in uses.items() if count > 1)

    @property
    def num_trunk_blocks(self) -> int:
        """Lowest blocks that all members run; of a lone member none, since nothing branches."""
        if self.num_members == 1:
            return 0
        levels = zip(*self.blocks_of_members, strict=False)
        return sum(1 for _ in takewhile(lambda indices: len(set(indices)) == 1, levels))

    def validate_architecture(self) -> None:
        super().validate_architecture()
        names = self.member_names or []
        if len(names) != self.num_members or len(set(names)) != len(names):
            raise ConfigError(
                f"an ensemble of {self.num_members} members got the names {', '.join(names)}",
                "Give every member a name of its own",
            )
        below: dict[int, int] = {}
        for blocks in self.blocks_of_members:
            for lower, index in zip([-1, *blocks], blocks, strict=False):
                if below.setdefault(index, lower) != lower:
                    raise ConfigError(
                        f"block {index} is listed above both block {below[index]} and block {lower}",
                        "Members may share lower blocks only, in the same order",
                    )
