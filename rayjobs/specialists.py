"""Grow several specialists at the same time on one substrate, merge them by their logits, and report what that gains.

python rayjobs/specialists.py                                   the demo: English, Russian and Chinese, into runs/
python rayjobs/specialists.py --preset specialists-text --run-dir runs/three      your files in texts/
python rayjobs/specialists.py --run-dir runs/three --resume     repeats nothing that is finished
ray job submit --working-dir . -- python rayjobs/specialists.py --preset specialists-demo --run-dir /shared/runs/three
"""

from __future__ import annotations

import sys

from growtx.command import job_parser, run_command


def main() -> int:
    arguments = job_parser(__doc__ or "").parse_args()
    from rich.console import Console

    from growtx.pipeline.run_directory import requested_run
    from growtx.pipeline.specialists import grow_specialists
    from growtx.pipeline.specialists_config import SpecialistsConfig, load_specialists_config

    config, run_dir = requested_run(arguments, SpecialistsConfig, load_specialists_config)
    console = Console()
    result = grow_specialists(config, run_dir, resume=arguments.resume, console=console)
    if result.stopped:
        command = f"python rayjobs/specialists.py --resume --run-dir {result.run_dir}"
        console.print(f"stopped; go on with: {command}", soft_wrap=True)
    for merged in result.merges:
        console.print(merged.verdict.sentence(), f"report: {merged.report}", sep="\n", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
