from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from growtx.exceptions import ConfigError
from growtx.models import GrowtxEnsembleForCausalLM, GrowtxForCausalLM, from_members
from growtx.models.ensemble import RULES, build_rule

Members = dict[str, GrowtxForCausalLM]
Make = Callable[[str], GrowtxEnsembleForCausalLM]


def log_probabilities(members: Members, tokens_BT: torch.Tensor) -> torch.Tensor:
    return torch.stack([model(tokens_BT).logits.log_softmax(-1) for model in members.values()])


def test_weighted_mean_pools_logits(make_ensemble: Make, members: Members, tokens_BT: torch.Tensor) -> None:
    ensemble = make_ensemble("weighted-mean")
    logits_NBTV = torch.stack([model(tokens_BT).logits for model in members.values()])
    expected = torch.einsum("n,nbtv->btv", ensemble.rule.member_weights, logits_NBTV)
    torch.testing.assert_close(ensemble(tokens_BT).logits, expected)


def test_mixture_pools_probabilities(make_ensemble: Make, members: Members, tokens_BT: torch.Tensor) -> None:
    ensemble = make_ensemble("mixture")
    weights_N = ensemble.rule.log_prior.softmax(-1)
    expected = torch.einsum("n,nbtv->btv", weights_N, log_probabilities(members, tokens_BT).exp())
    torch.testing.assert_close(ensemble(tokens_BT).logits.exp(), expected)


def test_posterior_is_bayes_rule_over_the_tokens_so_far(members: Members, tokens_BT: torch.Tensor) -> None:
    ensemble = from_members(members, rule={"name": "posterior", "decay": 0.9, "temperature": 1.5})
    log_p_NBTV = log_probabilities(members, tokens_BT)
    weights_BTN = ensemble(tokens_BT).member_weights
    for position in range(12):
        evidence_BN = torch.zeros(3, 3)
        for seen in range(1, position + 1):
            likelihood_NB = log_p_NBTV[:, range(3), seen - 1, tokens_BT[:, seen]]
            evidence_BN += 0.9 ** (position - seen) * likelihood_NB.t() / 1.5
        torch.testing.assert_close(weights_BTN[:, position], evidence_BN.softmax(-1), rtol=1e-4, atol=1e-5)


def test_trunk_state_adds_up_what_it_reads_off_the_trunk(make_ensemble: Make, tokens_BT: torch.Tensor) -> None:
    ensemble = make_ensemble("trunk-state")
    rule, text = ensemble.rule, ensemble.read(tokens_BT)
    (shared,) = ensemble.config.shared_blocks
    seen = list[torch.Tensor]()
    ensemble.layers[shared].register_forward_hook(lambda *call: seen.append(call[2]))
    weights_BTN = ensemble(tokens_BT).member_weights
    parts = [F.layer_norm(part, part.shape[-1:]) for part in (seen[0], text.rows_BTD)]
    evidence_BTN = torch.cat(parts, dim=-1) @ rule.evidence.weight.t()
    total_BN = torch.zeros(len(tokens_BT), 3)
    for position in range(tokens_BT.shape[1]):
        total_BN = rule.decay_logit.sigmoid() * total_BN + evidence_BTN[:, position]
        torch.testing.assert_close(weights_BTN[:, position], (rule.log_prior + total_BN).softmax(-1))


