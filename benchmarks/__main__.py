"""Performance as ratios, each with its bound, measured by running the alternatives in turn.

growtx benchmark growth                 a stage's step relative to the monolithic one, by depth
growtx benchmark growth --depths 2,12 --rounds 15 --workers none     without Ray: steps and memory alone
growtx benchmark prefix                 a whole stage at depth 8 from disk, with and without the prefix cache
growtx benchmark substrate              building 65,536 x 1024, relative to the plain procedure
growtx benchmark tokenizers --texts 'texts/*.parquet' --tokenizer GPT-2=gpt2.tiktoken
growtx benchmark packing --texts 'texts/*.parquet'      200 MB of them on clusters of 1, 2 and 4 one-CPU nodes
growtx benchmark serving                an ensemble at 1, 8 and 32 clients against what else would serve it
growtx benchmark serving --trunk        members that share half of their blocks, relative to one member
growtx benchmark serving --depths       all depths of a grown model in one engine, relative to an engine for each
growtx benchmark speculation runs/mine  one text at a time, drafted by every lower depth, relative to plain decoding
growtx benchmark choosing               the next tokens of 32 texts against the sampling of transformers
growtx benchmark gpu                    the LM head and whole steps on one GPU, beside its peak
growtx benchmark serving --soak 600     ten minutes of mixed traffic: answers, memory, threads
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from growtx.command import run_command
from growtx.exceptions import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark and print its table; returns the exit status."""
    arguments = parse(argv)
    return int(arguments.run(arguments))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a benchmark, and as `run` the function that runs it."""
    parser = argparse.ArgumentParser(
        prog="growtx benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    benchmarks = parser.add_subparsers(required=True, dest="benchmark")
    growth = benchmarks.add_parser("growth", help="step time and memory of growing against monolithic training")
    growth.add_argument("--depths", default="2,4,8,12", help="comma-separated")
    growth.add_argument("--rounds", type=int, default=7)
    growth.add_argument("--workers", default="1,2", help="comma-separated numbers of Ray workers; 'none': no Ray")
    growth.add_argument("--width", type=int, default=256, help="hidden size")
    growth.set_defaults(run=_growth)
    prefix = benchmarks.add_parser("prefix", help="a whole stage with and without the prefix cache, filling included")
    prefix.add_argument("--passes", default="1,2,4,8", help="comma-separated numbers of trials, or of epochs")
    prefix.add_argument("--depth", type=int, default=8)
    prefix.add_argument("--steps", type=int, default=24, help="of a pass")
    prefix.add_argument("--rounds", type=int, default=3)
    prefix.set_defaults(run=_prefix)
    substrate = benchmarks.add_parser("substrate", help="time and memory of building a substrate")
    substrate.add_argument("--vocabulary", default="unicode-2-3", choices=["unicode-2-3", "unicode-max"])
    substrate.add_argument("--hidden-size", type=int, default=1024)
    substrate.add_argument("--cell-pixels", type=int, default=32, choices=[32, 64])
    substrate.set_defaults(run=_substrate)
    tokenizers = benchmarks.add_parser("tokenizers", help="speed and compression of tokenizers on the same text")
    tokenizers.add_argument("--texts", required=True, help="glob of files; their column `lang` names the language")
    tokenizers.add_argument(
        "--tokenizer",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="also measure this one: a Hugging Face directory, a .tiktoken or a tekken.json file",
    )
    tokenizers.add_argument("--max-bytes", type=int, default=2_000_000, help="maximum bytes of text per language")
    tokenizers.set_defaults(run=_tokenizers)
    packing = benchmarks.add_parser("packing", help="text to windows on clusters of one-CPU nodes")
    packing.add_argument("--texts", required=True, help="glob of files; their text is repeated with a salt")
    packing.add_argument("--megabytes", type=int, default=200)
    packing.add_argument("--nodes", default="1,2,4", help="comma-separated")
    packing.add_argument("--rounds", type=int, default=1)
    packing.set_defaults(run=_packing)
    _add_serving(benchmarks)
    gpu = benchmarks.add_parser("gpu", help="the LM head's loss and a stage's step on one GPU")
    gpu.add_argument("--peak-tflops", type=float, default=989.0, help="dense bf16 peak of the card (H100 SXM: 989)")
    gpu.set_defaults(run=_gpu)
    choosing = benchmarks.add_parser("choosing", help="the next tokens of a batch, from their scores")
    choosing.add_argument("--vocabularies", default="8192,65536,131072", help="comma-separated sizes")
    choosing.add_argument("--device", default="cpu", help="cpu, cuda")
    choosing.set_defaults(run=_choosing)
    return parser.parse_args(argv)


def _add_serving(benchmarks: Any) -> None:
    serving = benchmarks.add_parser("serving", help="tokens per second and latencies of an ensemble")
    serving.add_argument(
        "--soak", type=float, metavar="SECONDS", help="run mixed traffic for this long instead, on a local Ray"
    )
    serving.add_argument(
        "--warm-up", type=float, default=180.0, metavar="SECONDS", help="time that --soak runs before it measures"
    )
    serving.add_argument("--trunk", action="store_true", help="2 and 4 members that share half of their blocks instead")
    serving.add_argument("--depths", action="store_true", help="all depths of one grown model instead")
    serving.add_argument("--rate", type=float, default=3.0, help="requests per second of --soak")
    serving.set_defaults(run=_serving)
    speculation = benchmarks.add_parser("speculation", help="a grown model whose lower depths draft")
    speculation.add_argument("path", help="a run of several stages")
    speculation.add_argument("--texts", type=int, default=8, help="texts from nothing, one by one")
    speculation.add_argument("--tokens", type=int, default=64, help="of each text")
    speculation.add_argument("--temperature", type=float, default=0.7, help="0: greedy")
    speculation.set_defaults(run=_speculation)


def _print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:,.3g}" for value in row))
    Console().print(table)


def _growth(arguments: argparse.Namespace) -> int:
    from benchmarks.growth import Shape, peak_memory, step_ratios

    depths = _numbers("--depths", arguments.depths)
    workers = _numbers("--workers", arguments.workers) if arguments.workers != "none" else []
    shape = Shape(hidden_size=arguments.width, max_depth=max(depths))
    _print_table(
        f"Step time, one thread, {shape}",
        ("way", "depth", "ms / step", "of monolithic", "FLOP bound", "x bound"),
        (
            (row.way, str(row.depth), row.seconds * 1e3, row.ratio, row.bound, row.ratio / row.bound)
            for row in step_ratios(shape, depths, rounds=arguments.rounds)
        ),
    )
    _print_table(
        "Peak memory above an empty worker's, MiB",
        ("way", "depth", "peak", "of monolithic", "frozen weights", "forecast", "x forecast"),
        (
            (row.way, str(row.depth), row.peak_bytes / 2**20, row.ratio, row.frozen_bytes / 2**20, *_forecast(row))
            for row in peak_memory(shape, depths)
        ),
    )
    if workers:
        _print_groups(shape, depths[-1], workers)
    return 0


def _numbers(option: str, given: str) -> list[int]:
    try:
        return [int(number) for number in given.split(",")]
    except ValueError as error:
        raise ConfigError(f"{option} {given}: not numbers", "Write them as 2,4,8") from error


def _forecast(row: Any) -> tuple[Any, Any]:
    if row.forecast_bytes is None:
        return "-", "-"
    return row.forecast_bytes / 2**20, row.peak_bytes / row.forecast_bytes


def _print_groups(shape: Any, depth: int, num_workers: Sequence[int]) -> None:
    from benchmarks.workers import group_figures

    rows = group_figures(shape, depth, num_workers, rounds=3, num_steps=20)
    _print_table(
        f"Newest block and head at depth {depth} on Ray workers of one thread, {shape.micro_batch} windows on each",
        ("workers", "tokens/s", f"x {num_workers[0]}", "bound", "last step to next stage's first, s"),
        (
            (
                str(row.num_workers),
                row.tokens_per_second,
                row.ratio,
                row.num_workers / num_workers[0],
                row.pause_seconds,
            )
            for row in rows
        ),
    )


def _prefix(arguments: argparse.Namespace) -> int:
    from benchmarks.prefix_cache import STAGE_SHAPE, stage_timings

    passes = _numbers("--passes", arguments.passes)
    shape = replace(STAGE_SHAPE, max_depth=arguments.depth)
    rows, break_even = stage_timings(
        shape, depth=arguments.depth, passes=passes, num_steps=arguments.steps, rounds=arguments.rounds
    )
    _print_table(
        f"A stage at depth {arguments.depth}, one thread, {shape}; even at {break_even:.2f} passes",
        ("passes", "recomputing, s", "cached, s", "of which filling, s", "x faster", "FLOP bound", "auto"),
        (
            (
                str(row.num_passes),
                row.recompute_seconds,
                row.cached_seconds,
                row.fill_seconds,
                row.speedup,
                row.bound,
                row.auto,
            )
            for row in rows
        ),
    )
    return 0


def _substrate(arguments: argparse.Namespace) -> int:
    from benchmarks.plain_glyphs import picture
    from benchmarks.substrate import measure_substrate
    from growtx.config import build_config
    from growtx.data.tokenizer import TokenizerConfig, build_tokenizer, token_surfaces
    from growtx.substrate.build import SubstrateConfig

    surfaces = token_surfaces(build_tokenizer(build_config(TokenizerConfig, {"family": arguments.vocabulary})))
    config = build_config(SubstrateConfig, {"kind": "glyph", "cell_pixels": arguments.cell_pixels})
    rows = measure_substrate(surfaces, config, arguments.hidden_size, picture)
    title = f"Substrate of {arguments.vocabulary}, {len(surfaces):,} x {arguments.hidden_size}"
    _print_table(title, ("measure", "value", "unit"), ((row["measure"], row["value"], row["unit"]) for row in rows))
    return 0


def _tokenizers(arguments: argparse.Namespace) -> int:
    from benchmarks.tokenizers import gpt2_style, measure_tokenizers
    from growtx.config import build_config
    from growtx.data.tokenizer import TokenizerConfig, build_tokenizer, load_tokenizer

    named = dict(_name_and_path(given) for given in arguments.tokenizer)
    texts = _texts_by_language(arguments.texts, arguments.max_bytes)
    everything = [text for documents in texts.values() for text in documents]
    tokenizers = {
        "unicode-2-3": build_tokenizer(build_config(TokenizerConfig, {"family": "unicode-2-3"})),
        "unicode-max": build_tokenizer(build_config(TokenizerConfig, {"family": "unicode-max"})),
        "compact, of this text": build_tokenizer(build_config(TokenizerConfig, {"family": "compact"}), everything),
        "GPT-2 style, of this text": gpt2_style(everything, 50_257),
        **{name: load_tokenizer(path) for name, path in named.items()},
    }
    columns = ("tokenizer", "vocab_size", "language", "megabytes_per_second", "characters_per_token", "bytes_per_token")
    rows = measure_tokenizers(tokenizers, texts)
    values = ([str(row[key]) if isinstance(row[key], (str, int)) else row[key] for key in columns] for row in rows)
    _print_table("Tokenizers", ("tokenizer", "ids", "language", "MB/s", "characters/token", "bytes/token"), values)
    return 0


def _packing(arguments: argparse.Namespace) -> int:
    from benchmarks.packing import measure_packing
    from growtx.config import build_config
    from growtx.data.tokenizer import TokenizerConfig, build_tokenizer
    from growtx.formatting import size

    texts = [text for some in _texts_by_language(arguments.texts, 10**9).values() for text in some]
    rows = measure_packing(
        build_tokenizer(build_config(TokenizerConfig, {"family": "unicode-2-3"})),
        texts,
        num_bytes=arguments.megabytes * 10**6,
        nodes=_numbers("--nodes", arguments.nodes),
        rounds=arguments.rounds,
    )
    values = (
        [
            row["what"],
            row["seconds"],
            row["megabytes_per_second"],
            row["megabytes_per_cpu_second"],
            size(row.get("task_bytes")),
            size(row.get("driver_bytes")),
            row.get("disk_ratio", 0.0),
            row.get("fingerprint", ""),
        ]
        for row in rows
    )
    columns = (
        "what",
        "seconds",
        "MB/s",
        "MB/CPU-s",
        "largest task",
        "driver adds",
        "disk, of the packed size",
        "fingerprint",
    )
    _print_table(f"Packing {arguments.megabytes} MB", columns, values)
    return 0


def _name_and_path(given: str) -> tuple[str, str]:
    name, separator, path = given.partition("=")
    if not (name and separator and path):
        raise ConfigError(f"--tokenizer {given}: not NAME=PATH", "Write it as GPT-2=assets/gpt2.tiktoken")
    return name, path


def _texts_by_language(glob: str, max_bytes: int) -> dict[str, list[str]]:
    """The first documents of each language, up to a number of bytes."""
    import datasets

    from growtx.data.sources import SourceConfig, source_files

    files = list(source_files(SourceConfig(files=glob)))
    texts: dict[str, list[str]] = {}
    num_bytes: dict[str, int] = {}
    for row in datasets.load_dataset("parquet", data_files=files, split="train"):
        language, size = row.get("lang", "all"), len(row["text"].encode())
        if num_bytes.get(language, 0) + size <= max_bytes:
            texts.setdefault(language, []).append(row["text"])
            num_bytes[language] = num_bytes.get(language, 0) + size
    return texts


def _gpu(arguments: argparse.Namespace) -> int:
    import torch

    from benchmarks.gpu import CHUNKS, HEAD_ROWS, HEADS, STEPS, card, head_figures, step_figures
    from growtx.train.distributed import alone, use_device

    if not torch.cuda.is_available():
        raise ConfigError("growtx benchmark gpu: there is no GPU here", "Run it on a machine that has one")
    with alone(use_gpu=True):
        use_device(use_gpu=True)
        figures = [
            figure
            for hidden_size, vocab_size in HEADS
            for figure in head_figures(hidden_size, vocab_size, num_rows=HEAD_ROWS, chunks=CHUNKS)
        ]
        figures += [figure for shape in STEPS for figure in step_figures(shape)]
    _print_table(
        f"{card()}, bf16; bound: {arguments.peak_tflops:g} TFLOP/s",
        ("work", "way", "ms", "TFLOP/s", "of the peak", "GiB", "forecast GiB"),
        (
            (
                figure.work,
                figure.way,
                figure.seconds * 1e3,
                figure.tflops,
                figure.tflops / arguments.peak_tflops,
                figure.peak_bytes / 2**30,
                "-" if figure.forecast_bytes is None else figure.forecast_bytes / 2**30,
            )
            for figure in figures
        ),
    )
    return 0


def _choosing(arguments: argparse.Namespace) -> int:
    import torch

    from benchmarks.choosing import measure_choosing

    torch.set_num_threads(1)
    sizes = _numbers("--vocabularies", arguments.vocabularies)
    _print_table(
        f"Tokens of 32 texts on {arguments.device}, one thread",
        ("way", "V", "ms / text", "transformers", "x transformers"),
        (
            (row.way, f"{row.vocab_size:,}", row.milliseconds, row.their_milliseconds, row.ratio)
            for size in sizes
            for row in measure_choosing(size, device=arguments.device)
        ),
    )
    return 0


def _serving(arguments: argparse.Namespace) -> int:
    from benchmarks.serving import measure_serving, random_members
    from growtx.config import build_config
    from growtx.data.tokenizer import TokenizerConfig, build_tokenizer

    tokenizer = build_tokenizer(
        build_config(TokenizerConfig, {"family": "compact", "vocab_size": 270}), ["hello world " * 99]
    )
    if arguments.soak is not None:
        return _soak(tokenizer, arguments)
    if arguments.trunk:
        return _trunk(tokenizer)
    if arguments.depths:
        return _depths(tokenizer)
    _print_table(
        "Two members with random weights; x best: of the alternatives to this engine",
        ("system", "clients", "tokens/s", "x best", "TTFT ms p50", "p99", "ITL ms p50", "p99", "bound tokens/s"),
        (
            (
                row.system,
                str(row.num_clients),
                row.tokens_per_second,
                "-" if row.ratio_to_best is None else row.ratio_to_best,
                row.first_token_p50_seconds * 1e3,
                row.first_token_p99_seconds * 1e3,
                row.inter_token_p50_seconds * 1e3,
                row.inter_token_p99_seconds * 1e3,
                row.bound_tokens_per_second,
            )
            for row in measure_serving(random_members(tokenizer), tokenizer)
        ),
    )
    return 0


def _trunk(tokenizer: Any) -> int:
    from benchmarks.serving import measure_trunk

    _print_table(
        "Members that share half of their blocks, random weights; bound: 1 / (s + N (1 - s)) for the trunk's share s",
        ("members", "clients", "share s", "tokens/s", "of one member", "bound", "x bound"),
        (
            (
                str(row.num_members),
                str(row.num_clients),
                row.share,
                row.tokens_per_second,
                row.ratio,
                row.bound,
                row.ratio / row.bound,
            )
            for row in measure_trunk(tokenizer)
        ),
    )
    return 0


def _depths(tokenizer: Any) -> int:
    from benchmarks.serving import measure_depths, measure_memory_of_depths

    _print_table(
        "Texts of all depths at once, random weights; x apart: of an engine for each, one after the other",
        ("depths", "clients", "tokens/s", "x apart"),
        (
            (", ".join(map(str, row.depths)), str(row.num_clients), row.tokens_per_second, row.ratio)
            for row in measure_depths(tokenizer)
        ),
    )
    _print_table("Resident memory of the process", ("depths", "MiB"), measure_memory_of_depths(tokenizer).items())
    return 0


def _speculation(arguments: argparse.Namespace) -> int:
    from benchmarks.speculation import measure_speculation

    _print_table(
        "One text at a time; bound: from tokens a pass and the weights that are read; needed: tokens a pass for 1.4",
        ("draft's blocks", "drafts", "right", "tokens a pass", "x plain", "x loop", "bound", "needed"),
        (
            (
                str(row.depth),
                str(row.num_drafts),
                row.acceptance,
                row.tokens_per_pass,
                row.ratio,
                row.ratio_of_loop,
                row.bound,
                row.needed,
            )
            for row in measure_speculation(
                arguments.path,
                num_texts=arguments.texts,
                num_tokens=arguments.tokens,
                temperature=arguments.temperature,
            )
        ),
    )
    return 0


def _soak(tokenizer: Any, arguments: argparse.Namespace) -> int:
    from benchmarks.soak import run_soak

    soak = run_soak(tokenizer, arguments.soak, arguments.rate, warm_up_seconds=arguments.warm_up)
    answers = ((kind, str(status), str(count)) for (kind, status), count in sorted(soak.answers.items()))
    _print_table(
        f"Answers in {arguments.warm_up + arguments.soak:g} s", ("kind of request", "status", "count"), answers
    )
    costs = (
        ("private_bytes", "private MiB", 2**20),
        ("resident_bytes", "resident MiB", 2**20),
        ("num_threads", "threads", 1),
        ("num_files", "open files", 1),
    )
    rows = (
        (process, title, *(value / unit for value in soak.change(process, name)))
        for process in soak.costs
        for name, title, unit in costs
    )
    columns = ("process", "what", "first quarter", "last quarter", "slope / minute")
    _print_table(f"{arguments.soak:g} s after a warm-up of {arguments.warm_up:g} s", columns, rows)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
