"""What a worker opens first: storage that its node does not see is one sentence, and not a wait for ever."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from growtx.exceptions import ConfigError
from growtx.growth.lineage import TOKENIZER_DIR
from growtx.train import worker_context
from growtx.train.worker_context import VISIBLE_WITHIN_SECONDS, _check_visible
from tests.train.test_job import job


class Clock:
    """Time that passes only while somebody sleeps; after `seconds` of it, a directory appears."""

    def __init__(self, appears: Path | None = None, seconds: float = 0.0) -> None:
        self.now = 0.0
        self._appears, self._seconds = appears, seconds

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self._appears and self.now >= self._seconds:
            self._appears.mkdir(parents=True, exist_ok=True)


def look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: Clock) -> None:
    monkeypatch.setattr(worker_context, "time", clock)
    _check_visible(job(run_dir=str(tmp_path / "run"), packed_path=str(tmp_path / "cache/packed")))


def test_a_run_directory_that_the_node_does_not_see_is_named_with_the_node_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = Clock()
    unseen = rf"the worker on {socket.gethostname()} does not see {tmp_path}/run/{TOKENIZER_DIR}\. Let GROWTX_STORAGE"
    with pytest.raises(ConfigError, match=unseen):
        look(monkeypatch, tmp_path, clock)
    assert VISIBLE_WITHIN_SECONDS <= clock.now <= 2 * VISIBLE_WITHIN_SECONDS


def test_packed_data_that_the_node_does_not_see_is_named_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "run" / TOKENIZER_DIR).mkdir(parents=True)
    with pytest.raises(ConfigError, match=rf"does not see {tmp_path}/cache/packed\. .* and cache_dir name a place"):
        look(monkeypatch, tmp_path, Clock())


def test_a_network_file_system_that_shows_new_files_late_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cache/packed").mkdir(parents=True)
    look(monkeypatch, tmp_path, Clock(tmp_path / "run" / TOKENIZER_DIR, seconds=VISIBLE_WITHIN_SECONDS - 5))
