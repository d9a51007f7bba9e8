"""All depths of a lineage in one engine: the tokens of an engine of their own, whatever the company."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from growtx.compat.transformers import BatchedModel, StepRequest, request_name
from growtx.models import GrowtxConfig, GrowtxForCausalLM
from growtx.models.ensemble import from_members
from growtx.sampling import Sampling
from growtx.serving.backbones import Depths, FlatBackbone, FusedBackbone, SingleBackbone, stacks_of
from growtx.serving.engine import Engine, Engines
from growtx.serving.loading import share_equal_tensors
from growtx.serving.requests import Generation
from tests.serving.conftest import collect, make_model

DEPTHS = (1, 2, 4)
PROMPTS = [tuple(random.Random(i).randrange(4, 300) for _ in range(3 + 5 * i)) for i in range(32)]


def stages(tokenizer: PreTrainedTokenizerFast, seed: int = 0, **changes: Any) -> dict[int, GrowtxForCausalLM]:
    """What growth leaves: the same blocks, and for every depth a norm and a head of its own."""
    whole = make_model(tokenizer, seed, num_hidden_layers=max(DEPTHS), **changes)
    found = {}
    for depth in DEPTHS:
        config = GrowtxConfig(**{**whole.config.to_dict(), "num_hidden_layers": depth})
        torch.manual_seed(100 * seed + depth)
        found[depth] = GrowtxForCausalLM(config).eval()
        torch.nn.init.normal_(found[depth].model.norm.weight, 1.0, 0.2)
        parts = [(found[depth].model.embed_tokens, whole.model.embed_tokens)]
        for ours, theirs in (*parts, *zip(found[depth].model.layers, whole.model.layers, strict=False)):
            share(ours, theirs)
    return found


def share(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    for parameter, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        parameter.data = other.data


def ensembles(tokenizer: PreTrainedTokenizerFast, rule: str, num_trunk_blocks: int) -> dict[int, PreTrainedModel]:
    members = {name: stages(tokenizer, seed) for seed, name in enumerate(("north", "south"))}
    for depth in DEPTHS:
        north, south = members["north"][depth].model, members["south"][depth].model
        share(south.embed_tokens, north.embed_tokens)
        for index in range(min(depth, num_trunk_blocks)):
            share(south.layers[index], north.layers[index])
    found = {depth: from_members({name: members[name][depth] for name in members}, rule=rule) for depth in DEPTHS}
    share_equal_tensors(list(found.values()))
    return found


def lineage(kind: str, tokenizer: PreTrainedTokenizerFast) -> dict[int | None, PreTrainedModel]:
    if kind == "one model":
        models: dict[int, PreTrainedModel] = dict(stages(tokenizer))
    elif kind == "substrate reinjected":
        models = dict(stages(tokenizer, substrate_reinjection=True))
        torch.nn.init.constant_(models[4].model.layers[3].reinjection, 0.7)
    else:
        models = ensembles(tokenizer, "mean", num_trunk_blocks=int(kind[-1]))
    return {**models, None: models[max(DEPTHS)]}


KINDS = ("one model", "substrate reinjected", "ensemble with a trunk of 0", "ensemble with a trunk of 2")


def start(models: Depths, **options: Any) -> Engine:
    engine = Engine(models, **{"kv_cache_gib": 0.05, **options})
    engine.start()
    return engine


@pytest.fixture(params=KINDS)
def models(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> dict[int | None, PreTrainedModel]:
    return lineage(request.param, tokenizer)


@pytest.fixture
def engine(models: Depths) -> Iterator[Engine]:
    engine = start(models)
    yield engine
    engine.stop()


def requests() -> list[Generation]:
    """32 texts of mixed depths, greedy and sampled."""
    samplings = [Sampling(temperature=0.0) if i % 3 == 0 else Sampling(seed=i, top_p=0.95) for i in range(32)]
    depths = [(*DEPTHS, None)[i % 4] for i in range(32)]
    return [Generation(PROMPTS[i], 12, samplings[i], depths[i]) for i in range(32)]


async def answer(engine: Engine, asked: list[Generation]) -> list[list[int]]:
    found = await asyncio.gather(*(collect(engine.generate(request)) for request in asked))
    return [[token.id for token in tokens] for tokens in found]


def answers_of_their_own(models: Depths, asked: list[Generation]) -> list[list[int]]:
    found: dict[int, list[int]] = {}
    for depth, model in models.items():
        engine = start({depth: model})
        for index in [index for index, request in enumerate(asked) if request.depth == depth]:
            (found[index],) = asyncio.run(answer(engine, [asked[index]]))
        engine.stop()
    return [found[index] for index in range(len(asked))]


def test_a_batch_of_mixed_depths_has_the_tokens_of_engines_of_their_own(
    tokenizer: PreTrainedTokenizerFast, request: pytest.FixtureRequest, models: Depths, engine: Engine
) -> None:
    asked = requests()
    (kind,) = (mark for mark in KINDS if mark in request.node.name)
    expected = answers_of_their_own(lineage(kind, tokenizer), asked)
    together = asyncio.run(answer(engine, asked))
    assert together == expected
    assert len({tuple(tokens) for tokens in expected[:4]}) == 4, "depths differ"
    assert asyncio.run(answer(engine, [asked[9]])) == [expected[9]], "alone"
    rest = [asked[index].after(expected[index][:5]) for index in (1, 6, 11)]
    assert asyncio.run(answer(engine, rest)) == [expected[index][5:] for index in (1, 6, 11)], "after a failover"


def test_prompts_in_pieces_beside_other_depths(tokenizer: PreTrainedTokenizerFast) -> None:
    models = lineage("one model", tokenizer)
    expected = answers_of_their_own(models, requests())
    engine = start(models, max_batch_tokens=33)
    assert asyncio.run(answer(engine, requests())) == expected
    engine.stop()


def test_scores_are_those_of_the_depth(tokenizer: PreTrainedTokenizerFast) -> None:
    models = lineage("one model", tokenizer)
    engine = start(models)
    text = PROMPTS[7]
    for depth, model in models.items():
        scored = asyncio.run(engine.score(text, Sampling(num_logprobs=0), depth))
        logprobs_TV = model(torch.tensor([text])).logits[0].log_softmax(-1)
        expected = [float(logprobs_TV[i, token]) for i, token in enumerate(text[1:])]
        assert [token.logprob for token in scored] == pytest.approx(expected, abs=1e-4)
    engine.stop()


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """New tokens of every step."""
    seen: list[int] = []
    forward = BatchedModel.forward

    def noted(self: BatchedModel, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(input_ids.shape[1])
        return forward(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(BatchedModel, "forward", noted)
    return seen


def test_a_shallow_request_takes_the_pages_of_a_deep_one_and_not_the_other_way_round(
    tokenizer: PreTrainedTokenizerFast, rows: list[int]
) -> None:
    models, prompt = lineage("one model", tokenizer), PROMPTS[31]
    asked = [Generation(prompt, 4, Sampling(seed=1), depth) for depth in (1, 4, 2, 1, 4)]
    expected = answers_of_their_own(models, asked)
    engine = start(models)
    found, new = [], []
    for request in asked:
        rows.clear()
        found += asyncio.run(answer(engine, [request]))
        new.append(max(rows))
    engine.stop()
    assert found == expected
    known = len(prompt) - len(prompt) % 32
    assert new == [len(prompt), len(prompt), len(prompt) - known, len(prompt) - known, len(prompt) - known]


def test_pages_that_go_on_from_deep_ones_are_not_taken_for_deep(tokenizer: PreTrainedTokenizerFast) -> None:
    """A shallow text begins with a deep one's pages and adds its own, which have no keys above."""
    models, prompt = lineage("one model", tokenizer), PROMPTS[31]
    longer = (*prompt, *PROMPTS[30])
    asked = [Generation(prompt, 2, Sampling(seed=1), 4)]
    asked += [Generation(longer, 2, Sampling(seed=2), depth) for depth in (1, 4)]
    engine = start(models)
    found = [tokens for request in asked for tokens in asyncio.run(answer(engine, [request]))]
    engine.stop()
    assert found == answers_of_their_own(models, asked)


