"""The jobs of the `growtx` command: what takes minutes to days, and what `ray job submit` runs.

Each job has one function that declares its options and one that runs it. Heavy libraries are imported when a job runs,
so that `growtx --help` stays quick.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from growtx.command import add_command, add_job_options, command_line, resume_command
from growtx.config import load_preset
from growtx.exceptions import ConfigError

if TYPE_CHECKING:
    from growtx.command import Commands
    from growtx.run.config import JobConfig

GROW = """Grow a model stage by stage on a frozen substrate.

growtx grow                                          the demo, into runs/demo-TIME
growtx grow --preset demo data.sources='[{files: "texts/*.parquet"}]'
growtx grow --run-dir runs/mine --resume             continue a run that was interrupted
ray job submit --working-dir . -- python rayjobs/grow.py --preset demo --run-dir /shared/runs/mine"""

SPECIALISTS = """Grow several specialists at the same time on one substrate, merge their logits, report what that gains.

growtx specialists                                   the demo: English, Russian and Chinese, into runs/
growtx specialists --preset specialists-text --run-dir runs/three        your files in texts/
growtx specialists --run-dir runs/three --resume     continue, without repeating what is finished
ray job submit --working-dir . -- python rayjobs/specialists.py --run-dir /shared/runs/three"""

ADD = """Add a language or domain to merged specialists: a branch on new text, and a receipt that no old text has lost.

growtx add runs/three ja data.sources='[{files: "texts/*_ja.parquet"}]'
growtx add runs/three ja data.sources='[{files: "texts/*_ja.parquet"}]' plan.train.tokens=500_000
growtx add runs/three ja --resume                    continue one that was interrupted
What is in service then is named when it ends; nothing that was there before is changed."""

SWEEP = """Search learning rates, LoRA ranks, initialisation and batch size of stages with Ray Tune.

growtx sweep --greedy                                stage by stage, each on the best of the previous one
growtx sweep --stage 3 --trials 8 parent=runs/mine   one stage of the plan, on a run that has two
growtx sweep --preset sweep-text --greedy sweep.sampler=tpe data.sources='[{files: "texts/*.parquet"}]'
growtx sweep --run-dir runs/sweep --resume           continue, without repeating trials that have ended
growtx grow --preset runs/sweep/best-plan.yaml       grow with the best values found"""

STUDY = """Compare ways to train under one protocol: equal tokens or FLOPs, tuned learning rates, several seeds.

growtx study                                         {grown, monolithic} x {glyph, binary, learned}
growtx study --preset study-growth data.sources='[{files: "texts/*_en.parquet"}]'
growtx study --run-dir runs/study --resume           continue, without repeating what is finished
ray job submit --working-dir . -- python rayjobs/study.py --preset study-9 --run-dir /shared/runs/study"""

EVALUATE = """Score a run, a manifest, an ensemble or a Hugging Face directory, at one or all depths.

growtx evaluate --model runs/demo-TIME --depths all
growtx evaluate --model runs/mine --tasks mmlu,arc_easy,squad_v2 --data-dir DIR --depths all
growtx evaluate --model runs/ru --model runs/zh --model runs/merged --tasks mmlu --data-dir DIR
The results go to evaluation.json beside the model and into the run's report.html; several models share a page."""

SERVE = """Serve a result over HTTP, OpenAI-compatible, on a Ray of its own or on the cluster at RAY_ADDRESS.

growtx serve runs/mine
growtx serve runs/mine num_replicas=2 max_queue=64
growtx serve runs/english runs/russian rule=mixture  an ensemble of several"""

BENCHMARK = """Performance as ratios, each beside its bound. Benchmarks are part of a checkout, not of the package.

growtx benchmark --help                              lists them"""


def add_jobs(commands: Commands) -> None:
    """Declare all jobs below the `growtx` command."""
    grow = add_command(commands, "grow", _grow, "grow a model stage by stage", GROW)
    add_job_options(grow)
    grow.add_argument(
        "--here",
        action="store_true",
        help="in this process, without Ray: to debug, to profile; benchmarks are scored on the CPU",
    )
    add_job_options(
        add_command(commands, "specialists", _specialists, "grow specialists side by side, and merge them", SPECIALISTS)
    )
    _add_addition(commands)
    sweep = add_command(commands, "sweep", _sweep, "search learning rates and more with Ray Tune", SWEEP)
    add_job_options(sweep)
    sweep.add_argument("--stage", type=int, help="search only this stage (from 1)")
    sweep.add_argument("--greedy", action="store_true", help="search all stages, one after the other")
    sweep.add_argument("--trials", type=int, help="trials of a stage (sweep.num_trials)")
    add_job_options(add_command(commands, "study", _study, "compare ways to train under one protocol", STUDY))
    _add_evaluate(commands)
    _add_serve(commands)
    benchmark = add_command(commands, "benchmark", _benchmark, "measure performance as ratios", BENCHMARK)
    benchmark.add_argument("arguments", nargs=argparse.REMAINDER, metavar="NAME ...")


