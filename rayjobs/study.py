"""Compare ways to train on one protocol: equal tokens, equal FLOPs, tuned learning rates, several seeds, one table.

python rayjobs/study.py                                         {grown, monolithic} x {glyph, binary, learned}
python rayjobs/study.py --preset study-growth data.sources='[{files: "texts/*_en.parquet"}]'
python rayjobs/study.py --run-dir runs/study --resume           repeats nothing that is finished
ray job submit --working-dir . -- python rayjobs/study.py --preset study-9 --run-dir /shared/runs/study
"""

from __future__ import annotations

import sys

from growtx.command import job_parser, run_command


def main() -> int:
    arguments = job_parser(__doc__ or "").parse_args()
    from rich.console import Console

    from growtx.evaluate.study_report import sentences
    from growtx.pipeline.run_directory import requested_run
    from growtx.pipeline.study import run_study
    from growtx.pipeline.study_config import StudyConfig, load_study_config

    config, run_dir = requested_run(arguments, StudyConfig, load_study_config)
    console = Console()
    outcome = run_study(config, run_dir, resume=arguments.resume, console=console)
    for sentence in sentences(outcome.results):
        console.print(sentence, highlight=False, soft_wrap=True)
    if outcome.stopped:
        command = f"python rayjobs/study.py --resume --run-dir {outcome.run_dir}"
        console.print(f"stopped; go on with: {command}", soft_wrap=True)
    if outcome.report:
        console.print(f"report: {outcome.report}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
