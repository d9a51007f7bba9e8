"""The code that is written beside the weights: the same model, where growtx is not installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from growtx.models import GrowtxForCausalLM
from growtx.models.causal_lm import STANDALONE_CODE

Make = Callable[..., GrowtxForCausalLM]
WITHOUT_GROWTX = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in f"{finder!r}".lower()]
try:
    import growtx
except ImportError:
    pass
else:
    raise SystemExit("growtx can be imported here, so this shows nothing")
import torch
from transformers import AutoModelForCausalLM
directory = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True).eval()
print(type(model).__module__.partition(".")[0], model.model.embed_tokens.weight.requires_grad)
torch.save(model(torch.load(f"{directory}/ids.pt")).logits, f"{directory}/logits.pt")
"""


@pytest.fixture(scope="module")
def standalone() -> Any:
    spec = importlib.util.spec_from_file_location("modeling_growtx", STANDALONE_CODE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reopened(standalone: Any, model: GrowtxForCausalLM, directory: Path) -> Any:
    model.save_pretrained(directory)
    return standalone.GrowtxForCausalLM.from_pretrained(directory, attn_implementation="sdpa").eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lm_head_bias": False, "rope_theta": 500.0},
        {"substrate_width": 8, "substrate_expansion": "tile"},
        {"substrate_width": 8, "substrate_expansion": "interleave"},
        {"substrate_reinjection": True},
    ],
)
def test_it_computes_what_growtx_computes(
    standalone: Any, make_model: Make, tokens_BT: torch.Tensor, tmp_path: Path, changes: dict[str, Any]
) -> None:
    model = make_model(**changes)
    other = reopened(standalone, model, tmp_path)
    assert other.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(other(tokens_BT).logits, model(tokens_BT).logits, atol=1e-5, rtol=1e-5)
    mask_BT = torch.ones_like(tokens_BT)
    mask_BT[:, :4] = 0
    ours, theirs = (each(tokens_BT, attention_mask=mask_BT).logits[:, 4:] for each in (model, other))
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    ours, theirs = (each(input_ids=tokens_BT, labels=tokens_BT).loss for each in (model, other))
    torch.testing.assert_close(theirs, ours)


def test_it_generates_with_its_cache(
    standalone: Any, make_model: Make, tokens_BT: torch.Tensor, tmp_path: Path
) -> None:
    model = make_model()
    other = reopened(standalone, model, tmp_path)
    greedy = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    for options in ({}, {"attention_mask": torch.ones_like(tokens_BT).index_fill(1, torch.arange(3), 0)}):
        ours, theirs = (each.generate(tokens_BT, **greedy, **options) for each in (model, other))
        assert torch.equal(ours, theirs)


def test_its_substrate_does_not_train(
    standalone: Any, make_model: Make, tokens_BT: torch.Tensor, tmp_path: Path
) -> None:
    other = reopened(standalone, make_model(), tmp_path).requires_grad_(True).train()
    other(input_ids=tokens_BT, labels=tokens_BT).loss.backward()
    assert other.model.embed_tokens.weight.grad is None and other.lm_head.weight.grad is not None


def test_a_saved_model_opens_in_a_process_without_growtx(
    make_model: Make, tokens_BT: torch.Tensor, tmp_path: Path
) -> None:
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    torch.save(tokens_BT, tmp_path / "model" / "ids.pt")
    command = [sys.executable, "-I", "-c", WITHOUT_GROWTX, str(tmp_path / "model")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.split() == ["transformers_modules", "False"]
    found = torch.load(tmp_path / "model" / "logits.pt")
    torch.testing.assert_close(found, model(tokens_BT).logits, atol=1e-5, rtol=1e-5)


def test_the_saved_configuration_names_the_code(make_model: Make, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    named = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert named["AutoModelForCausalLM"] == "modeling_growtx.GrowtxForCausalLM"
    assert (tmp_path / "modeling_growtx.py").read_bytes() == STANDALONE_CODE.read_bytes()
