"""Search learning rates, LoRA ranks, initialisation and batch of stages, on Ray Tune over a shared frozen prefix.

python rayjobs/sweep.py --greedy                                stage by stage, each on the best of the one before
python rayjobs/sweep.py --stage 3 --trials 8 parent=runs/mine   one stage of the plan, on a run that has two
python rayjobs/sweep.py --preset sweep-text --greedy sweep.sampler=tpe data.sources='[{files: "texts/*.parquet"}]'
python rayjobs/sweep.py --run-dir runs/sweep --resume           repeats no trial that has ended
python rayjobs/grow.py --preset runs/sweep/best-plan.yaml       repeats what was found
"""

from __future__ import annotations

import argparse
import sys

from growtx.command import job_parser, run_command
from growtx.exceptions import ConfigError


def main() -> int:
    parser = job_parser(__doc__ or "")
    parser.add_argument("--stage", type=int, help="search this stage alone (from 1)")
    parser.add_argument("--greedy", action="store_true", help="search all stages, one after the other")
    parser.add_argument("--trials", type=int, help="trials of a stage (sweep.num_trials)")
    arguments = parser.parse_args()
    from rich.console import Console

    from growtx.pipeline.run_directory import requested_run
    from growtx.pipeline.sweep_config import SweepConfig, load_sweep_config
    from growtx.pipeline.sweeping import sweep

    arguments.overrides = _overrides(arguments)
    config, run_dir = requested_run(arguments, SweepConfig, load_sweep_config)
    console = Console()
    result = sweep(config, run_dir, resume=arguments.resume, console=console)
    if result.stopped:
        command = f"python rayjobs/sweep.py --resume --run-dir {result.run_dir}"
        console.print(f"stopped; go on with: {command}", soft_wrap=True)
    for name, path in (("best plan", result.best_plan), ("report", result.report)):
        if path:
            console.print(f"{name}: {path}", highlight=False, soft_wrap=True)
    return 0


def _overrides(arguments: argparse.Namespace) -> list[str]:
    """The options as overrides, which the run directory then remembers."""
    if arguments.greedy and arguments.stage is not None:
        raise ConfigError("--greedy and --stage exclude each other", "Give one of them")
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


if __name__ == "__main__":
    sys.exit(run_command(main))
