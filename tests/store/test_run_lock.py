"""One process at a time works on a run; one that was killed does not keep it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from growtx.exceptions import ConfigError
from growtx.storage import Storage
from growtx.store.run_lock import acquire, held, is_locked
from growtx.store.runs import list_runs

OTHER = """
import sys
from growtx.store.run_lock import acquire
from growtx.storage import Storage
acquire(Storage(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_run_belongs_to_one_process_until_that_ends_or_is_killed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.yaml").write_text("name: run\n")
    command = [sys.executable, "-c", OTHER, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=rf"is in use by process {other.pid} on .*Wait until it ends"):
            acquire(Storage(str(run)))
        assert [run.state for run in list_runs(str(tmp_path))] == ["running"]
        other.kill()
    assert [run.state for run in list_runs(str(tmp_path))] == ["interrupted"]
    acquire(Storage(str(run)))
    acquire(Storage(str(run)))  # its own, again
    assert is_locked(Storage(str(run)))


def test_what_another_machine_holds_cannot_be_told_from_here(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("process 1 on elsewhere")
    assert is_locked(Storage(str(tmp_path))) is None
    assert is_locked(Storage("memory://runs/one")) is None


def test_a_lock_that_is_held_for_a_block_is_given_back_and_an_own_one_is_kept(tmp_path: Path) -> None:
    run = Storage(str(tmp_path / "run"))
    run.write_text("run.yaml", "name: run\n")
    with held(run):
        assert is_locked(run)
    assert not is_locked(run)
    acquire(run)
    with held(run):
        assert is_locked(run)
    assert is_locked(run)


def test_a_run_that_died_a_moment_ago_is_not_taken_for_one_that_runs(tmp_path: Path) -> None:
    run = Storage(str(tmp_path / "run"))
    run.write_text("run.yaml", "name: run\n")
    run.write_text("status.json", '{"state": "running"}')
    with held(run):
        assert [found.state for found in list_runs(str(tmp_path))] == ["running"]
    assert [found.state for found in list_runs(str(tmp_path))] == ["interrupted"]
