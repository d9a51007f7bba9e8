from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXForCausalLM, PhiForCausalLM

from growtx.exceptions import ConfigError, ExportError
from growtx.models import GrowtxForCausalLM, from_members
from growtx.models.export import export

Make = Callable[..., GrowtxForCausalLM]
STOCK_CLASSES = {"gpt_neox": GPTNeoXForCausalLM, "phi": PhiForCausalLM}


@pytest.mark.parametrize(
    ("format", "changes"),
    [
        ("gpt_neox", {"lm_head_bias": False}),
        ("gpt_neox", {"lm_head_bias": False, "substrate_width": 8, "substrate_expansion": "tile"}),
        ("gpt_neox", {}),
        ("gpt_neox", {"substrate_width": 8, "substrate_expansion": "interleave", "rope_theta": 500.0}),
        ("phi", {}),
        ("phi", {"substrate_width": 8, "substrate_expansion": "interleave", "rope_theta": 500.0}),
    ],
)
def test_stock_classes_load_the_export_with_the_same_logits(
    make_model: Make,
    tokens_BT: torch.Tensor,
    tmp_path: Path,
    format: str,
    changes: dict[str, object],
) -> None:
    model = make_model(**changes)
    assert export(model, format, tmp_path / "out") <= 1e-4
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(stock) is STOCK_CLASSES[format]
    assert (stock(tokens_BT).logits - model(tokens_BT).logits).abs().max() < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_half_precision_models_are_exported_in_their_precision(make_model: Make, tmp_path: Path) -> None:
    export(make_model().bfloat16(), "phi", tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("format", "sentence"),
    [
        ("llama", "no setting makes it exact"),
        ("gguf", "Use phi or gpt_neox"),
    ],
)
def test_what_cannot_be_exact_is_refused(make_model: Make, tmp_path: Path, format: str, sentence: str) -> None:
    with pytest.raises(ExportError, match=sentence):
        export(make_model(), format, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["phi", "gpt_neox"])
def test_a_model_that_adds_its_substrate_again_is_refused(make_model: Make, tmp_path: Path, format: str) -> None:
    with pytest.raises(ExportError, match="no stock architecture adds the substrate again"):
        export(make_model(substrate_reinjection=True), format, tmp_path / "out")
    with pytest.raises(ConfigError, match="ensembles do not know"):
        from_members({"a": make_model(substrate_reinjection=True)})


def test_an_ensemble_is_refused(make_model: Make, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="members one by one"):
        export(from_members({"a": make_model()}), "phi", tmp_path / "out")


def test_a_taken_directory_is_refused(make_model: Make, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="is not empty"):
        export(make_model(), "phi", tmp_path)


def test_an_export_that_is_not_exact_leaves_nothing(
    make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("growtx.models.export.MAX_LOGIT_DIFFERENCE", -1.0)
    with pytest.raises(ExportError, match="logits differ"):
        export(make_model(), "phi", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["gpt_neox", "phi"])
def test_settings_that_older_readers_look_for_are_there(make_model: Make, tmp_path: Path, format: str) -> None:
    export(make_model(rope_theta=500.0), format, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["partial_rotary_factor"] == 1.0 and config["rope_theta"] == 500.0
    assert config["torch_dtype"] == "float32"
    if format == "gpt_neox":
        assert config["rotary_pct"] == 1.0 and config["rotary_emb_base"] == 500.0


def test_the_bias_of_the_head_decides_tokens_and_is_kept(
    make_model: Make, tokens_BT: torch.Tensor, tmp_path: Path
) -> None:
    model = make_model()
    with torch.no_grad():
        model.lm_head.bias.normal_(std=5.0)
    assert export(model, "gpt_neox", tmp_path / "out") <= 1e-4
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(stock(tokens_BT).logits.argmax(-1), model(tokens_BT).logits.argmax(-1))


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_have_the_permissions_that_the_umask_leaves(make_model: Make, tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        export(make_model(), "phi", tmp_path / "out")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o666 & ~mask}
