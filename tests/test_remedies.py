"""What every error says to do: there is something, and it can be done by whoever has only the package."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from growtx import exceptions

SOURCES = Path(exceptions.__file__).parent
ERRORS = {
    name
    for name, value in vars(exceptions).items()
    if isinstance(value, type) and issubclass(value, exceptions.GrowtxError)
} - {"RunsFailedError"}  # its remedies are those of the runs


def raised() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS:
                yield f"{path.relative_to(SOURCES)}:{node.lineno}", node


def words_of(node: ast.expr) -> str:
    """All literal text in an expression."""
    return " ".join(part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and type(part.value) is str)


CALLS = dict(raised())


def test_every_error_has_a_remedy() -> None:
    assert len(CALLS) > 200
    without = [where for where, call in CALLS.items() if len(call.args) < 2 and not call.keywords]
    assert not without


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"growtx\[", "the package is on no index, so its extras cannot be installed by name"),
        (r"growtx/\w+[/\w]*\.py", "who installed a wheel has no source file at that path"),
        (r"unset it|delete everything", "it would open or remove more than it says"),
        (r"or \.\.\.|as needed|somehow", "nobody can type that"),
    ],
)
def test_no_remedy_leads_nowhere(pattern: str, why: str) -> None:
    found = [where for where, call in CALLS.items() if re.search(pattern, " ".join(map(words_of, call.args[1:])))]
    assert not found, why
