"""The runs of a study, their lengths, and the order in which they are trained; training itself is replaced."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from growtx.config import build_config
from growtx.exceptions import ConfigError, DataError, RunsFailedError, TrainingError
from growtx.growth.plan import resolve
from growtx.run.pool import PoolResult, TrainTask
from growtx.store.blobs import BlobStore
from growtx.store.manifest import latest_manifest
from growtx.study import driver
from growtx.study.config import StudyConfig, load_study_config
from growtx.study.driver import StudyOutcome, run_study
from growtx.study.runs import runs_of
from growtx.train.job import TrainJob
from tests import tiny
from tests.run.configs import tree, write_corpus

VARIANTS = [
    {"name": "grown"},
    {"name": "mono", "change": {"plan": {"mode": "monolithic"}}},
    {"name": "mono-learned", "change": {"substrate": {"kind": "learned"}, "plan": {"mode": "monolithic"}}},
]


def config(tmp_path: Path, **changes: Any) -> StudyConfig:
    base = tree(write_corpus(tmp_path), plan={"grow": {"blocks": 2}, "train": {"steps": 30}})
    training = {**base["training"], "prefix": "recompute"}
    own = {"control": "mono", "variants": VARIANTS, "seeds": [0, 1], "training": training}
    return build_config(StudyConfig, {**base, **own, "cache_dir": str(tmp_path / "cache"), **changes})


class Trainer:
    """Stands for the worker groups: finalizes every unfinished stage, except of runs that are to fail."""

    def __init__(self) -> None:
        self.rounds: list[list[str]] = []
        self.failing: dict[str, Exception] = {}

    def together(self, tasks: list[TrainTask], **_: Any) -> PoolResult:
        jobs = tasks[0].jobs if tasks else ()
        self.rounds.append([job.run_dir.rsplit("/", 1)[-1] for job in jobs])
        failed: dict[str, Any] = {}
        for job in jobs:
            name = job.run_dir.rsplit("/", 1)[-1]
            if name in self.failing:
                failed[job.run_dir] = self.failing[name]
            else:
                self._finalize(job)
        return PoolResult(failed={"worker group 1": RunsFailedError(failed)} if failed else {})

    def _finalize(self, job: TrainJob) -> None:
        rate = job.stages[0].train.learning_rate
        store = BlobStore(job.run_dir)
        for stage in job.stages:
            before = latest_manifest(store.storage)
            scores = {"eval/bits_per_byte": 1 + rate, "eval/bits_per_byte_start": 2.0}
            metrics = {**scores, "peak_memory_bytes": 1, "seconds": 1.0}
            model = job.model_at(stage.num_blocks)
            tiny.write_stage(store, stage, model, job.substrate.blob, before, metrics=metrics)


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    class Connected:
        def __init__(self, *_: Any, **__: Any) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    made = Trainer()
    monkeypatch.setattr(driver, "train_concurrently", made.together)
    monkeypatch.setattr(driver, "connected", Connected)
    monkeypatch.setattr(driver, "check_cluster", lambda resources: None)
    monkeypatch.setattr(driver, "cluster_capacity", lambda: (2.0, 0.0))
    monkeypatch.setattr(driver, "start_registry", lambda study: None)
    monkeypatch.setattr("growtx.study.report.save", lambda draw, storage, name: "")
    return made


def go(config: StudyConfig, tmp_path: Path, **options: Any) -> StudyOutcome:
    return run_study(config, str(tmp_path / "study"), console=Console(file=io.StringIO()), **options)


def test_variants_of_one_shape_share_the_runs_of_both_comparisons(trainer: Trainer, tmp_path: Path) -> None:
    outcome = go(config(tmp_path, seeds=[0]), tmp_path)
    assert trainer.rounds == [
        [
            "grown-tokens-lr0.001-seed0",
            "grown-flops-lr0.001-seed0",
            "mono-tokens-lr0.001-seed0",
            "mono-learned-tokens-lr0.001-seed0",
        ]
    ]
    by_name = {run.directory.rsplit("/", 1)[-1]: run for run in outcome.results.runs}
    control = by_name["mono-tokens-lr0.001-seed0"]
    assert by_name["grown-tokens-lr0.001-seed0"].num_tokens == control.num_tokens
    assert by_name["grown-flops-lr0.001-seed0"].flops == pytest.approx(control.flops, rel=0.02)
    assert by_name["grown-flops-lr0.001-seed0"].num_tokens > control.num_tokens
    assert outcome.report is not None and Path(outcome.report).is_file()


def test_rates_are_tried_on_the_first_seed_and_the_best_serves_the_others(trainer: Trainer, tmp_path: Path) -> None:
    go(config(tmp_path, equal=["tokens"], learning_rates=[2e-3, 1e-3], variants=VARIANTS[:2]), tmp_path)
    first, second = trainer.rounds
    assert len(first) == 4 and second == ["grown-tokens-lr0.001-seed1", "mono-tokens-lr0.001-seed1"]


def test_finished_runs_are_not_repeated_and_a_variant_may_be_added(trainer: Trainer, tmp_path: Path) -> None:
    go(config(tmp_path, variants=VARIANTS[:2], equal=["tokens"]), tmp_path)
    go(config(tmp_path, equal=["tokens"]), tmp_path, resume=True)
    assert trainer.rounds[1] == ["mono-learned-tokens-lr0.001-seed0", "mono-learned-tokens-lr0.001-seed1"]


def test_a_run_that_diverges_is_a_result_and_the_study_goes_on(trainer: Trainer, tmp_path: Path) -> None:
    trainer.failing = {"grown-tokens-lr0.001-seed0": TrainingError("the loss is not finite")}
    outcome = go(config(tmp_path, seeds=[0], equal=["tokens"]), tmp_path)
    failed = [run for run in outcome.results.runs if run.failure]
    assert [run.variant for run in failed] == ["grown"] and "not finite" in failed[0].failure


def test_what_is_wrong_with_the_data_ends_the_study(trainer: Trainer, tmp_path: Path) -> None:
    trainer.failing = {"grown-tokens-lr0.001-seed0": DataError("a file is gone")}
    with pytest.raises(DataError, match="a file is gone"):
        go(config(tmp_path, seeds=[0], equal=["tokens"]), tmp_path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"control": "other"}, "control=other is not one of the variants"),
        ({"variants": [VARIANTS[1], VARIANTS[1]]}, "a name of its own"),
        ({"variants": [{"name": "mono", "change": {"plan": {"mode": "backwards"}}}]}, "variant mono: plan.mode"),
    ],
)
def test_a_study_that_cannot_be_is_refused_before_anything_runs(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        config(tmp_path, **changes)


def test_a_preset_of_one_run_becomes_the_base_of_the_default_variants() -> None:
    found = load_study_config("study-9", [])
    assert found.model.hidden_size == 1024 and len(found.variants) == 6
    grown, learned = (found.base_run(found.variants[index]) for index in (0, 2))
    assert [stage.add for stage in grown.plan.stage_configs()] == [3, 3, 3]
    assert [stage.train_substrate for stage in learned.plan.stage_configs()] == [True, False, False]
    with pytest.raises(ConfigError, match="neither a study preset"):
        load_study_config("specialists-demo", [])


def test_the_demo_too_can_be_the_base_of_a_study() -> None:
    assert load_study_config("demo", []).plan.budget.active_parameters is None


@pytest.mark.parametrize("preset", ["study-demo", "study-growth", "study-recipes", "study-substrates"])
def test_shipped_studies_are_valid(preset: str) -> None:
    assert load_study_config(preset, []).kind == "study"


def test_the_first_names_of_a_studys_keys_are_still_read(tmp_path: Path) -> None:
    old = ["tasks=[growtx_boolq]", "task_limit=3", "data_dir=/questions", "lanes=2"]
    chosen = {"tasks": ["growtx_boolq"], "limit": 3, "data_dir": "/questions"}
    new = config(tmp_path, benchmarks=chosen, max_concurrent=2)
    given = {"tasks": ["growtx_boolq"], "task_limit": 3, "data_dir": "/questions", "lanes": 2}
    assert config(tmp_path, **given) == new
    assert load_study_config(None, old).benchmarks == new.benchmarks
    assert load_study_config(None, old).max_concurrent == 2
    benchmark = new.benchmarks.benchmark()
    assert (benchmark.limit, benchmark.protocols) == (3, ("log-likelihood", "sampled letter"))
    assert not new.base_run(new.variants[0]).benchmarks.tasks


def test_the_study_of_recipes_gives_every_variant_the_flops_of_its_control_at_any_length() -> None:
    """With tiny sizes: what a run of it costs is computed as in the study itself."""
    config = load_study_config("study-recipes", ["plan.grow.tokens=40_000", "seeds=[0]", "learning_rates=[1.0e-3]"])
    shape = config.model.architecture(
        vocab_size=1024, num_blocks=6, final_num_blocks=6, substrate_width=64, expansion="none"
    )
    runs = {variant.name: next(runs_of(config, variant, shape, 0)) for variant in config.variants}
    control = runs["monolithic"]
    assert control.num_tokens == pytest.approx(40_000, rel=0.03)
    assert all(run.flops == pytest.approx(control.flops, rel=0.03) for run in runs.values())
    held = [name for name, run in runs.items() if resolve(run.config.plan)[0].span is not None]
    assert held == [name for name in runs if "hold" in name] and len(held) == 11
    assert runs["two-expansions-hold-muon"].num_tokens < runs["two-expansions-hold"].num_tokens, "Muon is paid for"
    assert runs["two-expansions-unfrozen"].num_tokens < runs["two-expansions"].num_tokens, "so are gradients"
