"""The private parts of other libraries: they are there, and nothing but `growtx/compat/` touches them.

A name's form in `TOUCHED` says where it is looked for: `module:Class.name`, `module:Class.self.name` (set in a method),
or `module:"text"` (in the source, for names of variables and loggers and texts of errors).
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
from collections.abc import Iterator
from functools import reduce
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from growtx.models.saving import quiet_on_the_cpu

ROOT = Path(__file__).parents[1]
COMPAT = ROOT / "growtx" / "compat"
LIBRARIES = {path.stem: path.stem.removesuffix("_logging") for path in sorted(COMPAT.glob("[!_]*.py"))}
INTERNAL = ("deepspeed.runtime", "deepspeed.comm", "transformers.generation.continuous_batching")
PUBLIC = {"_asdict", "_replace", "_exit", "_SubParsersAction"}  # documented so; argparse has no other name


def touched() -> Iterator[Any]:
    """The literal `TOUCHED` and `SEEN` of every file, evaluated without the file's imports: extras may be missing."""
    for file in LIBRARIES:
        constants: dict[str, Any] = {}
        for node in ast.parse((COMPAT / f"{file}.py").read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign):
                exec(ast.unparse(node), {}, constants)
        for name, purpose in constants["TOUCHED"]:
            yield pytest.param(file, name, purpose, constants["SEEN"], id=f"{file}-{name}")


def exists(name: str) -> bool:
    module, _, rest = name.partition(":")
    try:
        if rest.startswith('"'):
            spec = find_spec(module)
            return spec is not None and rest.strip('"') in Path(str(spec.origin)).read_text(encoding="utf-8")
        owner, _, attribute = rest.rpartition(".self.")
        found = reduce(getattr, (owner or rest).split("."), import_module(module))
    except (ImportError, AttributeError):
        return False
    return not owner or any(f"self.{attribute}" in inspect.getsource(base) for base in found.__mro__[:-1])


@pytest.mark.parametrize(("file", "name", "purpose", "seen"), touched())
def test_a_private_name_that_we_touch_is_there(
    file: str, name: str, purpose: str, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = LIBRARIES[file]
    pytest.importorskip(library)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert exists(name), (
        f"{library} {version(library)} has no {name} any more, which growtx/compat/{file}.py uses to {purpose} (seen "
        f"with {seen})"
    )


def test_a_name_that_is_gone_is_noticed() -> None:
    assert exists("json:JSONDecoder.decode") and exists("json.decoder:JSONDecoder.self.strict")
    assert exists('json.decoder:"Expecting value"')
    for name in ("jsonn:x", "json:Gone", "json:JSONDecoder.gone", "json.decoder:JSONDecoder.self.gone", 'json:"gone!"'):
        assert not exists(name)


def own_names(trees: dict[Path, ast.Module]) -> set[str]:
    """What our own code defines: functions, classes, and attributes set in a class or on `self`."""
    names = set()
    for node in (node for tree in trees.values() for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
    return names


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def foreign_private_names(tree: ast.Module, ours: set[str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if is_private(node.attr) and node.attr not in ours:
                yield node.lineno, node.attr
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            for name in [f"{module}.{alias.name}" if module else alias.name for alias in node.names]:
                first, *parts = name.split(".")
                is_foreign = first not in {"growtx", "serve", "benchmarks"} | sys.stdlib_module_names
                if is_foreign and (any(map(is_private, parts)) or name.startswith(INTERNAL)):
                    yield node.lineno, name


def test_no_other_file_touches_private_names_of_libraries() -> None:
    paths = [path for folder in ("growtx", "serve", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths if COMPAT not in path.parents}
    ours = own_names(trees) | PUBLIC
    assert [
        f"{path.relative_to(ROOT)}:{line}: {name} belongs into growtx/compat/"
        for path, tree in trees.items()
        for line, name in foreign_private_names(tree, ours)
    ] == []
    leaves = {re.split(r"[.:]", parameter.values[1])[-1].strip('"') for parameter in touched()}
    words = {leaf for leaf in leaves if "_" in leaf and leaf.isidentifier() and leaf not in ours}
    assert [
        f"{path.relative_to(ROOT)}: {word} belongs into growtx/compat/"  # in `getattr(x, "...")`, or overridden
        for path in trees
        for word in sorted(words & set(re.findall(r"\w+", path.read_text(encoding="utf-8"))))
    ] == []


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import ray\nray._private.node", "_private"),
        ("from ray.train.v2._internal.exceptions import Timeout", "ray.train.v2._internal.exceptions.Timeout"),
        ("import torch._inductor", "torch._inductor"),
        ("from deepspeed.runtime.zero import stage3", "deepspeed.runtime.zero.stage3"),
        ("model.config._attn_implementation = 'sdpa'", "_attn_implementation"),
    ],
)
def test_a_private_name_elsewhere_is_noticed(code: str, name: str) -> None:
    assert name in [found for _, found in foreign_private_names(ast.parse(code), set())]


def test_what_every_ray_process_imports_at_its_start_is_of_the_standard_library() -> None:
    tree = ast.parse((COMPAT / "ray_logging.py").read_text(encoding="utf-8"))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {module.partition(".")[0] for module in modules} <= sys.stdlib_module_names


def test_saving_on_the_cpu_leaves_nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    with pytest.raises(KeyError), quiet_on_the_cpu():
        assert os.environ["DS_ACCELERATOR"] == "cpu"
        raise KeyError
    assert "DS_ACCELERATOR" not in os.environ
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    with quiet_on_the_cpu():
        assert os.environ["DS_ACCELERATOR"] == "cuda"
    assert os.environ["DS_ACCELERATOR"] == "cuda"
