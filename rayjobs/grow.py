"""Grow a model stage by stage on a frozen substrate.

python rayjobs/grow.py                                          the demo, into runs/demo-TIME
python rayjobs/grow.py --preset demo data.sources='[{files: "texts/*.parquet"}]'
python rayjobs/grow.py --run-dir runs/mine --resume             go on with a run that was interrupted
ray job submit --working-dir . -- python rayjobs/grow.py --preset demo --run-dir /shared/runs/mine
"""

from __future__ import annotations

import sys

from growtx.command import job_parser, run_command


def main() -> int:
    arguments = job_parser(__doc__ or "").parse_intermixed_args()
    from rich.console import Console

    from growtx.pipeline.growing import grow
    from growtx.pipeline.run_config import RunConfig, load_run_config
    from growtx.pipeline.run_directory import requested_run

    config, run_dir = requested_run(arguments, RunConfig, load_run_config)
    console = Console()
    result = grow(config, run_dir, resume=arguments.resume, console=console)
    console.print(f"phases: {', '.join(f'{name} {seconds:g} s' for name, seconds in result.seconds.items())}")
    if result.stopped:
        console.print(
            f"stopped; go on with: python rayjobs/grow.py --resume --run-dir {result.run_dir}", soft_wrap=True
        )
    if result.report:
        console.print(f"report: {result.report}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
