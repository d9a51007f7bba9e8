from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from growtx.models.varlen_attention import MIN_ROWS
from growtx.sampling import Sampling, continue_text
from growtx.serving.backbones import FlatBackbone, FusedBackbone
from growtx.serving.engine import Engine
from growtx.serving.requests import Generation, OverloadedError, Token
from tests.serving.conftest import collect, complete, make_ensemble, make_model

StartEngine = Callable[..., Engine]
PROMPTS = [tuple(random.Random(i).randrange(4, 300) for _ in range(3 + 5 * i)) for i in range(32)]


@pytest.mark.parametrize("kind", ["one model", "ensemble"])
def test_greedy_tokens_are_those_of_generate(tokenizer: Any, start_engine: StartEngine, kind: str) -> None:
    model = make_model(tokenizer) if kind == "one model" else make_ensemble(tokenizer)
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    expected = model.generate(torch.tensor([PROMPTS[3]]), max_new_tokens=24, do_sample=False)[0, len(PROMPTS[3]) :]
    engine = start_engine(model)
    assert asyncio.run(complete(engine, PROMPTS[3], temperature=0.0)) == expected.tolist()


@pytest.mark.parametrize("rule", ["mean", "mixture", "posterior"])
def test_tokens_are_the_same_alone_in_a_batch_and_in_another_engine(
    tokenizer: Any, engine: Engine, start_engine: StartEngine, rule: str
) -> None:
    async def everything(engine: Engine, size: int) -> list[list[int]]:
        prompts = enumerate(PROMPTS[:size])
        return await asyncio.gather(
            *(complete(engine, prompt, 12, seed=index, top_p=0.9, rule=rule) for index, prompt in prompts)
        )

    async def one_by_one(engine: Engine, indices: list[int]) -> list[list[int]]:
        return [await complete(engine, PROMPTS[index], 12, seed=index, top_p=0.9, rule=rule) for index in indices]

    together = asyncio.run(everything(engine, 32))
    assert asyncio.run(one_by_one(engine, [0, 9, 30])) == [together[0], together[9], together[30]]
    other = start_engine(make_ensemble(tokenizer, "posterior"))
    assert asyncio.run(everything(other, 16)) == together[:16]
    assert len({tuple(tokens) for tokens in together}) > 24


PENALISED = {
    "repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.3, "top_k": 60, "min_p": 0.01,
    "logit_bias": ((7, 3.0), (11, -4.0)), "min_tokens": 5,
}  # fmt: skip


def test_penalties_and_biases_give_the_same_tokens_alone_in_company_and_after_a_failover(
    tokenizer: Any, engine: Engine, start_engine: StartEngine
) -> None:
    def requests() -> list[Generation]:
        return [
            Generation(prompt, 14, Sampling(seed=index, rule="mean", **PENALISED), num_hidden=index % 2)
            for index, prompt in enumerate(PROMPTS[:12])
        ]

    async def texts(engine: Engine, asked: list[Generation]) -> list[list[int]]:
        found = await asyncio.gather(*(collect(engine.generate(request)) for request in asked))
        return [[token.id for token in tokens] for tokens in found]

    together = asyncio.run(texts(engine, requests()))
    plain = [Generation(r.token_ids, 14, Sampling(seed=r.sampling.seed, rule="mean")) for r in requests()]
    assert together != asyncio.run(texts(engine, plain)), "or nothing is penalised"
    for index in (0, 5, 11):
        assert asyncio.run(texts(engine, [requests()[index]])) == [together[index]]
    other = start_engine(make_ensemble(tokenizer, "posterior"))
    for cut in (1, 4, 9):
        rest = asyncio.run(texts(other, [r.after(text[:cut]) for r, text in zip(requests(), together, strict=True)]))
        assert rest == [text[cut:] for text in together]


def test_penalties_are_those_of_transformers(tokenizer: Any, start_engine: StartEngine) -> None:
    """Greedy, against the logits processors of transformers' own `generate`."""
    model = make_model(tokenizer)
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    prompt = PROMPTS[4]
    options = {"repetition_penalty": 1.7, "sequence_bias": [[[7], 2.5], [[11], -3.0]]}
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False, **options)[0, len(prompt) :]
    sampling = Sampling(temperature=0.0, repetition_penalty=1.7, logit_bias=((7, 2.5), (11, -3.0)))
    tokens = asyncio.run(collect(start_engine(model).generate(Generation(prompt, 16, sampling))))
    # transformers applies the bias first, too
    assert [token.id for token in tokens] == expected.tolist()


@pytest.mark.parametrize("num_trunk_blocks", [0, 1])
def test_members_at_once_give_the_tokens_of_one_after_the_other(
    tokenizer: Any, start_engine: StartEngine, num_trunk_blocks: int
) -> None:
    async def everything(engine: Engine) -> list[list[int]]:
        prompts = enumerate(PROMPTS[:8])
        return await asyncio.gather(
            *(complete(engine, prompt, 12, seed=index, rule="mixture") for index, prompt in prompts)
        )

    fused, flat = (
        start_engine(make_ensemble(tokenizer, rule, num_trunk_blocks=num_trunk_blocks))
        for rule in ("mean", "posterior")
    )
    assert isinstance(fused.decoder.backbone, FusedBackbone)
    assert isinstance(flat.decoder.backbone, FlatBackbone)
    assert fused.decoder.config.num_trunk_layers == num_trunk_blocks
    together = asyncio.run(everything(fused))
    assert together == asyncio.run(everything(flat))
    assert asyncio.run(complete(fused, PROMPTS[5], 12, seed=5, rule="mixture")) == together[5]


