"""The runs of a study: every variant at every learning rate and seed, each as long as the comparison requires."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from growtx.growth.plan import PlanConfig, resolve
from growtx.growth.scaling import Measure, plan_cost, scaled_to
from growtx.models.configuration import GrowtxConfig
from growtx.run.config import RunConfig
from growtx.run.directory import claim
from growtx.run.prepare import Prepared, copy_tokenizer_and_substrate, prepare
from growtx.storage import Storage
from growtx.store.manifest import list_manifests, read_manifest
from growtx.store.run_records import RUN_FILE
from growtx.study.config import StudyConfig, VariantConfig
from growtx.study.results import RunResult, StageResult

RUNS_DIR = "runs"


@dataclass(frozen=True)
class StudyRun:
    """One run of a study."""

    variant: str
    equal: Measure
    learning_rate: float
    seed: int
    config: RunConfig
    flops: float
    num_tokens: int

    @property
    def name(self) -> str:
        return self.config.name


def runs_of(config: StudyConfig, variant: VariantConfig, shape: GrowtxConfig, seed: int) -> Iterator[StudyRun]:
    """The variant's runs on one seed, one for each learning rate and comparison.

    A comparison that needs the same plan as an earlier one (the control's, and any of the same shape) has no runs of
    its own: it reuses the earlier ones.

    Args:
        shape: the base model's; only its blocks and head matter.
    """
    control = next(one for one in config.variants if one.name == config.control)
    reference, base = config.base_run(control), config.base_run(variant)
    per_step = base.training.global_batch_size * base.model.context_length
    known: list[PlanConfig] = []
    for measure in config.equal:
        wanted = plan_cost(shape, resolve(reference.plan), measure, tokens_per_step=per_step)
        plan = scaled_to(base.plan, shape, measure, wanted, tokens_per_step=per_step)
        if plan in known:
            continue
        known.append(plan)
        for rate in config.rates_of(variant):
            tree = plan.model_dump(mode="json")
            tree["train"]["learning_rate"] = rate
            changes = {
                "name": f"{variant.name}-{measure}-lr{rate:g}-seed{seed}",
                "seed": seed,
                "plan": tree,
            }
            run = RunConfig.model_validate({**base.model_dump(mode="json"), **changes})
            stages = resolve(run.plan)
            yield StudyRun(
                variant.name,
                measure,
                rate,
                seed,
                run,
                plan_cost(shape, stages, "flops", tokens_per_step=per_step),
                round(plan_cost(shape, stages, "tokens", tokens_per_step=per_step)),
            )


def prepare_run(run: StudyRun, config: StudyConfig, study: Storage, shared: Storage, cache: str) -> Prepared:
    """Claim the run's directory, with the study's tokenizer and, where it has the same, its substrate."""
    place = study.child(f"{RUNS_DIR}/{run.name}")
    resolved = run.config.model_copy(update={"cache_dir": cache})
    own = claim(place.root, resolved, resume=place.exists(RUN_FILE))
    same = resolved.substrate == config.substrate and resolved.model == config.model
    copy_tokenizer_and_substrate(own, shared, substrate=same and config.substrate.kind != "learned")
    return prepare(resolved, own)


def read_result(run: StudyRun, study: Storage, failure: str = "") -> RunResult:
    """What the run's manifests say so far."""
    own = study.child(f"{RUNS_DIR}/{run.name}")
    manifests = [read_manifest(own, name) for name in list_manifests(own)]
    return RunResult(
        variant=run.variant,
        equal=run.equal,
        learning_rate=run.learning_rate,
        seed=run.seed,
        directory=f"{RUNS_DIR}/{run.name}",
        flops=run.flops,
        num_tokens=run.num_tokens,
        is_finished=len(manifests) == len(resolve(run.config.plan)),
        failure=failure,
        stages=tuple(
            StageResult(
                name=manifest.name,
                num_blocks=manifest.num_blocks,
                bits_per_byte=manifest.metrics["eval/bits_per_byte"],
                bits_per_byte_start=manifest.metrics["eval/bits_per_byte_start"],
                active_parameters=manifest.active_parameters,
                total_parameters=manifest.total_parameters,
                peak_memory_bytes=manifest.metrics["peak_memory_bytes"],
                seconds=manifest.metrics["seconds"],
            )
            for manifest in manifests
        ),
    )
