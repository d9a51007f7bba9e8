from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from growtx.data.tokenizer import TokenizerConfig, build_tokenizer
from growtx.exceptions import ConfigError, GrowtxError, StoreError
from growtx.models.ensemble import GrowtxEnsembleForCausalLM
from growtx.serving import loading
from growtx.serving.engine import Engines, shares_of
from growtx.serving.loading import load_depths, member_names, share_equal_tensors
from growtx.serving.settings import ServeSettings, parse_settings
from tests.models.ensemble.taking_apart import members_of
from tests.serving.conftest import TEXT, make_ensemble, make_model

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def paths(tokenizer: Any, tmp_path: Path) -> list[str]:
    for name, member in members_of(make_ensemble(tokenizer)).items():
        member.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return [str(tmp_path / name) for name in ("north", "south")]


def test_a_list_of_paths_becomes_an_ensemble(paths: list[str]) -> None:
    models, _ = load_depths(ServeSettings(model=paths, rule="mixture"))
    (model,) = models.values()
    assert isinstance(model, GrowtxEnsembleForCausalLM)
    assert (model.config.member_names, model.rule.name) == (["north", "south"], "mixture")


def test_a_rule_for_one_model_is_refused(paths: list[str]) -> None:
    with pytest.raises(ConfigError, match="is one"):
        load_depths(ServeSettings(model=paths[0], rule="mixture"))


def test_models_of_different_tokenizers_are_refused(paths: list[str], tmp_path: Path) -> None:
    other = build_tokenizer(TokenizerConfig(vocab_size=350), [TEXT])
    make_model(other).save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(GrowtxError, match="different tokenizers"):
        load_depths(ServeSettings(model=[paths[0], str(tmp_path / "other")]))


def test_depths_that_do_not_exist_are_refused(paths: list[str]) -> None:
    with pytest.raises(ConfigError, match="do not exist"):
        load_depths(ServeSettings(model=paths[0], depths=[3]))


def test_a_missing_model_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such run"):
        load_depths(ServeSettings(model=str(tmp_path / "nothing")))


def test_equal_tensors_are_held_once(tokenizer: Any) -> None:
    first, second, third = make_model(tokenizer), make_model(tokenizer), make_model(tokenizer, seed=1)
    share_equal_tensors([first, second, third])
    assert first.lm_head.weight.data_ptr() == second.lm_head.weight.data_ptr()
    assert first.lm_head.weight.data_ptr() != third.lm_head.weight.data_ptr()


def test_depths_share_their_blocks_where_they_are_served(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moving a model makes tensors of its own: sharing before that would be undone."""
    monkeypatch.setattr(loading, "on_gpu", lambda model: model.to(torch.bfloat16))
    settings = ServeSettings(model=str(run_dir), depths=[1, 2], gpus_per_replica=1)
    models, _ = load_depths(settings)
    assert {model.dtype for model in models.values()} == {torch.bfloat16}
    deepest, last = (dict(models[depth].named_parameters()) for depth in (2, None))
    assert all(tensor.data_ptr() == last[name].data_ptr() for name, tensor in deepest.items())
    shallow = dict(models[1].named_parameters())
    assert shallow["model.embed_tokens.weight"].data_ptr() == last["model.embed_tokens.weight"].data_ptr()


def test_the_caches_of_all_depths_share_one_budget(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [make_model(tokenizer, num_hidden_layers=number) for number in (1, 3)]
    assert shares_of(models, 2.0) == [0.5, 1.5], "both hold as many positions"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * 2**30, 80 * 2**30))
    assert shares_of(models, None) == pytest.approx([2.25, 6.75])
    engines = Engines({1: models[0], None: models[1]}, tokenizer, kv_cache_gib=0.002, max_batch_size=64)
    pages = {engine._manager.continuous_batching_config.num_blocks for engine in engines._engines.values()}
    engines.stop()
    assert len(pages) == 1, pages


def test_tensors_of_one_shape_and_sum_keep_their_values() -> None:
    values = ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0])
    models: Any = [torch.nn.ParameterList([torch.nn.Parameter(torch.tensor(one))]) for one in values]
    share_equal_tensors(models)
    assert [model[0].tolist() for model in models] == [*values]
    assert models[0][0].data_ptr() == models[2][0].data_ptr() != models[1][0].data_ptr()


def test_members_of_one_name_are_told_apart() -> None:
    assert member_names(["a/run", "b/run/", "c/other"]) == ["run-0", "run-1", "other"]


def test_settings_are_read_from_the_strings_of_the_command_line() -> None:
    settings = parse_settings({"model": "[runs/a, runs/b]", "num_replicas": "2", "limits.max_choices": "3"})
    assert settings.models == ["runs/a", "runs/b"]
    assert settings.served_name == "a+b"
    assert (settings.num_replicas, settings.limits.max_choices) == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({}, "model"),
        ({"model": "x", "num_replicas": "0"}, "num_replicas"),
        ({"model": "x", "num_replicas": 3, "max_replicas": 2}, "max_replicas"),
        ({"model": "x", "replicas": 1}, "replicas"),
        ({"model": []}, "no path"),
    ],
)
def test_wrong_settings_are_named(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_settings(arguments)


def test_the_shipped_configuration_is_valid_and_keeps_to_this_machine() -> None:
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(yaml.safe_load((PROJECT / "serve" / "config.yaml").read_text()))
    assert ipaddress.ip_address(config.http_options.host).is_loopback
    (application,) = config.applications
    assert application.import_path == "serve.app:build"
    assert parse_settings(application.args).models


def test_a_file_without_keys_lets_no_one_in_by_mistake(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("\n")
    with pytest.raises(ConfigError, match="no key"):
        ServeSettings(model="x", api_keys_file=str(file)).api_keys()