@pytest.mark.parametrize("rule", ["trunk-state", "gate"])
def test_rules_that_read_the_trunk_are_fused_and_change_nothing(
    tokenizer: Any, start_engine: StartEngine, rule: str
) -> None:
    """In batches, in pieces of a prompt, after a failover: the tokens of one text with members that run late."""
    model = make_ensemble(tokenizer, rule, num_trunk_blocks=1)
    router = model.rule.router if rule == "gate" else model.rule
    with torch.no_grad():
        router.evidence.weight.normal_(std=0.2, generator=torch.Generator().manual_seed(3))
        if rule == "gate":
            model.rule.threshold.fill_(0.2)
    samplings = [Sampling(seed=index, num_logprobs=0) for index in range(8)]
    alone = [
        continue_text(model, prompt, 12, sampling, eos_ids=[])
        for prompt, sampling in zip(PROMPTS, samplings, strict=False)
    ]
    engine = start_engine(model, max_batch_tokens=32)
    assert isinstance(engine.decoder.backbone, FusedBackbone)

    async def served(cut: int) -> list[list[Token]]:
        settings = [replace(sampling, ignore_eos=True) for sampling in samplings]
        requests = [Generation(prompt, 12, one) for prompt, one in zip(PROMPTS, settings, strict=False)]
        rest = [request.after(text[:cut]) if cut else request for request, text in zip(requests, alone, strict=True)]
        return await asyncio.gather(*(collect(engine.generate(request)) for request in rest))

    for cut in (0, 5):
        found = asyncio.run(served(cut))
        assert [[token.id for token in tokens] for tokens in found] == [text[cut:] for text in alone]
    ids = torch.tensor([[*PROMPTS[3], *alone[3]]])
    expected = model(ids).logits[0].log_softmax(-1)
    scored = engine.decoder.score(ids[0].tolist(), samplings[0])
    for position, token in enumerate(scored):
        assert token.logprob == pytest.approx(expected[position, token.id].item(), abs=1e-4)
    if rule == "gate":
        assert {max(token.weights) == 1.0 for token in scored} == {True, False}


def test_a_budget_of_memory_holds_more_positions_of_members_that_share_a_trunk(
    tokenizer: Any, start_engine: StartEngine
) -> None:
    """Two members of four blocks: eight blocks' keys and values, or five of them where three are the trunk."""
    pools = []
    for num_trunk_blocks in (0, 3):
        model = make_ensemble(tokenizer, num_hidden_layers=4, num_trunk_blocks=num_trunk_blocks)
        engine = start_engine(model, kv_cache_gib=0.01, max_batch_size=64)
        pools.append(engine._manager.batch_processor.cache)
    sizes = [pool.num_sectors * pool.bytes_per_sector for pool in pools]
    pages = [pool.cache_allocators["full_attention"].num_blocks for pool in pools]
    assert pages[1] / pages[0] == pytest.approx(8 / 5, rel=0.02)
    assert all(size <= 0.01 * 2**30 * 1.02 for size in sizes)


def test_going_on_after_some_tokens_gives_the_rest(engine: Engine) -> None:
    async def scenario() -> None:
        request = Generation(PROMPTS[2], 40, Sampling(seed=7, rule="mean"))
        whole = [token.id for token in await collect(engine.generate(request))]
        for cut in (1, 17, len(whole) - 1):
            rest = await collect(engine.generate(request.after(whole[:cut])))
            assert [token.id for token in rest] == whole[cut:]

    asyncio.run(scenario())


def test_long_prompts_are_read_in_pieces_with_the_same_result(tokenizer: Any, start_engine: StartEngine) -> None:
    prompt = PROMPTS[31]
    whole, pieces = (start_engine(make_model(tokenizer), max_batch_tokens=size) for size in (512, 33))
    assert asyncio.run(complete(whole, prompt, seed=1)) == asyncio.run(complete(pieces, prompt, seed=1))


def test_a_started_engine_draws_nothing_from_the_global_generator(tokenizer: Any, start_engine: StartEngine) -> None:
    engine = start_engine(make_model(tokenizer))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    asyncio.run(complete(engine, PROMPTS[0], 4))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_consumer_that_leaves_frees_its_place(tokenizer: Any, start_engine: StartEngine) -> None:
    async def scenario() -> None:
        engine = start_engine(make_model(tokenizer), max_batch_size=1, max_queue=0)
        stream = engine.generate(Generation(PROMPTS[0], 200, Sampling(seed=3)))
        await anext(stream)
        with pytest.raises(OverloadedError):
            await anext(engine.generate(Generation(PROMPTS[1], 4)))
        await stream.aclose()
        assert engine.num_running == 0
        assert len(await complete(engine, PROMPTS[1], 4, seed=2)) == 4

    asyncio.run(scenario())


