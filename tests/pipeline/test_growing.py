"""The end of a run and its interruption, without a cluster: what is written, and what a signal asks for."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from growtx.growth.loading import load_model
from growtx.pipeline.growing import _plan_table, _resources, finish_run, stopping
from growtx.pipeline.preparation import prepare
from growtx.store.storage import Storage
from tests import tiny
from tests.pipeline.configs import config, write_corpus


def quiet() -> Console:
    return Console(record=True, width=100, file=io.StringIO())


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report has tests of its own."""
    monkeypatch.setattr("growtx.pipeline.growing.write_report", lambda root: f"{root}/report.html")


def test_a_finished_run_leaves_a_model_directory_a_report_and_no_checkpoints(run_dir: Path) -> None:
    (run_dir / "checkpoints/attempt").mkdir(parents=True)
    assert finish_run(Storage(str(run_dir)), finished=True) == f"{run_dir}/report.html"
    assert not (run_dir / "checkpoints").exists()
    exported, tokenizer = load_model(str(run_dir / "model"))
    assert torch.equal(tiny.logits(exported), tiny.logits(load_model(str(run_dir))[0]))
    assert len(tokenizer) == tiny.VOCAB_SIZE


def test_a_run_that_was_stopped_keeps_its_checkpoints(run_dir: Path) -> None:
    (run_dir / "checkpoints/attempt").mkdir(parents=True)
    finish_run(Storage(str(run_dir)), finished=False)
    assert (run_dir / "checkpoints/attempt").exists()


def test_a_run_without_a_finished_stage_has_nothing_to_write(tmp_path: Path) -> None:
    assert finish_run(Storage(str(tmp_path)), finished=False) is None and not list(tmp_path.iterdir())


def test_the_plan_is_printed_before_it_runs(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    plan = {"stages": [{}, {"num_workers": 2}, {"active": 2, "lora": {"rank": 4}}], "train": {"steps": 3}}
    job = prepare(config(corpus, plan=plan), Storage(str(tmp_path / "run"))).job
    console = quiet()
    console.print(_plan_table(job))
    rows = [line for line in console.export_text().splitlines() if "depth-" in line]
    assert "block 1 + head" in rows[0] and "block 2 + head" in rows[1] and "blocks 2-3 + head" in rows[2]
    assert all(f"{3 * 4 * 32}" in row for row in rows)  # tokens: steps, windows, tokens of a window
    assert [_resources(job, stage).num_workers for stage in job.stages] == [1, 2, 1]


def signalled(number: int) -> list[str]:
    """What happens when this process gets a signal in mid-training."""
    asked: list[str] = []
    with stopping(lambda: asked.append("stop"), quiet()):
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        if number == signal.SIGINT:
            try:
                os.kill(os.getpid(), number)
                time.sleep(0.01)
            except KeyboardInterrupt:
                asked.append("leave at once")
    return asked


def test_a_signal_asks_to_save_and_stop_and_a_second_interrupt_leaves_at_once() -> None:
    before = (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    assert signalled(signal.SIGTERM) == ["stop"]
    assert signalled(signal.SIGINT) == ["stop", "leave at once"]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_run_in_a_thread_leaves_signals_alone() -> None:
    before, inside = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with stopping(lambda: None, quiet()):
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert inside == [before]
