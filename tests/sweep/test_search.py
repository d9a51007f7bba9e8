"""Which trials a sweep has, interrupted or not, and whom the schedulers stop."""

from __future__ import annotations

from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from growtx.compat.ray import PastTrial
from growtx.store.trials import TrialEvaluation, TrialRecord
from growtx.sweep.search import METRIC, RangeConfig, RecordedSearch, Values, make_proposer
from growtx.sweep.trial import FRACTION
from growtx.sweep.tune import SchedulerConfig

DIMENSIONS = {"learning_rate": RangeConfig(low=1e-4, high=1.0, log=True), "init": ("random", "identity")}
PLANNED: Values = {"learning_rate": 5.0, "init": "copy"}  # outside of the space, as a plan may be


def searcher(records: list[TrialRecord] | None = None, *, sampler: Any = "random", num_trials: int = 6) -> Any:
    proposer = make_proposer(sampler, DIMENSIONS, seed=3, stage=2, num_trials=num_trials)
    return RecordedSearch(proposer, records or [], num_trials=num_trials, planned=PLANNED)


def configs(search: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while isinstance(config := search.suggest(str(len(found))), dict):
        found.append(config)
        search.on_trial_complete(str(len(found) - 1), {METRIC: abs(config["values"]["learning_rate"] - 0.01)})
    return found


def as_record(config: dict[str, Any], state: Any, score: float | None = None) -> TrialRecord:
    return TrialRecord(stage=2, stage_name="s", state=state, bits_per_byte=score, **config)


def test_the_first_trial_is_the_plan_itself() -> None:
    found = configs(searcher())
    assert [config["number"] for config in found] == list(range(6))
    assert found[0]["values"] == PLANNED and found[0]["planned"]
    assert not any(config["planned"] for config in found[1:])
    assert len({config["values"]["learning_rate"] for config in found}) == 6, "and every trial has its own values"


def test_an_interrupted_search_ends_with_the_trials_it_would_have_had() -> None:
    whole = configs(searcher())
    records = [
        as_record(whole[0], "finished", 2.0),
        as_record(whole[1], "running"),
        as_record(whole[3], "failed"),
        as_record(whole[2], "stopped", 3.0),
    ]
    resumed = configs(searcher(records))
    assert resumed == [whole[1], whole[4], whole[5]], "what was running first, then what was never begun"


def test_tpe_learns_also_from_recorded_trials() -> None:
    found = configs(searcher(sampler="tpe", num_trials=40))
    assert len(found) == 40
    near = [abs(config["values"]["learning_rate"] - 0.01) < 0.05 for config in found[1:]]
    assert sum(near[20:]) > sum(near[:20]), "later draws lie nearer to the best"
    records = [as_record(config, "finished", abs(config["values"]["learning_rate"] - 0.01)) for config in found[:30]]
    later = configs(searcher(records, sampler="tpe", num_trials=40))
    assert sum(config["values"]["learning_rate"] < 0.1 for config in later) >= 8


def test_a_grid_is_gone_through_once() -> None:
    proposer: Any = make_proposer("grid", {"a": (1, 2), "b": (3, 4)}, seed=0, stage=1, num_trials=99)
    search = RecordedSearch(proposer, [], num_trials=len(proposer), planned=None)
    found = [search.suggest(str(number)) for number in range(4)]
    assert [config["values"] for config in found if isinstance(config, dict)] == [
        {"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4},
    ]  # fmt: skip
    assert search.suggest("4") == RecordedSearch.FINISHED


def test_after_a_stop_nothing_more_is_suggested() -> None:
    search = searcher()
    search.is_stopping = True
    assert search.suggest("0") == RecordedSearch.FINISHED


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_a_bad_trial_is_stopped_also_by_what_was_recorded_before(kind: Any) -> None:
    records = [
        TrialRecord(
            stage=1, stage_name="s", number=number, values={}, state="finished", bits_per_byte=1.0,
            evaluations=[TrialEvaluation(fraction=f, bits_per_byte=2.0 + number / 10) for f in (0.25, 0.5, 0.75)],
        )
        for number in range(4)
    ]  # fmt: skip
    scheduler = SchedulerConfig(kind=kind).build(records)
    for score, decision in ((9.0, TrialScheduler.STOP), (1.0, TrialScheduler.CONTINUE)):
        trial: Any = PastTrial(f"new-{score}")
        scheduler.on_trial_add(None, trial)
        assert scheduler.on_trial_result(None, trial, {FRACTION: 0.25, METRIC: score}) == decision


def test_trials_that_failed_outside_of_a_narrower_space_count_as_none() -> None:
    """A sweep whose trials all failed goes on with lower rates, and keeps what it had."""
    whole = configs(searcher())
    failed = [as_record(config, "failed") for config in whole[1:]]
    records = [as_record(whole[0], "failed"), *failed[:-1], as_record(whole[-1], "stopped", 2.0)]
    low = {"learning_rate": RangeConfig(low=1e-7, high=1e-6, log=True), "init": ("random", "identity")}

    def resumed(dimensions: Any) -> list[dict[str, Any]]:
        proposer = make_proposer("random", dimensions, seed=3, stage=2, num_trials=6)
        return configs(RecordedSearch(proposer, records, num_trials=6, planned=PLANNED, dimensions=dimensions))

    found = resumed(low)
    assert [config["number"] for config in found] == [6, 7, 8, 9], "beside the plan's own and the one that was stopped"
    assert all(1e-7 <= config["values"]["learning_rate"] <= 1e-6 and not config["planned"] for config in found)
    assert resumed(DIMENSIONS) == [], "in the same space nothing is repeated"


def test_another_grid_has_trials_only_for_points_that_nobody_tried() -> None:
    first: Any = make_proposer("grid", {"a": (1, 2), "b": ([3], [4])}, seed=0, stage=1, num_trials=99)
    tried = [as_record({"number": n, "values": first.propose(n), "planned": False}, "finished", 1.0) for n in range(3)]
    tried[1].state = "failed"
    dimensions = {"a": (1, 7), "b": ([3], [4])}
    other: Any = make_proposer("grid", dimensions, seed=0, stage=1, num_trials=99)
    search = RecordedSearch(other, tried, num_trials=len(other), planned=None, dimensions=dimensions)
    found = [search.suggest(str(number)) for number in range(search.num_left)]
    assert [(config["number"], config["values"]) for config in found if isinstance(config, dict)] == [
        (3, {"a": 7, "b": [3]}), (4, {"a": 7, "b": [4]}),
    ]  # fmt: skip


def test_a_space_of_more_dimensions_learns_nothing_from_trials_without_them() -> None:
    records = [
        TrialRecord(stage=1, stage_name="s", number=0, values={"init": "copy"}, state="finished", bits_per_byte=1.0)
    ]
    proposer = make_proposer("tpe", DIMENSIONS, seed=0, stage=1, num_trials=4)
    search = RecordedSearch(proposer, records, num_trials=4, planned=None, dimensions=DIMENSIONS)
    assert search.num_left == 3 and isinstance(search.suggest("a"), dict)
