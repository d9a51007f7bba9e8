"""Typed configuration: YAML presets, dotted overrides, errors that name key, value and remedy.

Precedence, lowest first: field defaults, preset or file, overrides from left to right. Each config block is a
`ConfigModel` declared beside the code that it configures; this module only knows how to read and check them.
"""

from __future__ import annotations

import copy
import difflib
import functools
import hashlib
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from growtx.exceptions import ConfigError, StoreError
from growtx.redaction import ENVIRONMENT, masked_keys, redact_tree
from growtx.storage import resolve_address


class ConfigModel(BaseModel):
    """Base of every config block: immutable, unknown keys refused, defaults validated too, all numbers finite.

    Attributes:
        renamed_keys: keys of this block that had another name in earlier versions, and what they are called now (with
            dots where they moved into a block). Files and overrides may still use the old names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
    renamed_keys: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _read_renamed(cls, tree: Any) -> Any:
        return current_names(tree, cls.renamed_keys) if isinstance(tree, Mapping) and cls.renamed_keys else tree

    def fingerprint(self) -> str:
        """sha256 of the canonical JSON form; equal configurations have equal fingerprints."""
        return fingerprint(self.model_dump(mode="json"))


Model = TypeVar("Model", bound=BaseModel)


def fingerprint(value: Any) -> str:
    """sha256 (hex) of a JSON-able value, independent of key order."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


class _YamlLoader(yaml.SafeLoader):
    """YAML 1.2 scalars: PyYAML follows 1.1, reads `3e-4` and `1e9` as strings and `2026-01-01` as a date."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the type that the base class declares
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A key that stands twice is a mistake, of which YAML libraries keep the second half."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    mark = key.start_mark
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} stands twice", mark)
                seen.add(key.value)
        return dict(super().construct_mapping(node, deep=deep))


class _YamlDumper(yaml.SafeDumper):
    """Quotes the strings that `_YamlLoader` would read as something else."""


for _yaml in (_YamlLoader, _YamlDumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML; `where` names the source in errors.

    Raises:
        ConfigError: it is not valid, or holds what no configuration of ours does (values without end, odd text).
    """
    try:
        tree = yaml.load(text, Loader=_YamlLoader)
        _check_tree(tree)
    # Besides its own errors: tags such as !!int before something that is not one, nesting and numbers without end.
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        detail = " ".join(str(error).split())[:300]
        raise ConfigError(f"{where} is not valid YAML: {detail}", "Fix the syntax") from error
    return tree


# Files that may come from elsewhere, or be damaged: each ends in one sentence, whatever is in it.


_LARGEST_JSON = 64 * 2**20  # bytes; the longest of ours, the text maps of a large model, take a tenth
_LARGEST_TREE = 5_000_000  # values; YAML can repeat a short list into billions of them
_DEEPEST_TREE = 100
_LARGEST_INTEGER = 2**63


def parse_json(data: bytes, where: str, remedy: str) -> Any:
    """Parse JSON that was read from a file.

    Raises:
        StoreError: it is not JSON, or holds what no file of ours does: nesting, numbers or text beyond all measure.
    """
    if len(data) > _LARGEST_JSON:
        raise StoreError(f"{where} is damaged: it has {len(data):,} bytes", remedy)
    try:
        tree = json.loads(data)
        _check_tree(tree)
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8 and endless integers, too
        raise StoreError(f"{where} is damaged: it is not JSON", remedy) from error
    return tree


def parse_record(model: type[Model], data: bytes, where: str, remedy: str) -> Model:
    """Parse a JSON file of one kind.

    Raises:
        StoreError: naming the first key that is wrong.
    """
    return check_record(model, parse_json(data, where, remedy), where, remedy)


