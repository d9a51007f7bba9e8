"""The study of recipes with tiny sizes: every variant of the preset prepares, trains and is compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from growtx.growth.plan import resolve
from growtx.run.prepare import prepare
from growtx.storage import Storage
from growtx.store.verify import verify
from growtx.study.config import StudyConfig, VariantConfig, load_study_config
from growtx.study.results import StudyResults, variant_summaries
from growtx.study.runs import prepare_run, read_result, runs_of
from growtx.train.worker import train_loop_per_worker
from tests.run.configs import write_corpus

pytestmark = pytest.mark.usefixtures("process_group")
TINY = (
    "model={hidden_size: 16, num_attention_heads: 2, context_length: 16}", "tokenizer.vocab_size=275",
    "substrate={kind: binary}", "plan.grow.tokens=320", "plan.grow.blocks=2", "plan.grow.per_stage=1", "seeds=[0]",
    "learning_rates=[6.0e-3]", "training.global_batch_size=2",
    "training.evaluation={num_windows: 2, num_samples: 0}", "data.validation_fraction=0.2",
)  # fmt: skip


def tiny_study(corpus: str) -> StudyConfig:
    config = load_study_config("study-recipes", [*TINY, f"data.sources=[{{files: {corpus}}}]"])
    own = tuple(variant.model_copy(update={"learning_rates": None}) for variant in config.variants)
    return config.model_copy(update={"variants": own})


def test_every_variant_of_the_study_of_recipes_trains_and_is_compared(tmp_path: Path) -> None:
    config = tiny_study(write_corpus(tmp_path))
    study, shared, cache = Storage(str(tmp_path)), Storage(str(tmp_path / "shared")), str(tmp_path / "cache")
    base = config.base_run(VariantConfig(name="shared")).model_copy(update={"cache_dir": cache})
    job = prepare(base, shared).job
    shape = job.model_at(job.stages[-1].num_blocks)
    runs = [run for variant in config.variants for run in runs_of(config, variant, shape, 0)]
    jobs = [prepare_run(run, config, study, shared, cache).job for run in runs]
    outcome = train_loop_per_worker(
        {"jobs": [job.model_dump(mode="json") for job in jobs], "progress_actor": None, "claims": None}
    )
    assert outcome["failed"] == {}
    found = tuple(read_result(run, study) for run in runs)
    assert len(found) == len(config.variants) == 15 and all(run.is_finished for run in found)
    assert [len(run.stages) for run in found] == [len(resolve(run.config.plan)) for run in runs]
    scores = {run.variant: run.bits_per_byte for run in found}
    assert scores["two-expansions-hold-middle"] == scores["two-expansions-hold"], "one block has no middle"
    assert len(set(scores.values())) == len(scores) - 1, "two other recipes did the same"
    results = StudyResults(name="tiny", control=config.control, equal=("flops",), first_seed=0, runs=found)
    assert {row.variant for row in variant_summaries(results)} == set(scores)
    for job in jobs:
        assert verify(job.run_dir).is_intact
