"""Benchmark scores of a run at every depth, and of monolithic models of the same cost: the block `benchmarks`.

The controls are runs of their own in `RUN/controls/depth-N`; they share the run's tokenizer and substrate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from growtx.command import command_line
from growtx.evaluate.cluster import evaluate_path
from growtx.evaluate.evaluation import resolve_tasks
from growtx.evaluate.results import MICROWORLD_TASK, Evaluation, read_evaluation, save_evaluation
from growtx.exceptions import ConfigError, DataError
from growtx.run.config import BenchmarksConfig, RunConfig, control_plans
from growtx.run.directory import claim, write_status
from growtx.run.prepare import cache_dir, copy_tokenizer_and_substrate, prepare
from growtx.storage import Storage
from growtx.store.manifest import latest_manifest
from growtx.store.run_records import RUN_FILE
from growtx.train.checkpoints import remove_checkpoints
from growtx.train.job import TrainJob
from growtx.train.tracking import TrackingConfig

CONTROLS_DIR = "controls"
CONTROL_VARIANT = "monolithic"


def checked_benchmarks(config: RunConfig) -> BenchmarksConfig:
    """The block as far as it fits the data: microworld questions mean nothing to a model not trained on one.

    Raises:
        ConfigError: a task does not exist, its package is not installed, or a control cannot be made.
    """
    benchmarks = config.benchmarks
    benchmarks.check()
    if not any(source.microworld for source in config.data.sources):
        tasks = tuple(task for task in benchmarks.tasks if not task.startswith(MICROWORLD_TASK))
        controls = benchmarks.controls if tasks else "none"
        benchmarks = benchmarks.model_copy(update={"tasks": tasks, "controls": controls})
    if benchmarks.controls != "none" and config.parent is not None:
        raise ConfigError(
            f"benchmarks.controls={benchmarks.controls}: a run that continues another has no control",
            "Set benchmarks.controls=none",
        )
    control_plans(config.plan, benchmarks.controls)
    return benchmarks


def prepare_controls(config: RunConfig, run: Storage) -> dict[int, TrainJob]:
    """The controls by depth, each in a run directory of its own."""
    jobs = {}
    for depth, plan in control_plans(config.plan, config.benchmarks.controls).items():
        changes = {
            "name": f"{config.name}-control-{depth}",
            "description": f"monolithic, with the FLOPs that {config.name} took to grow {depth} blocks",
            "plan": plan,
            "benchmarks": BenchmarksConfig(),
            "tracking": TrackingConfig(),
            "cache_dir": cache_dir(config, run),
        }
        resolved = config.model_copy(update=changes)
        place = run.child(f"{CONTROLS_DIR}/depth-{depth}")
        own = claim(place.root, resolved, resume=place.exists(RUN_FILE))
        copy_tokenizer_and_substrate(own, run)
        jobs[depth] = prepare(resolved, own).job
        write_status(own, "running", jobs[depth].num_stages)
    return jobs


def finish_controls(controls: Mapping[int, TrainJob]) -> None:
    """Mark finished controls as finished, and remove their checkpoints."""
    for job in controls.values():
        own = job.run_storage
        if latest_manifest(own) is not None:
            remove_checkpoints(own)
            write_status(own, "finished", job.num_stages)


def score_benchmarks(
    config: BenchmarksConfig, run: Storage, controls: Mapping[int, TrainJob], say: Callable[[str], None]
) -> Evaluation | None:
    """Score the run at all depths, and its controls; Ray must be connected. The scores stay in the run directory.

    Missing questions only cause a message: the report of a trained run is still written.
    """
    benchmark = config.benchmark()
    last, before = latest_manifest(run), read_evaluation(run)
    if before and last and last.num_blocks in before.depths and set(resolve_tasks(benchmark)) <= set(before.tasks):
        return before
    try:
        evaluation = evaluate_path(run.root, benchmark, depths="all", command=command_line(), say=say)
        for depth, job in controls.items():
            say(f"monolithic control of {depth} blocks:")
            evaluation = evaluation.beside(evaluate_path(job.run_dir, benchmark, say=say), CONTROL_VARIANT)
    except DataError as error:
        say(f"benchmark scores were not measured: {error}")
        return None
    return save_evaluation(run, evaluation)
