"""Run by another environment's python: what its transformers makes of a directory.

read.py DIRECTORY INPUT OUTPUT: INPUT has token ids, an attention mask and texts; OUTPUT gets logits, greedy tokens
and the ids of the texts.
"""

import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

directory, given, written = sys.argv[1:]
asked = torch.load(given)
model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
with torch.no_grad():
    logits = model(asked["ids"], attention_mask=asked["mask"]).logits
    greedy = model.generate(
        asked["ids"][:1], attention_mask=asked["mask"][:1], max_new_tokens=8, do_sample=False, pad_token_id=0
    )
answer = {
    "version": transformers.__version__,
    "kind": type(model).__name__,
    "logits": logits,
    "greedy": greedy,
    "token_ids": [tokenizer(text)["input_ids"] for text in asked["texts"]],
    "texts": [tokenizer.decode(tokenizer(text)["input_ids"]) for text in asked["texts"]],
    "bos": tokenizer.bos_token,
    "limit": tokenizer.model_max_length,
}
torch.save(answer, written)