def _add_addition(commands: Commands) -> None:
    add = add_command(commands, "add", _add, "add a language or domain to merged specialists", ADD)
    add.add_argument("run", metavar="RUN", help="directory that `growtx specialists` has made")
    add.add_argument("name", metavar="NAME", help="of the new member")
    add.add_argument("--resume", action="store_true", help="continue an addition that was interrupted or refused")
    add.add_argument("--rule", help="combination rule with the new member (default: the one there is)")
    add.add_argument(
        "--max-regression", type=float, default=0.005, metavar="SHARE",
        help="refuse if any old text gets worse by more (default: 0.005)",
    )  # fmt: skip
    add.add_argument("overrides", nargs="*", metavar="key=value", help="data, and plan, seed, resources of its own")
    remove = add_command(commands, "remove", _remove, "take the newest addition out of service again")
    remove.add_argument("run", metavar="RUN", help="directory that `growtx specialists` has made")
    remove.add_argument("name", metavar="NAME", help="of the member that was added last")


def _add_evaluate(commands: Commands) -> None:
    evaluate = add_command(
        commands, "evaluate", _evaluate, "score results on benchmarks and in bits per byte", EVALUATE
    )
    evaluate.add_argument("--model", action="append", required=True, metavar="PATH", help="repeat it to compare models")
    evaluate.add_argument(
        "--tasks", help="names, comma-separated (default: bits_per_byte, and microworld if trained on one)"
    )
    evaluate.add_argument("--depths", default="last", help="all, last, or numbers of blocks, comma-separated")
    evaluate.add_argument("--data-dir", help="directory of the JSON Lines files for growtx's own tasks")
    evaluate.add_argument("--texts", action="append", metavar="GLOB", help="files for bits_per_byte")
    evaluate.add_argument("--limit", type=int, help="questions per task (default: all)")
    evaluate.add_argument("--control", metavar="PATH", help="a control whose scores are drawn in the same figures")
    evaluate.add_argument(
        "--maps", action="store_true", help="also draw t-SNE maps of the substrate and of every layer"
    )
    evaluate.add_argument("--out", help="where to write the page of several models (default: runs/comparison-TIME)")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help="num_runs=10, temperature=1.0, seed=0, ...")


def _add_serve(commands: Commands) -> None:
    serve = add_command(commands, "serve", _serve, "serve a result over HTTP", SERVE)
    serve.add_argument("models", nargs="+", metavar="MODEL|key=value", help="paths; settings of the server")
    serve.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets the network in (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, default=8000)