def test_what_nobody_reads_any_more_is_not_computed_to_its_end(tokenizer: Any, start_engine: StartEngine) -> None:
    engine, num_steps = start_engine(make_model(tokenizer)), 0
    deliver = engine.decoder.deliver

    def counting(tokens: list[Token]) -> None:
        nonlocal num_steps
        num_steps += 1
        deliver(tokens)

    engine.decoder.deliver = counting

    async def scenario() -> None:
        stream = engine.generate(Generation(PROMPTS[0], 240, Sampling(seed=3, ignore_eos=True)))
        await anext(stream)
        await stream.aclose()
        await complete(engine, PROMPTS[1], 4, seed=2)
        await complete(engine, PROMPTS[1], 4, seed=2)
        before = num_steps
        await asyncio.sleep(0.5)
        assert num_steps == before < 100

    asyncio.run(scenario())


def test_a_scoring_takes_a_place_like_any_other_request(
    tokenizer: Any, start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start_engine(make_model(tokenizer), max_batch_size=1, max_queue=0)
    begun, may_end = threading.Event(), threading.Event()

    def score(*_: Any) -> list[Token]:
        begun.set()
        assert may_end.wait(10)
        return []

    async def scenario() -> None:
        stream = engine.generate(Generation(PROMPTS[0], 200, Sampling(seed=3, ignore_eos=True)))
        await anext(stream)
        with pytest.raises(OverloadedError):
            await engine.score(PROMPTS[1], Sampling())
        await stream.aclose()
        assert len(await engine.score(PROMPTS[1], Sampling(num_logprobs=0))) == len(PROMPTS[1]) - 1
        monkeypatch.setattr(engine.decoder, "score", score)
        scoring = asyncio.ensure_future(engine.score(PROMPTS[1], Sampling()))
        await asyncio.to_thread(begun.wait, 10)
        assert engine.num_running == 1
        with pytest.raises(OverloadedError):
            await engine.score(PROMPTS[1], Sampling())
        with pytest.raises(OverloadedError):
            await anext(engine.generate(Generation(PROMPTS[1], 4)))
        may_end.set()
        await scoring
        assert engine.num_running == 0

    asyncio.run(scenario())


def test_no_product_of_matrices_has_so_few_rows_that_it_rounds_in_another_way(
    tokenizer: Any, start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    linear, num_rows = torch.nn.functional.linear, set[int]()

    def counting(states: torch.Tensor, *arguments: Any) -> torch.Tensor:
        num_rows.add(states.shape[-2])
        return linear(states, *arguments)

    monkeypatch.setattr(torch.nn.functional, "linear", counting)
    engine = start_engine(make_model(tokenizer))
    assert len(asyncio.run(complete(engine, PROMPTS[0][:2], 6, seed=1, ignore_eos=True))) == 6
    assert min(num_rows) == MIN_ROWS


def test_the_last_token_says_why_it_is_the_last(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        tokens = await collect(engine.generate(Generation(PROMPTS[0], 5, Sampling(temperature=0.0))))
        assert [token.finish_reason for token in tokens] == [None] * 4 + ["length"]
        monkeypatch.setattr(engine, "eos_token_ids", [tokens[1].id])
        tokens = await collect(engine.generate(Generation(PROMPTS[0], 5, Sampling(temperature=0.0))))
        assert [token.finish_reason for token in tokens] == [None, "stop"]

    asyncio.run(scenario())


def test_weights_of_zero_leave_a_member_out(tokenizer: Any, engine: Engine, start_engine: StartEngine) -> None:
    async def scenario() -> None:
        expected = await complete(start_engine(make_model(tokenizer, seed=0)), PROMPTS[4], seed=1)
        assert await complete(engine, PROMPTS[4], seed=1, rule="mean", weights=(1.0, 0.0)) == expected
        assert await complete(engine, PROMPTS[4], seed=1, rule="mean") != expected

    asyncio.run(scenario())


def test_tokens_carry_logprobs_weights_and_attribution(engine: Engine) -> None:
    async def scenario() -> None:
        sampling = Sampling(temperature=0.0, num_logprobs=3, rule="mean", attribution=True)
        tokens = await collect(engine.generate(Generation(PROMPTS[4], 6, sampling)))
        for token in tokens:
            assert token.top[0] == (token.id, token.logprob)
            assert token.weights == (0.5, 0.5)
            assert token.attribution is not None
            assert sum(token.attribution) == pytest.approx(1)
        text = (*PROMPTS[4], *(token.id for token in tokens))
        scored = (await engine.score(text, sampling))[-6:]
        for token, again in zip(tokens, scored, strict=True):
            assert again.logprob == pytest.approx(token.logprob, abs=1e-4)

    asyncio.run(scenario())


def test_a_dead_generation_thread_is_noticed(tokenizer: Any, start_engine: StartEngine) -> None:
    from growtx.serving.requests import EngineError

    engine = start_engine(make_model(tokenizer))
    engine.check_health()
    engine.stop()
    with pytest.raises(EngineError):
        engine.check_health()
