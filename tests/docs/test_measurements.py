"""Every figure of docs/measurements.md stands under a command, and every command of the guides is one that there is."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import parse as parse_benchmark
from growtx.cli.main import parse
from growtx.growth.plan import resolve
from growtx.run.config import load_run_config
from growtx.specialists.config import load_specialists_config
from growtx.study.config import load_study_config
from growtx.sweep.config import load_sweep_config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/measurements.md").read_text()
LOADERS: dict[str, Callable[..., Any]] = {
    "grow": load_run_config,
    "plan": load_run_config,
    "specialists": load_specialists_config,
    "study": load_study_config,
    "sweep": load_sweep_config,
}
NOTE = """#!{python}
import json, os, sys
with open(os.environ["SAID"], "a") as said:
    said.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
"""

blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)


def commands_of(block: str, directory: Path) -> list[list[str]]:
    """What a shell would run, loops and quotes resolved, with programs that only note how they were called."""
    programs, said = directory / "programs", directory / "said"
    programs.mkdir()
    for name in ("growtx", "make", "python"):
        (programs / name).write_text(NOTE.format(python=sys.executable))
        (programs / name).chmod(stat.S_IRWXU)
    environment = {**os.environ, "PATH": f"{programs}:/usr/bin:/bin", "SAID": str(said)}
    subprocess.run(["bash", "-euc", block], env=environment, cwd=directory, check=True)
    return [json.loads(line) for line in said.read_text().splitlines()]


def check_growtx(words: list[str], made: set[str]) -> None:
    if words[0] == "benchmark":
        assert parse_benchmark(words[1:]).run
        return
    arguments = parse(words)
    named = getattr(arguments, "preset", None)
    if words[0] in LOADERS and not any(named is not None and named.startswith(run) for run in made):
        config = LOADERS[words[0]](named, getattr(arguments, "overrides", []))
        assert resolve(config.plan) if hasattr(config, "plan") else config
    made.add(getattr(arguments, "run_dir", None) or "nothing")


def check_pytest(words: list[str]) -> None:
    assert words[:2] == ["-m", "pytest"]
    names = re.findall(r"test_\w+", words[words.index("-k") + 1]) if "-k" in words else []
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert all(f"def {name}" in tests for name in names), names
    assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))


@pytest.mark.parametrize("block", blocks, ids=[block.split("\n")[0][:40] for block in blocks])
def test_every_command_is_one_that_there_is(block: str, tmp_path: Path) -> None:
    made: set[str] = set()
    found = commands_of(block, tmp_path)
    assert found
    for program, *words in found:
        if program == "growtx":
            check_growtx(words, made)
        elif program == "make":
            assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
        else:
            check_pytest(words)


def test_every_table_of_figures_stands_under_a_command() -> None:
    for section in re.split(r"^##+ ", PAGE, flags=re.MULTILINE)[1:]:
        if "\n|---" in section:
            assert "```bash" in section[: section.index("\n|---")], section.split("\n")[0]
    assert len(blocks) > 15


def test_no_two_blocks_are_the_same() -> None:
    assert len({" ".join(block.split()) for block in blocks}) == len(blocks)


GUIDES = ("README.md", "docs/howto.md", "docs/concepts.md", "docs/clients.md", "cluster/README.md")


@pytest.mark.parametrize("guide", GUIDES)
def test_the_commands_of_the_guides_are_ones_that_there_are(
    guide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options, presets and overrides; `mine.yaml` is what the guide shows under that name."""
    monkeypatch.chdir(tmp_path)
    own = re.search(r"```yaml\n(# mine\.yaml\n.*?)```", (ROOT / "docs/howto.md").read_text(), re.DOTALL)
    assert own
    Path("mine.yaml").write_text(own[1])
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / guide).read_text(), re.DOTALL):
        for line in re.findall(r"^growtx .*(?:\n {4}.*)*", block.replace("\\\n", " "), re.MULTILINE):
            check_growtx(shlex.split(line, comments=True)[1:], made={"runs/"})
