"""What import-linter cannot check: subpackages of other people's packages."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


def test_only_train_sweep_and_compat_import_ray_train_and_ray_tune() -> None:
    users = {
        str(path.relative_to(ROOT))
        for folder in ("growtx", "serve", "rayjobs")
        for path in (ROOT / folder).rglob("*.py")
        if any(module.startswith(("ray.train", "ray.tune")) for module in imported_modules(path))
    }
    assert users
    assert all(user.startswith(("growtx/train/", "growtx/sweep/", "growtx/compat/")) for user in users), users
