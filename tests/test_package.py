"""The public surface: few names, quick to import, presets that all load."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import growtx
from growtx.cli.jobs import load_config
from growtx.config import build_config, parse_yaml, preset_names, to_yaml
from growtx.exceptions import ConfigError
from growtx.growth.plan import resolve
from growtx.run.config import JobConfig, RunConfig, load_run_config
from growtx.specialists.config import SpecialistsConfig, load_specialists_config

HEAVY = ("torch", "transformers", "ray", "deepspeed", "datasets", "matplotlib", "sklearn", "peft")


def loaded_after(code: str) -> set[str]:
    program = f"{code}\nimport sys\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    return set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )


def test_the_public_names_are_these() -> None:
    assert growtx.__all__ == ["__version__", "load_model"]
    assert growtx.__version__ == version("growtx")


def test_load_model_is_the_function_that_loads_any_result() -> None:
    from growtx.growth.results import load_model

    assert growtx.load_model is load_model


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'load_modell'"):
        growtx.load_modell  # noqa: B018


def test_importing_growtx_its_commands_and_its_configuration_loads_nothing_heavy() -> None:
    assert loaded_after("import growtx, growtx.cli.main, growtx.cli.jobs, growtx.command, growtx.config") == set()


def test_type_hints_are_shipped() -> None:
    assert (Path(growtx.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("name", preset_names())
def test_a_shipped_preset_loads_resolves_and_prints_itself(name: str) -> None:
    config = load_config(name)
    assert config.description, "`growtx presets` shows it"
    assert config.name == name
    assert isinstance(config, JobConfig)
    if isinstance(config, RunConfig | SpecialistsConfig):
        assert config.parent is not None or resolve(config.plan)
    assert build_config(type(config), parse_yaml(to_yaml(config), name)) == config


def test_a_preset_of_one_kind_is_refused_by_jobs_of_another() -> None:
    with pytest.raises(ConfigError, match=r"Use `growtx specialists` with it"):
        load_run_config("specialists-demo", [])
    with pytest.raises(ConfigError, match="not a specialists preset"):
        load_specialists_config("demo", [])
    with pytest.raises(ConfigError, match=r"Use `growtx sweep` with it"):
        load_run_config("sweep-demo", [])


def test_the_default_preset_is_shipped() -> None:
    assert load_run_config(None, []) == load_run_config("demo", [])
