"""What is measured after a run, and the controls beside it, without a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from growtx.config import build_config
from growtx.evaluate.results import Evaluation, Score, read_evaluation
from growtx.exceptions import ConfigError, DataError
from growtx.growth.plan import PlanConfig, resolve
from growtx.growth.scaling import plan_cost, resolve_matched
from growtx.run import controls
from growtx.run.config import control_plans
from growtx.run.prepare import prepare
from growtx.storage import Storage
from tests.run.configs import config, write_corpus

PLAN = {"grow": {"blocks": 3}, "train": {"steps": 5, "learning_rate": 2e-3}}


def score(depth: int, value: float) -> Score:
    return Score(
        task="microworld_recall", metric="acc", protocol="log-likelihood", depth=depth,
        value=value, low=value - 0.1, high=value + 0.1, num_items=20,
    )  # fmt: skip


def test_every_depth_but_the_first_has_a_control_of_its_own() -> None:
    plans = control_plans(build_config(PlanConfig, PLAN), "all")
    assert {depth: resolve(plan)[0].num_active for depth, plan in plans.items()} == {2: 2, 3: 3}
    assert list(control_plans(build_config(PlanConfig, PLAN), "last")) == [3]
    assert control_plans(build_config(PlanConfig, PLAN), "none") == {}


def test_a_stage_that_adapts_counts_into_its_depths_control() -> None:
    stages = [{}, {}, {"name": "adapt", "add": 0, "active": 0, "lora": {"rank": 2}}, {}]
    plans = control_plans(build_config(PlanConfig, {"stages": stages, "train": {"steps": 4}}), "all")
    assert {depth: resolve(plan)[0].train.steps for depth, plan in plans.items()} == {2: 12, 3: 16}


@pytest.mark.parametrize("change", [{"mode": "monolithic"}, {"train": {"steps": 5, "seconds": 9.0}}])
def test_a_plan_of_unknown_flops_has_no_control(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"benchmarks.controls=last: .*Set benchmarks.controls=none"):
        control_plans(build_config(PlanConfig, PLAN | change), "last")


def test_controls_are_runs_with_the_substrate_and_the_flops_of_the_grown_model(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    run = Storage(str(tmp_path / "run"))
    whole = config(corpus, plan=PLAN, benchmarks={"tasks": ["growtx_arc_easy"], "controls": "all"})
    grown = prepare(whole, run).job
    jobs = controls.prepare_controls(whole, run)
    assert list(jobs) == [2, 3]
    for depth, job in jobs.items():
        assert job.run_dir == f"{run.root}/controls/depth-{depth}"
        assert job.substrate == grown.substrate and job.data_fingerprint == grown.data_fingerprint
        per_step = whole.tokens_per_step
        wanted = plan_cost(grown.model_at(3), grown.stages[:depth], "flops", tokens_per_step=per_step)
        spent = plan_cost(job.model_at(depth), job.stages, "flops", tokens_per_step=per_step)
        one_step = plan_cost(job.model_at(depth), job.stages, "flops", tokens_per_step=per_step) / job.stages[
            0
        ].train.num_steps(per_step)
        assert abs(spent - wanted) <= one_step / 2
    again = controls.prepare_controls(whole, run)  # as after --resume
    assert {depth: job.stages for depth, job in again.items()} == {depth: job.stages for depth, job in jobs.items()}
    assert resolve_matched(PlanConfig.model_validate(PLAN), grown.model_at(3), tokens_per_step=per_step) == grown.stages


def test_questions_of_a_microworld_are_left_out_where_the_data_have_none(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    corpus = write_corpus(tmp_path)
    block = {"tasks": ["microworld", "growtx_arc_easy"], "controls": "last"}
    assert controls.checked_benchmarks(config(corpus, benchmarks=block)).tasks == ("growtx_arc_easy",)
    only = controls.checked_benchmarks(config(corpus, benchmarks={**block, "tasks": ["microworld"]}))
    assert (only.tasks, only.controls) == ((), "none")
    kept = config(corpus, benchmarks=block, data={"sources": [{"microworld": {"num_documents": 50}}]})
    assert controls.checked_benchmarks(kept) == kept.benchmarks


def test_what_cannot_be_measured_is_refused_before_anything_trains(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    corpus = write_corpus(tmp_path)
    with pytest.raises(ConfigError, match="without tasks"):
        controls.checked_benchmarks(config(corpus, benchmarks={"controls": "all"}))
    with pytest.raises(ConfigError, match="continues another"):
        controls.checked_benchmarks(
            config(corpus, parent="runs/old", benchmarks={"tasks": ["growtx_boolq"], "controls": "last"})
        )


def test_scores_of_the_controls_stand_beside_the_runs_and_are_not_measured_twice(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def evaluate(path: str, benchmark: Any, **_: Any) -> Evaluation:
        asked.append(path)
        return Evaluation(model=path, scores=(score(2 if path == "control" else 1, 0.5), score(2, 0.6)))

    monkeypatch.setattr(controls, "evaluate_path", evaluate)
    monkeypatch.setattr(controls, "resolve_tasks", lambda benchmark: ["microworld_recall"])
    block = build_config(controls.BenchmarksConfig, {"tasks": ["microworld_recall"], "controls": "last"})
    control = type("Job", (), {"run_dir": "control"})()
    storage = Storage(str(run_dir))
    found = controls.score_benchmarks(block, storage, {2: control}, say=lambda words: None)
    assert {(each.depth, each.variant) for each in found.scores} == {(1, ""), (2, ""), (2, "monolithic")}
    assert read_evaluation(storage) == found
    assert controls.score_benchmarks(block, storage, {2: control}, say=lambda words: None) == found
    assert asked == [str(run_dir), "control"]


def test_questions_that_cannot_be_had_do_not_cost_the_report(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str, benchmark: Any, **_: Any) -> Evaluation:
        raise DataError("nothing could be scored", "Correct the tasks")

    monkeypatch.setattr(controls, "evaluate_path", fail)
    monkeypatch.setattr(controls, "resolve_tasks", lambda benchmark: ["growtx_mmlu"])
    said: list[str] = []
    block = build_config(controls.BenchmarksConfig, {"tasks": ["growtx_mmlu"]})
    assert controls.score_benchmarks(block, Storage(str(run_dir)), {}, said.append) is None
    assert said == ["benchmark scores were not measured: nothing could be scored. Correct the tasks."]
