"""What peft adapts by default in our models.

peft has no way to register an architecture: it looks the model type up in tables of its own. They are filled when peft
is imported, because importing it here would cost every process that loads a model some seconds.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

SEEN = "0.21.2"
TOUCHED = (
    ("peft.utils.constants:TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING", "name the modules that LoRA adapts"),
    ("peft.utils.constants:TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING", "name the modules that IA3 adapts"),
)
TABLES = "peft.utils.constants"
SUFFIX = "_MODULES_MAPPING"
LIKE = "llama"  # whose modules have the names of ours, but for a gate
OTHERS = ("gate_proj",)


def know_growtx(*model_types: str) -> None:
    """Let peft find the default targets of these model types, now or when it is imported."""
    if TABLES in sys.modules:
        _fill(sys.modules[TABLES], model_types)
    else:
        sys.meta_path.insert(0, _WhenImported(model_types))


def _fill(constants: ModuleType, model_types: Sequence[str]) -> None:
    for name, table in vars(constants).items():
        if name.endswith(SUFFIX) and LIKE in table:
            modules = table[LIKE]
            ours = [module for module in modules if module not in OTHERS] if isinstance(modules, list) else modules
            for model_type in model_types:
                table.setdefault(model_type, ours)


class _WhenImported(MetaPathFinder):
    """Fills the tables once they are there."""

    def __init__(self, model_types: Sequence[str]) -> None:
        self._model_types = model_types

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname != TABLES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_fill(module: ModuleType) -> None:
                run(module)
                _fill(module, self._model_types)

            spec.loader.exec_module = run_and_fill  # type: ignore[method-assign]
        return spec
