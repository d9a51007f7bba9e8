"""What a sweep does with the best trial of a stage, and the report that shows it, without training."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from growtx.exceptions import ConfigError
from growtx.growth.lineage import open_lineage
from growtx.report.growth import write_report
from growtx.storage import Storage
from growtx.store.blobs import BlobStore
from growtx.store.run_records import read_changes
from growtx.store.runs import MetricsLog, read_metrics
from growtx.store.trials import TrialEvaluation, TrialRecord, trial_dir, write_trial
from growtx.store.verify import verify
from growtx.sweep.config import SweepConfig
from growtx.sweep.driver import _planned_run, promote_trial
from tests import tiny
from tests.sweep.test_config import config


@pytest.fixture
def swept(tmp_path: Path, tokenizer: Any) -> tuple[Storage, TrialRecord]:
    """A run of one stage; a second one was grown by a trial, another trial left a blob and failed."""
    (first,) = tiny.write_run(tmp_path / "run", tokenizer, {"stages": [{"add": 1}]})
    run = Storage(tmp_path / "run")
    best = TrialRecord(
        stage=2, stage_name="depth-2", number=1, values={"learning_rate": 2e-3, "init": "identity"}, state="finished",
        bits_per_byte=1.5, evaluations=[TrialEvaluation(fraction=0.5, bits_per_byte=2.0)], num_tokens=512, seconds=2.0,
        flops=1e9, monolithic_flops=3e9,
    )  # fmt: skip
    trial = run.child(trial_dir(2, 1))
    _, second = tiny.stages(stages=[{"add": 1}, {"add": 1}])
    deeper = tiny.config_like(first, 2)
    tiny.write_stage(BlobStore(run.root), second, deeper, first.substrate, first, target=trial)
    row = {"step": 4, "stage": 2, "train/loss": 1.0, "num_tokens": 2000, "num_blocks": 2}
    MetricsLog(trial).append(row)
    planned = best.model_copy(
        update={
            "number": 0,
            "planned": True,
            "bits_per_byte": 1.75,
            "values": {"learning_rate": 1e-3, "init": "random"},
        }
    )
    for record in (best, planned, planned.model_copy(update={"number": 2, "state": "failed", "error": "because"})):
        write_trial(run, record)
    BlobStore(run.root).put({"of a loser": tiny.substrate()})
    return run, best


def test_the_best_trial_joins_the_lineage_and_what_others_stored_goes(swept: tuple[Storage, TrialRecord]) -> None:
    run, best = swept
    assert len(verify(run.root).orphans) > 0
    for _ in range(2):  # a sweep that is killed in between does it again
        promote_trial(run, best)
        report = verify(run.root)
        assert report.is_intact and report.num_manifests == 2 and not report.orphans
        assert [row["step"] for row in read_metrics(run)] == [4]
        assert run.read_text("metrics.jsonl").count("\n") == 1
    assert open_lineage(run.root).last.num_blocks == 2


def test_the_report_says_what_was_found_and_what_it_cost(swept: tuple[Storage, TrialRecord]) -> None:
    run, best = swept
    promote_trial(run, best)
    page = Path(write_report(run.root)).read_text()
    assert "Search: the best of each stage" in page and "−0.2500" in page and "because" in page
    assert "3.00 x" in page and "6.00e+09" not in page.split("Search: what it cost")[0]
    assert (Path(run.root) / "plots/search_learning_rate.png").stat().st_size > 5000
    assert "outcome" in page.split("Search: learning rate")[1].split("Search:")[0], "its points stand under a figure"


def test_a_stage_needs_the_stages_before_it(swept: tuple[Storage, TrialRecord]) -> None:
    run, _ = swept
    given: SweepConfig = config({"stage": 2}, parent=run.root, plan={"stages": [{}, {}, {}], "train": {"steps": 3}})
    planned = _planned_run(given)
    assert planned.parent is not None and planned.parent.endswith("manifests/01-depth-1.json")
    assert len(planned.plan.stage_configs()) == 2
    with pytest.raises(ConfigError, match=r"--stage 3 needs a finished stage 2 of 2 blocks, but stage 1 has 1 block"):
        _planned_run(given.model_copy(update={"sweep": given.sweep.model_copy(update={"stage": 3})}))
    with pytest.raises(ConfigError, match=r"--stage 2: plan.schedule=plan is one schedule of all stages"):
        _planned_run(given.model_copy(update={"plan": given.plan.model_copy(update={"schedule": "plan"})}))


def test_a_sweep_without_a_good_trial_says_how_to_go_on_and_that_works(tmp_path: Path) -> None:
    """The command of its sentence is taken as it stands: only the space differs, and the change is recorded."""
    from growtx.cli.main import parse
    from growtx.run.directory import begin_run, resolve_run_arguments
    from growtx.sweep.config import load_sweep_config
    from growtx.sweep.driver import _SweepRunner

    settings = config(sweep={"space": {"learning_rate": [1.0, 2.0]}})
    run = begin_run(str(tmp_path / "run"), settings, resume=False, console=Console(quiet=True))
    stage = settings.stages()[0]
    tried = [TrialRecord(stage=1, stage_name="s", number=n, values={"learning_rate": 1.0 + n}) for n in range(2)]
    runner = _SweepRunner(settings, settings.run_config(), None, run, None, None)  # type: ignore[arg-type]
    words = shlex.split(runner._gentler(stage, tried))
    assert words[:2] == ["growtx", "sweep"]
    arguments = parse(words[1:])
    again, run_dir = resolve_run_arguments(arguments, SweepConfig, load_sweep_config)
    assert again.sweep.space.learning_rate == (0.1, 0.33)
    begin_run(run_dir, again, resume=True, console=Console(quiet=True))
    assert [change.key for change in read_changes(run)] == ["sweep.space.learning_rate"]
    other = again.model_copy(update={"seed": 5})
    with pytest.raises(ConfigError, match=r"seed differ.* only sweep.space, sweep.num_trials may change"):
        begin_run(run_dir, other, resume=True, console=Console(quiet=True))
