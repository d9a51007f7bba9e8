"""Performance as ratios, each beside its bound, measured by running the ways in turn.

python rayjobs/benchmark.py growth                 a stage's step against the monolithic one, over the depth
python rayjobs/benchmark.py growth --depths 2,12 --rounds 15
"""

from __future__ import annotations

import argparse
import sys

from growtx.command import run_command
from growtx.exceptions import ConfigError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benchmarks = parser.add_subparsers(required=True, dest="benchmark")
    growth = benchmarks.add_parser("growth", help="step time and memory of growing against monolithic training")
    growth.add_argument("--depths", default="2,4,8,12", help="comma-separated")
    growth.add_argument("--rounds", type=int, default=7)
    growth.set_defaults(run=_growth)
    arguments = parser.parse_args()
    return int(arguments.run(arguments))


def _growth(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from growtx.train.benchmark import Shape, peak_memory, step_ratios

    try:
        depths = [int(depth) for depth in arguments.depths.split(",")]
    except ValueError as error:
        raise ConfigError(f"--depths {arguments.depths}: not numbers", "Write them as 2,4,8,12") from error
    shape, console = Shape(), Console()
    table = Table(title=f"Step time, one thread, {shape}", title_justify="left")
    for column in ("depth", "way", "ms / step", "of monolithic", "FLOP bound", "of the bound"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for row in step_ratios(shape, depths, rounds=arguments.rounds):
        above = row.ratio / row.bound
        ms = f"{row.seconds * 1e3:.1f}"
        table.add_row(str(row.depth), row.way, ms, f"{row.ratio:.3f}", f"{row.bound:.3f}", f"{above:.2f} x")
    console.print(table)
    table = Table(title="Peak memory above an empty worker's", title_justify="left")
    for column in ("depth", "way", "MiB", "frozen weights, MiB"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for depth in (depths[0], depths[-1]):
        for way in ("monolithic", "recompute", "cache"):
            memory = peak_memory(shape, depth, way)
            mib = f"{memory.peak_bytes / 2**20:.0f}"
            table.add_row(str(depth), way, mib, f"{memory.frozen_bytes / 2**20:.0f}")
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
