"""What every growtx model must satisfy in generation, checked against a loop without cache or batch."""

from __future__ import annotations

from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

NUM_NEW = 8
LENGTHS = (12, 7, 3)


@torch.no_grad()
def greedy_without_cache(model: PreTrainedModel, prompt: torch.Tensor, num_new: int = NUM_NEW) -> list[int]:
    ids_BT = prompt[None]
    for _ in range(num_new):
        next_B1 = model(input_ids=ids_BT, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        ids_BT = torch.cat([ids_BT, next_B1], dim=1)
    return ids_BT[0, len(prompt) :].tolist()


def generate(model: PreTrainedModel, ids_BT: torch.Tensor, mask_BT: torch.Tensor | None = None, **options: Any) -> Any:
    mask_BT = torch.ones_like(ids_BT) if mask_BT is None else mask_BT
    options = {"do_sample": False, "max_new_tokens": NUM_NEW, "pad_token_id": 0, **options}
    return model.generate(ids_BT, attention_mask=mask_BT, **options)[:, ids_BT.shape[1] :].tolist()


def check_greedy_agrees_everywhere(model: PreTrainedModel, tokens_BT: torch.Tensor) -> None:
    """Cache, static cache, left padding and prompt lookup choose what a plain loop chooses."""
    expected = [greedy_without_cache(model, row) for row in tokens_BT]
    assert generate(model, tokens_BT) == expected
    assert generate(model, tokens_BT, cache_implementation="static", disable_compile=True) == expected
    repeated_BT = tokens_BT[:1, :4].repeat(1, 4)
    assert generate(model, repeated_BT, prompt_lookup_num_tokens=3) == [greedy_without_cache(model, repeated_BT[0])]
    check_left_padding(model, tokens_BT)


def check_left_padding(model: PreTrainedModel, tokens_BT: torch.Tensor) -> None:
    padded_BT, mask_BT = torch.zeros_like(tokens_BT), torch.zeros_like(tokens_BT)
    for row, length in enumerate(LENGTHS):
        padded_BT[row, -length:], mask_BT[row, -length:] = tokens_BT[row, :length], 1
    expected = [greedy_without_cache(model, tokens_BT[row, :length]) for row, length in enumerate(LENGTHS)]
    assert generate(model, padded_BT, mask_BT) == expected
    assert generate(model, padded_BT, mask_BT, cache_implementation="static", disable_compile=True) == expected


def check_sampling_and_beams_do_not_depend_on_the_cache(model: PreTrainedModel, tokens_BT: torch.Tensor) -> None:
    def sampled(use_cache: bool) -> Any:
        torch.manual_seed(0)
        return generate(model, tokens_BT, do_sample=True, top_p=0.9, use_cache=use_cache)

    assert sampled(use_cache=True) == sampled(use_cache=False)
    with_cache, without = (generate(model, tokens_BT, num_beams=4, use_cache=cached) for cached in (True, False))
    assert with_cache == without


def check_continuous_batching(model: PreTrainedModel, tokens_BT: torch.Tensor) -> None:
    prompts = [row[:length] for row, length in zip(tokens_BT, LENGTHS, strict=True)]
    results = model.generate_batch(
        [prompt.tolist() for prompt in prompts],
        generation_config=GenerationConfig(max_new_tokens=NUM_NEW, do_sample=False, eos_token_id=-1),
        continuous_batching_config=ContinuousBatchingConfig(page_size=32, num_blocks=16, max_batch_tokens=64),
    )
    generated = [output.generated_tokens for output in results.values()]
    assert generated == [greedy_without_cache(model, prompt) for prompt in prompts]
