from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from growtx.exceptions import ConfigError, DataError
from growtx.models import GrowtxEnsembleForCausalLM
from growtx.models.ensemble import RULES
from growtx.models.ensemble.fitting import fit_rule
from tests.models.ensemble.conftest import disturb

Make = Callable[[str], GrowtxEnsembleForCausalLM]


@torch.no_grad()
def text_of(ensemble: GrowtxEnsembleForCausalLM, weights: list[float]) -> torch.Tensor:
    """Text that the ensemble writes itself when its members weigh so."""
    torch.manual_seed(0)
    start = torch.randint(3, 97, (8, 1))
    options = {"max_new_tokens": 30, "do_sample": True, "top_k": 0, "eos_token_id": None, "suppress_tokens": None}
    return ensemble.generate(start, member_weights=weights, **options)


@pytest.mark.parametrize("name", [name for name in RULES if name != "mean"])
def test_fitting_lowers_the_loss_and_touches_no_member(make_ensemble: Make, name: str) -> None:
    ensemble = make_ensemble(name if RULES[name].reads_trunk else "mean")
    ensemble.set_rule("mean")
    labels_WT = text_of(ensemble, [0.0, 1.0, 0.0])
    labels_WT[0, 20:] = -100
    rule = ensemble.build_rule(name)
    if name == "cluster":
        disturb(ensemble, rule)
    before = [parameter.clone() for parameter in ensemble.parameters()]
    losses = fit_rule(ensemble, rule, labels_WT, num_steps=30)
    assert losses[-1] < losses[0] - 0.01
    assert all(torch.equal(old, new) for old, new in zip(before, ensemble.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in ensemble.parameters())


def test_an_adapter_on_confident_members_does_not_diverge(make_ensemble: Make) -> None:
    """Trained members have logits far from zero, all of which a step of the adapter moves at once."""
    ensemble = make_ensemble("mean")
    with torch.no_grad():
        for head in ensemble.lm_heads:
            head.weight.mul_(8.0)
    labels_WT = text_of(ensemble, [1 / 3, 1 / 3, 1 / 3])  # nothing is to be gained on the mean's own text
    losses = fit_rule(ensemble, ensemble.build_rule("adapter"), labels_WT, num_steps=30)
    assert max(losses) < losses[0] + 0.1


def test_weights_find_the_member_that_wrote_the_text(make_ensemble: Make) -> None:
    ensemble = make_ensemble("mean")
    rule = ensemble.build_rule("mixture")
    fit_rule(ensemble, rule, text_of(ensemble, [0.0, 1.0, 0.0]), num_steps=60)
    assert rule.log_prior.softmax(-1).argmax() == 1


def test_nothing_to_fit_on_or_with_is_handled(make_ensemble: Make) -> None:
    ensemble = make_ensemble("mean")
    assert fit_rule(ensemble, ensemble.rule, torch.zeros(1, 4, dtype=torch.long)) == []
    with pytest.raises(DataError, match="no held-out text"):
        fit_rule(ensemble, ensemble.rule, torch.zeros(0, 4, dtype=torch.long))
    with pytest.raises(ConfigError, match="is for 2 members, the ensemble has 3"):
        fit_rule(ensemble, RULES["mixture"](2), torch.zeros(1, 4, dtype=torch.long))


def test_a_gate_opens_only_as_far_as_the_gain_needs_it(make_ensemble: Make) -> None:
    """On text of the second member alone others gain nothing, on text of all of them they must run."""
    ensemble = make_ensemble("trunk-state")
    ensemble.set_rule("mixture")
    with torch.no_grad():
        for head in ensemble.lm_heads:
            head.weight.mul_(4.0)
    shares = []
    for weights in ([0.0, 1.0, 0.0], [1 / 3, 1 / 3, 1 / 3]):
        labels_WT = text_of(ensemble, weights)
        gate = ensemble.build_rule("gate")
        fit_rule(ensemble, gate, labels_WT, num_steps=40)
        text = ensemble.read(labels_WT)
        logits = ensemble.member_logits(range(3), text.states)
        settled_BTN = gate.settle(logits, gate.weights(text))
        shares.append((settled_BTN.amax(-1) < 1).float().mean().item())
    assert shares[0] < 0.1
    assert shares[1] > 0.15
