"""What lm-eval does not offer: other ways to encode a question than its own, and tasks that it did not load itself."""

from __future__ import annotations

from typing import Any

from lm_eval.models.huggingface import HFLM

SEEN = "0.4.13"
TOUCHED = (
    ("lm_eval.models.huggingface:HFLM._encode_pair", "encode a question and its answer so that no token spans both"),
    ("lm_eval.tasks:TaskManager.load", "load tasks in the form that its evaluator takes"),
    ("lm_eval.tasks.manager:TaskDict", "give its evaluator tasks that were not loaded from a file"),
)


class SeamHFLM(HFLM):
    """lm-eval's Hugging Face model, with the seam of context and continuation repaired.

    lm-eval encodes the two together and cuts the ids where the context alone would end. That is wrong where a token
    spans the seam, which tokenizers without a pre-tokenizer allow: there, and only there, the two are encoded apart.
    """

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        context_ids, continuation_ids = super()._encode_pair(context, continuation)
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        if context_ids + continuation_ids != self.tok_encode(stripped + continuation):
            continuation_ids = self.tok_encode(continuation, add_special_tokens=False)
        return context_ids, continuation_ids


def as_loaded(tasks: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Tasks by name in the form that `TaskManager.load` returns and `evaluate` takes: no groups among them."""
    return {"tasks": tasks, "groups": {}, "group_map": {}}