def test_who_leaves_early_costs_no_block_above(tokenizer: PreTrainedTokenizerFast) -> None:
    models = lineage("one model", tokenizer)
    engine = start(models)
    seen = dict.fromkeys(range(4), 0)
    for index, block in enumerate(engine.decoder.backbone.blocks):
        block.register_forward_hook(
            lambda _, inputs, __, index=index: seen.__setitem__(index, seen[index] + inputs[0].shape[-2])
        )
    asyncio.run(answer(engine, [Generation(PROMPTS[2], 1, depth=depth) for depth in (1, 2, 4)]))
    engine.stop()
    length = len(PROMPTS[2])
    assert list(seen.values()) == [3 * length, 2 * length, length, length]


def test_blocks_are_held_once_and_lora_makes_a_stack_of_its_own(tokenizer: PreTrainedTokenizerFast) -> None:
    models = lineage("one model", tokenizer)
    (stack,) = stacks_of(models)
    assert set(stack) == {1, 2, 4, None}
    engines = Engines(models, tokenizer, kv_cache_gib=0.05)
    decoder = engines._engines[None].decoder
    assert isinstance(decoder.backbone, SingleBackbone) and set(engines._engines.values()) == {engines._engines[1]}
    held = {tensor.data_ptr(): tensor.numel() for tensor in decoder.parameters()}
    whole = sum(tensor.numel() for tensor in models[4].parameters())
    heads = sum(
        tensor.numel() for depth in (1, 2) for part in ("norm", "head") for tensor in _part(models[depth], part)
    )
    assert sum(held.values()) == whole + heads
    assert asyncio.run(engines.card()).depths == DEPTHS
    engines.stop()
    adapted = stages(tokenizer)[4]
    adapted.model.layers[0] = make_model(tokenizer, seed=9).model.layers[0]
    stacks = stacks_of({**models, 8: adapted})
    assert sorted(len(stack) for stack in stacks) == [1, 4]


def _part(model: Any, part: str) -> list[torch.Tensor]:
    return list((model.model.norm if part == "norm" else model.lm_head).parameters())


def test_a_rule_that_remembers_keeps_an_engine_for_every_depth(tokenizer: PreTrainedTokenizerFast) -> None:
    models = ensembles(tokenizer, "posterior", num_trunk_blocks=1)
    stacks = stacks_of({**models, None: models[4]})
    assert sorted(tuple(stack) for stack in stacks if None not in stack) == [(1,), (2,)]
    engine = start(next(stack for stack in stacks if None in stack))
    assert isinstance(engine.decoder.backbone, FlatBackbone)
    engine.stop()
    assert len(stacks_of(ensembles(tokenizer, "mean", num_trunk_blocks=1))) == 1
    fused = start(ensembles(tokenizer, "mean", num_trunk_blocks=1))
    assert isinstance(fused.decoder.backbone, FusedBackbone)
    fused.stop()


@pytest.mark.parametrize("name", ["req_0", "someone@somewhere", "@", "a@-1"])
def test_names_that_others_gave_to_requests_say_no_depth(name: str) -> None:
    assert StepRequest(name, 3, gets_token=True).num_blocks == 0
    assert StepRequest(request_name(name, 4), 3, gets_token=True).num_blocks == 4