def _grow(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from growtx.run.config import RunConfig, load_run_config
    from growtx.run.data_check import accepting_new_data
    from growtx.run.directory import resolve_run_arguments
    from growtx.run.grow import grow

    config, run_dir = resolve_run_arguments(arguments, RunConfig, load_run_config)
    console = Console()
    with accepting_new_data(arguments.accept_new_data, resume=arguments.resume):
        result = grow(config, run_dir, resume=arguments.resume, console=console, here=arguments.here)
    console.print(f"phases: {', '.join(f'{name} {seconds:g} s' for name, seconds in result.seconds.items())}")
    _say_how_it_ended(console, "grow", result)
    return 0


def _specialists(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from growtx.run.data_check import accepting_new_data
    from growtx.run.directory import resolve_run_arguments
    from growtx.specialists.config import SpecialistsConfig, load_specialists_config
    from growtx.specialists.driver import grow_specialists

    config, run_dir = resolve_run_arguments(arguments, SpecialistsConfig, load_specialists_config)
    console = Console()
    with accepting_new_data(arguments.accept_new_data, resume=arguments.resume):
        result = grow_specialists(config, run_dir, resume=arguments.resume, console=console)
    _say_how_it_ended(console, "specialists", result)
    for merged in result.merges:
        console.print(merged.verdict.sentence(), f"report: {merged.report}", sep="\n", highlight=False, soft_wrap=True)
    return 0


def _add(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from growtx.specialists.additions import add_member, receipt_sentences

    console = Console()
    result = add_member(
        arguments.run,
        arguments.name,
        arguments.overrides,
        resume=arguments.resume,
        rule=arguments.rule,
        max_regression=arguments.max_regression,
        console=console,
    )
    if result.receipt is None:
        again = shlex.join(["growtx", "add", arguments.run, arguments.name, "--resume"])
        console.print(f"stopped; continue with: {again}", soft_wrap=True)
        return 0
    for sentence in (*receipt_sentences(result.receipt), f"report: {result.report}", f"in service: {result.ensemble}"):
        console.print(sentence, highlight=False, soft_wrap=True)
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    from growtx.specialists.additions import remove_member

    print(f"in service: {remove_member(arguments.run, arguments.name)}")
    return 0


def _sweep(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from growtx.run.data_check import accepting_new_data
    from growtx.run.directory import resolve_run_arguments
    from growtx.sweep.config import SweepConfig, load_sweep_config
    from growtx.sweep.driver import sweep

    arguments.overrides = _sweep_overrides(arguments)
    config, run_dir = resolve_run_arguments(arguments, SweepConfig, load_sweep_config)
    console = Console()
    with accepting_new_data(arguments.accept_new_data, resume=arguments.resume):
        result = sweep(config, run_dir, resume=arguments.resume, console=console)
    if result.best_plan:
        console.print(f"best plan: {result.best_plan}", highlight=False, soft_wrap=True)
    _say_how_it_ended(console, "sweep", result)
    return 0


def _sweep_overrides(arguments: argparse.Namespace) -> list[str]:
    """The options as overrides, which the run directory then remembers."""
    if arguments.greedy and arguments.stage is not None:
        raise ConfigError("--greedy and --stage are mutually exclusive", "Give only one")
    if not (arguments.greedy or arguments.stage is not None or arguments.resume):
        raise ConfigError("neither --stage nor --greedy is given", "Say which stage to search, or --greedy for all")
    overrides = list(arguments.overrides)
    if arguments.greedy:
        overrides.append("sweep.stage=null")
    if arguments.stage is not None:
        overrides.append(f"sweep.stage={arguments.stage}")
    if arguments.trials is not None:
        overrides.append(f"sweep.num_trials={arguments.trials}")
    return overrides


def _study(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from growtx.run.data_check import accepting_new_data
    from growtx.run.directory import resolve_run_arguments
    from growtx.study.config import StudyConfig, load_study_config
    from growtx.study.driver import run_study
    from growtx.study.report import sentences

    config, run_dir = resolve_run_arguments(arguments, StudyConfig, load_study_config)
    console = Console()
    with accepting_new_data(arguments.accept_new_data, resume=arguments.resume):
        outcome = run_study(config, run_dir, resume=arguments.resume, console=console)
    for sentence in sentences(outcome.results):
        console.print(sentence, highlight=False, soft_wrap=True)
    _say_how_it_ended(console, "study", outcome)
    return 0


def _say_how_it_ended(console: Any, job: str, result: Any) -> None:
    """How to go on with a job that was stopped, and the page to open."""
    if result.stopped:
        console.print(f"stopped; continue with: {resume_command(job, result.run_dir)}", soft_wrap=True)
    if getattr(result, "report", None):
        console.print(f"report: {result.report}", highlight=False, soft_wrap=True)


def _evaluate(arguments: argparse.Namespace) -> int:
    from growtx.evaluate.cluster import default_tasks, evaluate_path, map_path
    from growtx.evaluate.evaluation import benchmark_config, resolve_tasks
    from growtx.growth.results import find_result
    from growtx.report.comparison import write_comparison
    from growtx.report.publish import publish
    from growtx.storage import Storage, resolve_address
    from growtx.train.cluster import connected
    from growtx.train.settings import ResourcesConfig

    command = command_line()
    evaluations = {}
    models = {result.address: result for result in map(find_result, arguments.model)}
    configs = {
        path: benchmark_config(
            arguments.overrides,
            tasks=arguments.tasks.split(",") if arguments.tasks else default_tasks(path),
            data_dir=arguments.data_dir and resolve_address(arguments.data_dir),
            texts=arguments.texts,
            limit=arguments.limit,
        )
        for path in models
    }
    for config in configs.values():
        resolve_tasks(config)  # report a wrong name before starting a cluster for it
    with connected(ResourcesConfig()):
        for path, config in configs.items():
            if arguments.maps:
                map_path(path, command=command)
            evaluations[path] = evaluate_path(path, config, depths=arguments.depths, command=command)
            if arguments.control:
                control = evaluate_path(arguments.control, config, depths="all")
                evaluations[path] = evaluations[path].beside(control, "control")
            print(f"report: {publish(models[path].home, evaluations[path])}")
    if len(evaluations) > 1:
        out = arguments.out or f"runs/comparison-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
        print(f"comparison: {write_comparison(evaluations, Storage(resolve_address(out)), command=command)}")
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    from growtx.serving.local import serve_in_foreground

    models = [word for word in arguments.models if "=" not in word]
    settings = dict(word.split("=", 1) for word in arguments.models if "=" in word)
    if models:
        settings["model"] = models[0] if len(models) == 1 else models
    serve_in_foreground(settings, host=arguments.host, port=arguments.port)
    return 0


def _benchmark(arguments: argparse.Namespace) -> int:
    try:
        from benchmarks.__main__ import main
    except ImportError as error:
        raise ConfigError(
            f"the benchmarks cannot be run from here: {error}",
            "Benchmarks come with the sources: run `growtx benchmark` in a checkout, where `make install` was run",
        ) from error
    return main(arguments.arguments)


def load_config(preset: str) -> JobConfig:
    """The resolved configuration of a preset of any kind of job, told by its key `kind` (none: of `growtx grow`).

    Raises:
        ConfigError: naming key, value and remedy.
    """
    from growtx.run.config import load_run_config
    from growtx.specialists.config import load_specialists_config
    from growtx.study.config import load_study_config
    from growtx.sweep.config import load_sweep_config

    loaders: dict[str, Callable[[str, list[str]], JobConfig]] = {
        "specialists": load_specialists_config,
        "study": load_study_config,
        "sweep": load_sweep_config,
    }
    load: Callable[[str, list[str]], JobConfig] = loaders.get(load_preset(preset).get("kind", ""), load_run_config)
    return load(preset, [])
