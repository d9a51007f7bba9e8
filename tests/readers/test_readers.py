"""Saved models and exports are read by libraries that did not write them, to the same logits, tokens and text."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from growtx.models import GrowtxConfig, GrowtxForCausalLM
from growtx.models.export import export
from growtx.models.saving import save_directory

PROJECT = Path(__file__).parents[2]
READER = PROJECT / ".readers" / "transformers4" / "bin" / "python"
TEXTS = ["  two  spaces ", "é ﬁ é", "a block of text", "</s> is text", "лиса 狐狸 🦊"]

pytestmark = pytest.mark.skipif(
    not READER.exists(), reason="`make readers` sets up the environment of transformers 4.57"
)


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> GrowtxForCausalLM:
    torch.manual_seed(0)
    config = GrowtxConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.2,
        max_position_embeddings=64, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    made = GrowtxForCausalLM(config).eval()
    with torch.no_grad():
        made.lm_head.bias.normal_()
    return made


@pytest.mark.parametrize("format", ["growtx", "gpt_neox", "phi"])
def test_transformers_4_reads_what_transformers_5_wrote(
    model: GrowtxForCausalLM, tokenizer: Any, tmp_path: Path, format: str
) -> None:
    directory = tmp_path / format
    tokenizer.model_max_length = 64
    if format == "growtx":
        save_directory(model, tokenizer, directory)
    else:
        export(model, format, directory, tokenizer)
    asked = ask(tmp_path, model, directory)
    answer = torch.load(tmp_path / "answer.pt", weights_only=False)
    assert answer["version"].startswith("4.")
    seen_BT = asked["mask"].bool()
    ours = model(asked["ids"], attention_mask=asked["mask"]).logits[seen_BT]
    assert (answer["logits"][seen_BT] - ours).abs().max() < 1e-4
    options = {"attention_mask": asked["mask"][:1], "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(answer["greedy"], model.generate(asked["ids"][:1], **options))
    assert answer["token_ids"] == [tokenizer(text)["input_ids"] for text in TEXTS]
    assert answer["texts"] == TEXTS
    assert (answer["bos"], answer["limit"]) == (tokenizer.eos_token, 64)


def ask(tmp_path: Path, model: GrowtxForCausalLM, directory: Path) -> dict[str, Any]:
    """Let the reader answer into `answer.pt`; returns what it was asked."""
    ids_BT = torch.randint(5, model.config.vocab_size, (3, 12), generator=torch.Generator().manual_seed(1))
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, :5] = 0
    asked = {"ids": ids_BT, "mask": mask_BT, "texts": TEXTS}
    torch.save(asked, tmp_path / "asked.pt")
    script = Path(__file__).parent / "read.py"
    command = [str(READER), str(script), str(directory), str(tmp_path / "asked.pt"), str(tmp_path / "answer.pt")]
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    environment = {**variables, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return asked
