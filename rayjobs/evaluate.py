"""Score a run, a manifest, an ensemble or a Hugging Face directory, at one or all depths.

python rayjobs/evaluate.py --model runs/demo-TIME --depths all
python rayjobs/evaluate.py --model runs/mine --tasks mmlu,arc_easy,squad_v2 --data-dir ../shared/data/evals --depths all
python rayjobs/evaluate.py --model runs/ru --model runs/zh --model runs/merged --tasks mmlu --data-dir DIR
Results go to evaluation.json beside the model and into the run's report.html; several models get a page together.
"""

from __future__ import annotations

import argparse
import sys
from datetime import datetime

from growtx.command import command_line, run_command


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, metavar="PATH", help="repeat it to compare models")
    parser.add_argument("--tasks", help="names with commas (default: bits_per_byte, and microworld if trained on one)")
    parser.add_argument("--depths", default="last", help="all, last, or numbers of blocks with commas")
    parser.add_argument("--data-dir", help="directory of the JSON lines that growtx's own tasks read")
    parser.add_argument("--texts", action="append", metavar="GLOB", help="files for bits_per_byte")
    parser.add_argument("--limit", type=int, help="questions per task (default: all)")
    parser.add_argument(
        "--control", metavar="PATH", help="a control (monolithic run) whose scores stand in the same figures"
    )
    parser.add_argument("--maps", action="store_true", help="also t-SNE maps of the substrate and of every layer")
    parser.add_argument("--out", help="where the page of several models goes (default: runs/comparison-TIME)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="num_runs=10, temperature=1.0, seed=0, ...")
    return parser.parse_intermixed_args()


def main() -> int:
    arguments = parse()
    from growtx.evaluate.comparison import write_comparison
    from growtx.evaluate.depths import default_tasks, evaluate_path, map_path, publish
    from growtx.evaluate.evaluation import benchmark_config, resolve_tasks
    from growtx.location import locate
    from growtx.store.storage import Storage
    from growtx.train.cluster import connected
    from growtx.train.settings import ResourcesConfig

    command = command_line()
    evaluations = {}
    models = [locate(path) for path in arguments.model]
    configs = {
        path: benchmark_config(
            arguments.overrides,
            tasks=arguments.tasks.split(",") if arguments.tasks else default_tasks(path),
            data_dir=arguments.data_dir and locate(arguments.data_dir),
            texts=arguments.texts,
            limit=arguments.limit,
        )
        for path in models
    }
    for config in configs.values():
        resolve_tasks(config)  # a wrong name is said before a cluster is started for it
    with connected(ResourcesConfig()):
        for path, config in configs.items():
            if arguments.maps:
                map_path(path, command=command)
            evaluations[path] = evaluate_path(path, config, depths=arguments.depths, command=command)
            if arguments.control:
                control = evaluate_path(locate(arguments.control), config, depths="all")
                evaluations[path] = evaluations[path].beside(control, "control")
            print(f"report: {publish(path, evaluations[path])}")
    if len(evaluations) > 1:
        out = arguments.out or f"runs/comparison-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
        print(f"comparison: {write_comparison(evaluations, Storage(locate(out)), command=command)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