def check_record(model: type[Model], tree: Any, where: str, remedy: str) -> Model:
    """As `parse_record`, for what is parsed already."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))[:100]
        detail = f"{key}: {first['msg'].lower()}" if key else first["msg"].lower()
        raise StoreError(f"{where} is damaged: {' '.join(detail.split())[:300]}", remedy) from error


def _check_tree(tree: Any) -> None:
    """Raises ValueError for what could not be written again, or would take all memory to look at."""
    waiting, num_values = [(tree, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        num_values += 1
        if depth > _DEEPEST_TREE or num_values > _LARGEST_TREE:
            raise ValueError("it is nested too deeply or has too many values")
        if isinstance(value, dict):
            waiting += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, (list, tuple, set)):
            waiting += [(part, depth + 1) for part in value]
        elif isinstance(value, str):
            value.encode()  # UnicodeEncodeError is a ValueError: half of a character, which no file can hold
        elif isinstance(value, int) and abs(value) >= _LARGEST_INTEGER:
            raise ValueError("it holds a number that is too large")


def preset_names() -> list[str]:
    """Names of the presets shipped with the package."""
    folder = resources.files("growtx") / "presets"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_preset(name_or_file: str) -> dict[str, Any]:
    """The tree of a shipped preset or of a YAML file; its key `extends` names the preset that it builds on.

    Raises:
        ConfigError: one of them is missing or damaged, or they extend each other in a circle.
    """
    names, trees = [name_or_file], [_read_preset(name_or_file)]
    while (base := trees[-1].pop("extends", None)) is not None:
        if str(base) in names:
            raise ConfigError(f"extends leads in a circle: {' -> '.join([*names, str(base)])}", "Remove one of them")
        names.append(str(base))
        trees.append(_read_preset(str(base)))
    return functools.reduce(merged, reversed(trees))


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `changes`, mappings merged key by key, everything else replaced."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def current_names(tree: Mapping[str, Any], renamed_keys: Mapping[str, str]) -> dict[str, Any]:
    """`tree` with old keys under their new names; where both name one value, the later of them in `tree` counts."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        branch = value
        *parents, last = renamed_keys.get(key, key).split(".")
        for part in (last, *reversed(parents)):
            branch = {part: branch}
        result = merged(result, branch)
    return result


def _current_override(override: str, renamed_keys: Mapping[str, str]) -> str:
    first = re.split(r"[.=]", override, maxsplit=1)[0]
    return renamed_keys.get(first, first) + override[len(first) :]


def _read_preset(name_or_file: str) -> dict[str, Any]:
    if Path(name_or_file).suffix in {".yaml", ".yml"}:
        candidates = [Path(name_or_file), Path(resolve_address(name_or_file))]  # as given, and among the runs
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None:
            raise ConfigError(f"--preset {name_or_file}: there is no such file", "Check the path")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"--preset {name_or_file} cannot be read: {error}", "Give a YAML file in UTF-8"
            ) from error
    elif name_or_file in preset_names():
        text = (resources.files("growtx") / "presets" / f"{name_or_file}.yaml").read_text(encoding="utf-8")
    else:
        known = ", ".join(preset_names())
        raise ConfigError(f"--preset {name_or_file}: unknown preset", f"Use one of {known}, or a path ending in .yaml")
    tree = parse_yaml(text, f"preset {name_or_file}")
    if not isinstance(tree, dict):
        raise ConfigError(
            f"preset {name_or_file} is not a mapping of keys to values",
            "Let it begin with `extends: demo`, or with what `growtx presets demo` prints",
        )
    return tree


