"""Typed configuration: YAML presets, dotted overrides, errors that name key, value and remedy.

Precedence, lowest first: field defaults, preset or file, overrides from left to right. Each config block is a
`ConfigModel` declared beside the code that it configures; this module only knows how to read and check them.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from growtx.exceptions import ConfigError


class ConfigModel(BaseModel):
    """Base of every config block: immutable, unknown keys refused, defaults validated too."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def fingerprint(self) -> str:
        """sha256 of the canonical JSON form; equal configurations have equal fingerprints."""
        return fingerprint(self.model_dump(mode="json"))


Model = TypeVar("Model", bound=BaseModel)


def fingerprint(value: Any) -> str:
    """sha256 (hex) of a JSON-able value, independent of key order."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


class _YamlLoader(yaml.SafeLoader):
    """YAML 1.2 floats: PyYAML follows 1.1 and reads `3e-4` and `1e9` as strings."""


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML; `where` names the source in errors."""
    try:
        return yaml.load(text, Loader=_YamlLoader)
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())
        raise ConfigError(f"{where} is not valid YAML: {detail}", "Correct the syntax there") from error


def preset_names() -> list[str]:
    """Names of the presets shipped with the package."""
    folder = resources.files("growtx") / "presets"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_preset(name_or_file: str) -> dict[str, Any]:
    """The tree of a shipped preset or of a YAML file."""
    path = Path(name_or_file)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise ConfigError(f"--preset {name_or_file}: there is no such file", "Check the path")
        text = path.read_text(encoding="utf-8")
    elif name_or_file in preset_names():
        text = (resources.files("growtx") / "presets" / f"{name_or_file}.yaml").read_text(encoding="utf-8")
    else:
        known = ", ".join(preset_names())
        raise ConfigError(f"--preset {name_or_file}: unknown preset", f"Use one of {known}, or a path ending in .yaml")
    tree = parse_yaml(text, f"preset {name_or_file}")
    if not isinstance(tree, dict):
        raise ConfigError(f"preset {name_or_file} is not a mapping of keys to values", "Start it with `name: ...`")
    return tree


def apply_overrides(tree: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return `tree` with dotted `section.key=YAML` overrides applied in order; list items by index."""
    result: dict[str, Any] = json.loads(json.dumps(tree))
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"override {override!r} has no '='", "Write it as section.key=value")
        _set(result, key, parse_yaml(text, f"override {key}"))
    return result


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    node: Any = tree
    for part in parents:
        if isinstance(node, list):
            node = node[_index(node, part, dotted)]
            continue
        if not isinstance(node.get(part), (dict, list)):
            node[part] = {}
        node = node[part]
    if isinstance(node, list):
        node[_index(node, last, dotted)] = value
    else:
        node[last] = value


def _index(items: list[Any], part: str, dotted: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise ConfigError(f"override {dotted}: {part!r} is not an index of a list of {len(items)}", "Count from 0")
    return int(part)


def build(model: type[Model], tree: Mapping[str, Any]) -> Model:
    """Validate a tree.

    Raises:
        ConfigError: naming every wrong key, its value, and what would be right.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problems = [_describe(model, issue) for issue in error.errors()]
        raise ConfigError("; ".join(problem for problem, _ in problems), problems[0][1]) from error


def _describe(model: type[BaseModel], issue: Any) -> tuple[str, str]:
    location = [part for part in issue["loc"] if not _is_union_tag(part)]
    key = ".".join(str(part) for part in location)
    if issue["type"] == "extra_forbidden":
        siblings = sorted(_fields_at(model, location[:-1]))
        close = difflib.get_close_matches(str(location[-1]), siblings, n=1)
        remedy = f"Did you mean {close[0]!r}?" if close else f"Known keys here: {', '.join(siblings)}"
        return f"{key}: unknown key (value {_short(issue['input'])})", remedy
    if issue["type"] == "missing":
        return f"{key}: required key is missing", f"Set {key}=..."
    message = issue["msg"].removeprefix("Value error, ")
    if not key:
        return message, "See `growtx presets` for complete examples"
    return f"{key}={_short(issue['input'])}: {message[:1].lower()}{message[1:]}", f"Change {key}"


def _is_union_tag(part: Any) -> bool:
    """pydantic puts class names and validator names of unions into the location; users know neither."""
    return isinstance(part, str) and ("[" in part or part[:1].isupper())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _fields_at(model: type[BaseModel], location: list[Any]) -> set[str]:
    models: list[type[BaseModel]] = [model]
    for part in location:
        if isinstance(part, int):
            continue
        models = [
            nested
            for current in models
            if part in current.model_fields
            for nested in _models_in(current.model_fields[part].annotation)
        ]
    return {name for current in models for name in current.model_fields}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [nested for argument in typing.get_args(annotation) for nested in _models_in(argument)]


def to_yaml(model: BaseModel) -> str:
    """The resolved configuration as YAML, in declaration order."""
    return yaml.safe_dump(model.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)
