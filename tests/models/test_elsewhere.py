"""Models in the hands of other libraries: the substrate stays as it is, whatever they set."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, Trainer, TrainingArguments

from growtx.models import GrowtxForCausalLM, from_members

Make = Callable[..., GrowtxForCausalLM]


@pytest.fixture
def saved(make_model: Make, tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def load(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path)


def substrate(model: Any) -> torch.Tensor:
    return model.get_input_embeddings().weight.detach().clone()


def step(model: Any, tokens_BT: torch.Tensor) -> None:
    """One step of an optimizer that decays whatever it is given."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    model(input_ids=tokens_BT, labels=tokens_BT).loss.backward()
    optimizer.step()


def test_a_loaded_substrate_is_frozen(saved: Path, make_model: Make) -> None:
    assert not load(saved).get_input_embeddings().weight.requires_grad
    assert not GrowtxForCausalLM.from_pretrained(saved).get_input_embeddings().weight.requires_grad
    ensemble = from_members({"a": make_model(), "b": make_model()})
    assert not ensemble.get_input_embeddings().weight.requires_grad
    model, _ = GrowtxForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert not model.get_input_embeddings().weight.requires_grad


def test_a_learned_embedding_trains(make_model: Make, tmp_path: Path, tokens_BT: torch.Tensor) -> None:
    make_model(substrate_kind="learned").save_pretrained(tmp_path)
    model = load(tmp_path).train()
    before = substrate(model)
    step(model, tokens_BT)
    assert not torch.equal(substrate(model), before)


@pytest.mark.parametrize("way", ["plain", "requires_grad_", "each parameter", "train"])
def test_no_loop_moves_the_substrate(saved: Path, tokens_BT: torch.Tensor, way: str) -> None:
    model = load(saved).train()
    if way == "requires_grad_":
        model.requires_grad_(True)
    elif way == "each parameter":  # as peft, accelerate and others do; the optimizer then gets it, but no gradient
        for parameter in model.parameters():
            parameter.requires_grad = True
    before, head = substrate(model), model.lm_head.weight.detach().clone()
    step(model, tokens_BT)
    assert torch.equal(substrate(model), before)
    assert not torch.equal(model.lm_head.weight, head)


class Windows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(self, tokens_BT: torch.Tensor) -> None:
        self.tokens_BT = tokens_BT

    def __len__(self) -> int:
        return len(self.tokens_BT)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens_BT[index], "labels": self.tokens_BT[index]}


def test_the_trainer_fine_tunes_and_gives_logits_to_metrics(
    saved: Path, tokens_BT: torch.Tensor, tmp_path: Path
) -> None:
    model, seen = load(saved), []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append(prediction.predictions.shape)
        return {"accuracy": 1.0}

    arguments = TrainingArguments(
        str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=1, report_to="none", use_cpu=True,
        weight_decay=0.5, learning_rate=0.1, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    data = Windows(tokens_BT)
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data, compute_metrics=metrics)
    before, block = substrate(model), model.model.layers[0].mlp.up_proj.weight.detach().clone()
    trainer.train()
    assert torch.equal(substrate(model), before)
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, block)
    trainer.evaluate()
    assert seen == [(*tokens_BT.shape, model.config.vocab_size)]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_peft_finds_its_targets_and_leaves_the_substrate(
    saved: Path, tokens_BT: torch.Tensor, checkpointing: bool
) -> None:
    from peft import LoraConfig, get_peft_model

    base = load(saved)
    if checkpointing:
        base.gradient_checkpointing_enable()
        base.enable_input_require_grads()
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", bias="all")).train()
    adapted = {name.split(".")[-4] for name, _ in model.named_parameters() if "lora_A" in name}
    assert adapted == {"q_proj", "v_proj"}
    before = substrate(model)
    step(model, tokens_BT)
    assert torch.equal(substrate(model), before)
    merged = model.merge_and_unload()
    merged.requires_grad_(True)
    step(merged, tokens_BT)
    assert torch.equal(substrate(merged), before)


@pytest.mark.parametrize("order", ["import growtx.models, peft", "import peft, growtx.models"])
def test_peft_knows_us_whichever_is_imported_first(order: str) -> None:
    table = "peft.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING"
    program = f"{order}\nprint(*{table}['growtx'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["q_proj", "v_proj"]


def test_the_blocks_alone_open_as_an_auto_model(saved: Path, tokens_BT: torch.Tensor) -> None:
    whole, blocks = load(saved), AutoModel.from_pretrained(saved)
    assert torch.equal(blocks(tokens_BT).last_hidden_state, whole.model(tokens_BT).last_hidden_state)


def test_old_files_begin_with_the_token_that_stood_between_documents(make_model: Make, tmp_path: Path) -> None:
    model = make_model(eos_token_id=2, pad_token_id=0)
    assert (model.config.start_token_id, model.config.bos_token_id) == (2, 2)
    model.config.start_token_id = None  # as saved before it was recorded
    model.config.bos_token_id = model.generation_config.bos_token_id = 1
    model.save_pretrained(tmp_path)
    opened = load(tmp_path)
    assert (opened.config.bos_token_id, opened.generation_config.bos_token_id) == (2, 2)
