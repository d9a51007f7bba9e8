"""lm-eval's own HF backend on our models, as objects and from a directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from growtx.models import GrowtxForCausalLM, from_members
from tests.models.conftest import small_model

lm_eval = pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[character] = len(vocabulary)
    plain = Tokenizer(models.BPE(vocabulary, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=plain, padding_side="left", **special)


def ensemble() -> PreTrainedModel:
    members = {str(seed): small_model(seed, vocab_size=300) for seed in range(2)}
    members["1"].model.embed_tokens.load_state_dict(members["0"].model.embed_tokens.state_dict())
    return from_members(members, rule="posterior")


def decoder() -> GrowtxForCausalLM:
    return small_model(vocab_size=300)


@pytest.mark.parametrize("make", [decoder, ensemble])
def test_log_likelihoods_are_those_of_the_model(
    make: Callable[[], PreTrainedModel], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = make()
    requests = [Instance("loglikelihood", {}, (f"hello {i}" * (i + 1), " world"), i) for i in range(3)]
    expected = []
    for request in requests:
        context, continuation = (tokenizer(text)["input_ids"] for text in request.args)
        with torch.no_grad():
            log_p_TV = model(torch.tensor([context + continuation])).logits[0].log_softmax(-1)
        expected.append(sum(log_p_TV[len(context) + i - 1, t].item() for i, t in enumerate(continuation)))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    shared = {"batch_size": 2, "max_length": 128, "device": "cpu"}
    for backend in (HFLM(pretrained=model, tokenizer=tokenizer, **shared), HFLM(pretrained=str(tmp_path), **shared)):
        scores = [score for score, _ in backend.loglikelihood(requests, disable_tqdm=True)]
        assert scores == pytest.approx(expected, abs=1e-3)
