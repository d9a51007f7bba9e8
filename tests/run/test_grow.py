"""The end of a run and its interruption, without a cluster: what is written, and what a signal asks for."""

from __future__ import annotations

import io
import os
import pickle
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from growtx.exceptions import RunsFailedError, TrainingError
from growtx.growth.plan import Stage
from growtx.growth.results import load_model
from growtx.run import grow as grow_module
from growtx.run.grow import _plan_table, finish_run, run_jobs, stop_on_signals
from growtx.run.prepare import prepare
from growtx.storage import Storage
from growtx.train.job import TrainJob
from growtx.train.worker import GroupOutcome
from tests import tiny
from tests.run.configs import config, write_corpus
from tests.store.manifests import manifest as make_manifest
from tests.train.test_job import job


def quiet() -> Console:
    return Console(record=True, width=100, file=io.StringIO())


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report has tests of its own."""
    monkeypatch.setattr("growtx.run.grow.write_report", lambda root: f"{root}/report.html")


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
    console.print(_plan_table(job, {}))
    rows = [line for line in console.export_text().splitlines() if "depth-" in line]
    assert "block 1 + head" in rows[0] and "block 2 + head" in rows[1] and "blocks 2-3 + head" in rows[2]
    assert all(f"{3 * 4 * 32}" in row for row in rows)  # tokens: steps, windows, tokens of a window
    assert [job.resources_of(stage).num_workers for stage in job.stages] == [1, 2, 1]


def signalled(number: int) -> list[str]:
    """What happens when this process gets a signal in mid-training."""
    asked: list[str] = []
    with stop_on_signals(lambda: asked.append("stop"), quiet()):
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


def test_a_stop_does_not_wait_for_workers_that_cannot_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grow_module, "TELL_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(grow_module, "START_SECONDS", 0.1)
    for has_begun in (True, False):
        start, waited = time.monotonic(), False
        with stop_on_signals(lambda: None, quiet(), lambda begun=has_begun: begun):  # type: ignore[misc]
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
            waited = True
        assert waited is has_begun and time.monotonic() - start < 5
    assert signal.getsignal(signal.SIGTERM) != signal.default_int_handler


def test_a_run_in_a_thread_leaves_signals_alone() -> None:
    before, inside = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with stop_on_signals(lambda: None, quiet()):
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert inside == [before]


DIVERGED = TrainingError("the loss is not finite")
Groups = list[list[tuple[str, list[int]]]]  # for each worker group, the runs and stages that it was given


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> Groups:
    """The worker groups that are started; a run called `bad` fails."""
    started: Groups = []

    def fit_worker_group(given: list[TrainJob], progress_actor: object, claims: object) -> GroupOutcome:
        started.append([(one.run_dir.removeprefix("/r/"), [stage.index for stage in one.stages]) for one in given])
        return GroupOutcome(False, {one.run_dir: DIVERGED for one in given if one.run_dir == "/r/bad"})

    monkeypatch.setattr("growtx.train.stage_trainer.fit_worker_group", fit_worker_group)
    monkeypatch.setattr("growtx.run.grow.latest_manifest", lambda storage: None)
    return started


def stages_with_workers(*num_workers: int | None) -> tuple[Stage, ...]:
    return tiny.stages(stages=[{"num_workers": number} for number in num_workers])


def test_jobs_share_a_worker_group_until_the_resources_change(groups: Groups) -> None:
    one, other = (job(run_dir=f"/r/{name}", stages=stages_with_workers(None, None)) for name in "ab")
    changing = job(run_dir="/r/c", stages=stages_with_workers(None, 1, None))
    assert not run_jobs([one, changing, other])
    assert groups == [[("a", [1, 2]), ("c", [1])], [("c", [2])], [("c", [3]), ("b", [1, 2])]]


def test_stages_that_have_a_manifest_are_not_trained_again(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    the_job = job(run_dir="/r/a", stages=stages_with_workers(None, None, None))
    for done, left in ((1, [[("a", [2, 3])]]), (3, [])):
        last = make_manifest(done, None)
        monkeypatch.setattr("growtx.run.grow.latest_manifest", lambda storage, last=last: last)
        assert not run_jobs([the_job])
        assert groups == left
        groups.clear()


def test_nothing_is_started_after_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def stopping(given: list[TrainJob], progress_actor: object, claims: object) -> GroupOutcome:
        started.append(len(given))
        return GroupOutcome(True, {})

    monkeypatch.setattr("growtx.train.stage_trainer.fit_worker_group", stopping)
    monkeypatch.setattr("growtx.run.grow.latest_manifest", lambda storage: None)
    assert run_jobs([job(run_dir="/r/a", stages=stages_with_workers(None, 1))])
    assert started == [1]


def test_a_failed_run_gets_no_further_group_and_the_others_do(groups: Groups) -> None:
    jobs = [job(run_dir=f"/r/{name}", stages=stages_with_workers(None)) for name in ("bad", "a")]
    tuning = job(run_dir="/r/bad", stages=stages_with_workers(1))
    with pytest.raises(RunsFailedError, match="1 of the runs failed"):
        run_jobs([*jobs, tuning, job(run_dir="/r/b", stages=stages_with_workers(1))])
    assert groups == [[("bad", [1]), ("a", [1])], [("b", [1])]]


def test_the_error_of_a_run_that_is_alone_is_its_own(groups: Groups) -> None:
    with pytest.raises(TrainingError, match=r"^the loss is not finite"):
        run_jobs([job(run_dir="/r/bad")])


def test_the_error_of_several_runs_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(RunsFailedError({"/r/a": DIVERGED})))
    assert str(error.failures["/r/a"]) == str(DIVERGED) and "/r/a: the loss is not finite" in str(error)
