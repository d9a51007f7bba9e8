from __future__ import annotations

from collections.abc import Callable

import torch

from growtx.models import GrowtxEnsembleForCausalLM, GrowtxForCausalLM
from growtx.models.ensemble import RULES
from growtx.models.ensemble.scoring import score
from tests.models.ensemble.conftest import disturb

Make = Callable[[str], GrowtxEnsembleForCausalLM]


def test_one_pass_scores_members_and_rules_as_single_passes_do(
    make_ensemble: Make, members: dict[str, GrowtxForCausalLM], tokens_BT: torch.Tensor
) -> None:
    ensemble = make_ensemble("trunk-state")
    rules = {name: ensemble.build_rule(name) for name in RULES}
    for rule in rules.values():
        disturb(ensemble, rule)
    labels_BT = tokens_BT.clone()
    labels_BT[1, 6:] = -100
    scores = score(ensemble, tokens_BT, labels_BT, rules)
    for name, model in members.items():
        torch.testing.assert_close(scores.members[name], model(input_ids=tokens_BT, labels=labels_BT).token_nll)
    for name, rule in rules.items():
        output = ensemble(input_ids=tokens_BT, labels=labels_BT, rule=rule)
        torch.testing.assert_close(scores.rules[name], output.token_nll)
        torch.testing.assert_close(scores.weights[name], output.member_weights[:, :-1])