def apply_overrides(tree: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return `tree` with dotted `section.key=YAML` overrides applied in order; list items by index.

    Raises:
        ConfigError: an override cannot be applied, or a credential that was masked is not given again.
    """
    result = copy.deepcopy(dict(tree))
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"override {override!r} is not a key and a value", "Write it as section.key=value")
        _set(result, key, parse_yaml(text, f"override {key}"))
    if masked := list(masked_keys(result)):
        raise ConfigError(
            f"{', '.join(masked)}: *** stands for a credential, which is never written down",
            f"Give it again ({masked[0]}=...), or leave it out there and set it in the environment of every node "
            f"({ENVIRONMENT})",
        )
    return result


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    node: Any = tree
    for part in parents:
        key = _key(node, part, dotted)
        child = node.get(key) if isinstance(node, dict) else node[key]
        if not isinstance(child, (dict, list)):
            child = node[key] = {}
        node = child
    node[_key(node, last, dotted)] = value


def _key(node: Any, part: str, dotted: str) -> str | int:
    if isinstance(node, dict):
        return part
    if not part.isdecimal() or int(part) >= len(node):
        whole = f"give the list as a whole: {dotted.rpartition(f'.{part}')[0]}=[...]"
        raise ConfigError(
            f"override {dotted}: {part!r} is not an index of a list of {len(node)}",
            f"Use a number from 0 to {len(node) - 1}, or {whole}" if node else whole.capitalize(),
        )
    return int(part)


def build_config(model: type[Model], tree: Mapping[str, Any], overrides: Iterable[str] | None = None) -> Model:
    """Validate a tree after its dotted overrides.

    Args:
        overrides: None where a tree is read as it was written; a list, also an empty one, where it is used again.

    Raises:
        ConfigError: naming every invalid key, its value and a remedy.
    """
    renamed = model.renamed_keys if issubclass(model, ConfigModel) else {}
    # Renamed before the overrides are applied, so that those count more than the file whichever name either uses.
    tree = current_names(tree, renamed) if renamed else tree
    if overrides is not None:
        tree = apply_overrides(tree, [_current_override(override, renamed) for override in overrides])
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        located = [(_location(tree, issue), issue) for issue in error.errors()]
        # A union reports every alternative: the one that got deepest into the value is the one that was meant.
        deepest = [
            (at, issue) for at, issue in located if not any(at == other[: len(at)] != other for other, _ in located)
        ]
        problems = dict.fromkeys(_describe(model, at, issue) for at, issue in deepest)
        raise ConfigError("; ".join(problem for problem, _ in problems), next(iter(problems))[1]) from error


def _location(tree: Any, issue: Any) -> tuple[str | int, ...]:
    """Where in `tree` an issue is: pydantic also puts names of types and validators there, which users do not know."""
    location: list[str | int] = []
    node = tree
    for part in issue["loc"]:
        if (isinstance(node, Mapping) and part in node) or (
            isinstance(node, (list, tuple)) and isinstance(part, int) and part < len(node)
        ):
            node = node[part]
        elif issue["type"] != "missing":
            continue
        location.append(part)
    return tuple(location)


def _describe(model: type[BaseModel], location: tuple[str | int, ...], issue: Any) -> tuple[str, str]:
    key = ".".join(str(part) for part in location)
    if issue["type"] == "extra_forbidden":
        siblings = sorted(_fields_at(model, location[:-1]))
        close = difflib.get_close_matches(str(location[-1]), siblings, n=1)
        remedy = f"Did you mean {close[0]!r}?" if close else f"Known keys here: {', '.join(siblings)}"
        return f"{key}: unknown key (value {_short(issue['input'])})", remedy
    if issue["type"] == "missing":
        return f"{key}: required key is missing", f"Set {key}"
    message = issue["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
    message = re.sub(r"valid dictionary or instance of \w+", "mapping of keys to values", message)
    if not key:
        return message, "See `growtx presets` for complete examples"
    return f"{key}={_short(issue['input'])}: {message[:1].lower()}{message[1:]}", f"Change {key}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _fields_at(model: type[BaseModel], location: tuple[str | int, ...]) -> set[str]:
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
    """The resolved configuration as YAML, in declaration order, credentials masked."""
    tree = redact_tree(model.model_dump(mode="json"))
    return str(yaml.dump(tree, Dumper=_YamlDumper, sort_keys=False, allow_unicode=True, width=110))
