"""What Ctrl-C does before it ends the endpoint; on a real Ray in test_cluster.py."""

from __future__ import annotations

import signal
import time
from types import SimpleNamespace

import pytest
import ray
from ray import serve

from growtx.compat import ray as compat
from growtx.serving.local import _Stop


class FakeServe:
    """Applications that take a while to go, and what was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.calls: list[str] = []
        self._gone_at = float("inf")
        self._seconds = seconds
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(serve, "status", self.status)
        monkeypatch.setattr(serve, "delete", self.delete)
        monkeypatch.setattr(serve, "shutdown", lambda: self.calls.append("shutdown"))
        monkeypatch.setattr(compat, "_DRAIN_POLL_SECONDS", 0.01)

    def status(self) -> SimpleNamespace:
        return SimpleNamespace(applications={"growtx": 1} if time.monotonic() < self._gone_at else {})

    def delete(self, name: str, _blocking: bool) -> None:
        assert not _blocking
        self.calls.append(f"delete {name}")
        self._gone_at = time.monotonic() + self._seconds

    def say(self, text: str) -> None:
        self.calls.append(text.partition(":")[0])


def test_shutdown_waits_for_the_applications_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeServe(monkeypatch, seconds=0.2)
    compat.drain_at_shutdown(30, fake.say)
    compat.drain_at_shutdown(30, fake.say)  # built twice, drained once
    start = time.monotonic()
    serve.shutdown()
    assert 0.2 <= time.monotonic() - start < 10
    assert fake.calls == ["stopping", "delete growtx", "shutdown"]


def test_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeServe(monkeypatch, seconds=1000)
    compat.drain_at_shutdown(0.1, fake.say)
    serve.shutdown()
    assert fake.calls[-1] == "shutdown"


def test_a_second_interrupt_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeServe(monkeypatch, seconds=1000)
    compat.drain_at_shutdown(1000, fake.say)
    stop = _Stop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stop.listen()
    try:
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked.is_set(), "the first one only asks"
        fake.delete = lambda *_, **__: signal.raise_signal(signal.SIGINT)  # type: ignore[method-assign]
        monkeypatch.setattr(serve, "delete", fake.delete)
        serve.shutdown()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert fake.calls == ["stopping", "stopping at once", "shutdown"]


def test_nothing_is_waited_for_where_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeServe(monkeypatch, seconds=1000)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    compat.drain_at_shutdown(1000, fake.say)
    serve.shutdown()
    assert fake.calls == ["shutdown"]