def test_a_gate_is_one_member_without_doubt_and_the_mixture_in_doubt(
    make_ensemble: Make, tokens_BT: torch.Tensor
) -> None:
    ensemble = make_ensemble("gate")
    mixture = ensemble(tokens_BT, rule=ensemble.rule.router)
    with torch.no_grad():
        ensemble.rule.threshold.fill_(1.0)
    closed = ensemble(tokens_BT)
    best_BT = mixture.member_weights.argmax(-1)
    text = ensemble.read(tokens_BT)
    logits_BTNV = torch.stack(ensemble.member_logits(range(3), text.states), dim=2)
    alone = logits_BTNV.gather(2, best_BT[..., None, None].expand(-1, -1, 1, 97))[:, :, 0]
    torch.testing.assert_close(closed.logits.softmax(-1), alone.softmax(-1))
    with torch.no_grad():
        ensemble.rule.threshold.fill_(0.0)
    torch.testing.assert_close(ensemble(tokens_BT).logits, mixture.logits)
    with torch.no_grad():
        ensemble.rule.threshold.fill_(0.3)
    doubt_BT = (1 - mixture.member_weights.amax(-1)) * (1 - alone.softmax(-1).amax(-1))
    is_alone_BT = (ensemble(tokens_BT).logits.softmax(-1) - alone.softmax(-1)).abs().amax(-1) < 1e-6
    assert torch.equal(is_alone_BT, doubt_BT <= 0.3)
    assert 0 < is_alone_BT.sum() < is_alone_BT.numel()


def test_cluster_prefers_the_member_whose_text_is_like_the_context(members: Members) -> None:
    ensemble = from_members(members, rule="cluster")
    alphabets = [torch.arange(3, 30), torch.arange(30, 60), torch.arange(60, 97)]
    texts = [alphabet[torch.randint(len(alphabet), (8, 30))] for alphabet in alphabets]
    ensemble.rule.place_centres(ensemble.embed_tokens, texts)
    for member, alphabet in enumerate(alphabets):
        context_BT = alphabet[torch.randint(len(alphabet), (2, 20))]
        assert (ensemble(context_BT).member_weights[:, -1].argmax(-1) == member).all()


def test_contrastive_subtracts_the_amateur(members: Members, tokens_BT: torch.Tensor) -> None:
    spec = {"name": "contrastive", "amateur": 1, "strength": 0.5}
    logits = [model(tokens_BT).logits for model in members.values()]
    expected = 1.5 * (logits[0] + logits[2]) / 2 - 0.5 * logits[1]
    torch.testing.assert_close(from_members(members, rule=spec)(tokens_BT).logits, expected)
    plausible = from_members(members, rule={**spec, "cutoff": 0.1})(tokens_BT).logits
    experts = ((logits[0] + logits[2]) / 2).softmax(-1)
    excluded = experts < 0.1 * experts.amax(-1, keepdim=True)
    assert torch.equal(plausible == float("-inf"), excluded)


def test_adapter_starts_as_the_mean_and_has_few_parameters(members: Members, tokens_BT: torch.Tensor) -> None:
    ensemble = from_members(members, rule={"name": "adapter", "rank": 2})
    assert sum(parameter.numel() for parameter in ensemble.rule.parameters()) == (3 + 1) * 97 * 2
    expected = from_members(members)(tokens_BT).logits
    assert torch.equal(ensemble(tokens_BT).logits, expected)
    with torch.no_grad():
        ensemble.rule.up.normal_()
    joined = torch.cat([model(tokens_BT).logits for model in members.values()], dim=-1)
    down = torch.cat(list(ensemble.rule.down), dim=-1)
    torch.testing.assert_close(
        ensemble(tokens_BT).logits, expected + F.linear(F.linear(joined, down), ensemble.rule.up)
    )


@pytest.mark.parametrize("name", list(RULES))
def test_a_rule_is_built_again_from_its_spec(make_ensemble: Make, name: str) -> None:
    ensemble = make_ensemble(name)
    spec = ensemble.rule.spec()
    rebuilt = ensemble.build_rule(spec).spec()
    assert rebuilt.pop("name") == spec.pop("name") == name
    assert rebuilt == pytest.approx(spec)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("median", "'median' is unknown. Use one of mean, weighted-mean"),
        ({"name": "posterior", "speed": 2}, "rule posterior has no option speed. Its options: decay, temperature"),
        ({"name": "mean", "rank": 2}, "rule mean has no option rank. Its options: none"),
        ({"name": "contrastive", "amateur": 3}, "amateur 3 among 3 members"),
    ],
)
def test_unknown_rules_and_options_are_refused(spec: object, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_rule(spec, num_members=3, hidden_size=32, vocab_size=97)  # type: ignore[arg-type]
    assert sentence in str(error.value)
