"""The `growtx` command: run jobs, look at results and verify them, export them, try them out."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING

from growtx import __version__
from growtx.cli.jobs import add_jobs
from growtx.command import add_command, run_command
from growtx.exceptions import ConfigError, StoreError

if TYPE_CHECKING:
    from growtx.command import Commands
    from growtx.growth.lineage import Lineage
    from growtx.growth.results import Result
    from growtx.store.verify import VerifyReport

# Overrides may stand between the options of these.
INTERMIXED = ("grow", "specialists", "add", "sweep", "study", "evaluate", "plan")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `growtx` command; returns the exit status."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: int(arguments.handler(arguments)), resumable=hasattr(arguments, "resume"))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line, with the function that runs them as `handler`."""
    parser, commands = _parser()
    name, *words = argv or ("",)
    if name in INTERMIXED:  # argparse cannot intermix options and positional arguments below a subcommand
        arguments: argparse.Namespace = commands.choices[name].parse_intermixed_args(words)
        return arguments
    if name == "benchmark" and words and find_spec("benchmarks"):  # they declare their own options
        return argparse.Namespace(handler=commands.choices[name].get_default("handler"), arguments=words)
    return parser.parse_args(argv)


def _parser() -> tuple[argparse.ArgumentParser, Commands]:
    parser = argparse.ArgumentParser(prog="growtx", description=__doc__)
    parser.add_argument("--version", action="version", version=f"growtx {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_jobs(commands)
    _add_plan(commands)
    _add_results(commands)
    _add_merge(commands)
    _add_hub(commands)
    _add_substrate(commands)
    runs = add_command(commands, "runs", _runs, "list runs with their state")
    runs.add_argument("path", nargs="?", default="runs", help="directory that holds runs (default: runs)")
    presets = add_command(commands, "presets", _presets, "list the shipped presets, or print one resolved")
    presets.add_argument("name", nargs="?")
    completion = add_command(commands, "completion", _completion, "print a completion script for a shell")
    completion.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    return parser, commands


def _add_results(commands: Commands) -> None:
    inspect = add_command(
        commands, "inspect", _inspect, "print the lineage of a run: stages, parameters, bits per byte, hashes"
    )
    inspect.add_argument("path", help="run directory or manifest")
    inspect.add_argument("--json", action="store_true", help="print the manifests as JSON")

    verify = add_command(
        commands, "verify", _verify, "recompute all hashes; report each mismatch and exit with status 1"
    )
    verify.add_argument("path", help="run directory, a manifest in it, or an ensemble")
    verify.add_argument("--prune", action="store_true", help="remove files that no manifest refers to")
    verify.add_argument("--substrate", action="store_true", help="also rebuild the substrate and compare it")
    verify.add_argument("--font", help="with --substrate: the recipe's font file, if it is not in a standard location")

    generate = add_command(commands, "generate", _generate, "continue a prompt")
    generate.add_argument("path", help="run directory, manifest or Hugging Face directory")
    generate.add_argument("--prompt", required=True)
    generate.add_argument("--depth", type=int, help="use the stage with this many blocks (default: the last)")
    generate.add_argument("--max-tokens", type=int, default=64)
    generate.add_argument("--temperature", type=float, default=0.7, help="0: greedy")
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument(
        "--speculate",
        metavar="DEPTH[:TOKENS]",
        help="let the stage with DEPTH blocks guess TOKENS (4) at a time, which the model then checks: the same text, "
        "sooner where it guesses well",
    )

    export = add_command(commands, "export", _export, "write a model in a stock architecture with identical logits")
    export.add_argument("path", help="run directory, manifest or Hugging Face directory")
    export.add_argument("directory", help="output directory; must not exist yet")
    export.add_argument("--format", required=True, help="gpt_neox, phi or llama (llama is refused: it cannot be exact)")
    export.add_argument("--depth", type=int, help="use the stage with this many blocks (default: the last)")


def _add_hub(commands: Commands) -> None:
    push = add_command(commands, "push", _push, "put a run's model, card and lineage on the Hugging Face hub")
    push.add_argument("path", help="run directory")
    push.add_argument("address", metavar="hf://USER/NAME")
    push.add_argument("--licence", "--license", help="SPDX identifier (default: the run's own)")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.add_argument("--blobs", action="store_true", help="also all blobs, so that the lineage can be verified there")
    push.add_argument("--dry-run", action="store_true", help="list what would be sent")
    pull = add_command(commands, "pull", _pull, "fetch what was pushed, and check every file")
    pull.add_argument("address", metavar="hf://USER/NAME")
    pull.add_argument("directory", help="where to write; must not exist yet")


def _add_merge(commands: Commands) -> None:
    merge = add_command(commands, "merge", _merge, "combine runs into an ensemble, and report what it gains and loses")
    merge.add_argument("paths", nargs="+", metavar="RUN", help="run, manifest, NAME=PATH; an ensemble may come first")
    merge.add_argument("--out", required=True, metavar="DIR", help="where to write the ensemble")
    merge.add_argument("--rule", default="mean", help="combination rule of the ensemble (default: mean)")
    merge.add_argument("--without", action="append", default=[], metavar="NAME", help="leave out a member")
    merge.add_argument("--require-gain", action="store_true", help="refuse a merge that loses to its best member")
    merge.add_argument(
        "--data", action="append", default=[], metavar="FILES", help="text to measure on, instead of the held-out text"
    )
    merge.add_argument("--set", action="append", default=[], metavar="key=value", help="such as num_windows=128")


def _add_substrate(commands: Commands) -> None:
    substrate = add_command(commands, "substrate", _substrate_report, "build a substrate and report its properties")
    substrate.add_argument("action", choices=["report"])
    substrate.add_argument(
        "--vocabulary", default="unicode-2-3", help="unicode-2-3, unicode-max, or a tokenizer's directory"
    )
    kinds = ["glyph", "glyph+code", "binary", "random", "learned"]
    substrate.add_argument("--kind", default="glyph+code", choices=kinds)
    substrate.add_argument("--font", help="font file, or unifont (default: the packaged fonts)")
    substrate.add_argument("--hidden-size", type=int, default=1024)
    substrate.add_argument("--cell-pixels", type=int, default=32, choices=[32, 64])
    substrate.add_argument("--out", help="folder for report.json and pictures (default: runs/substrate-KIND)")


def _add_plan(commands: Commands) -> None:
    plan = add_command(
        commands, "plan", _plan, "forecast the stages of a plan, or propose stages for a budget or a memory size"
    )
    plan.add_argument("--preset", help="name of a shipped preset, or a YAML file (default: demo)")
    plan.add_argument(
        "--budget",
        type=int,
        metavar="ACTIVE_PARAMETERS",
        help="propose stages with at most this many active parameters",
    )
    plan.add_argument("--memory-gib", type=float, metavar="N", help="propose stages that fit into N GiB per worker")
    plan.add_argument("--blocks", type=int, metavar="L", help="target depth of the proposal (default: the preset's)")
    plan.add_argument("--data-tokens", type=int, metavar="N", help="tokens of the training data, for the prefix cache")
    plan.add_argument("--trials", type=int, default=1, metavar="N", help="runs that will share the prefix cache")
    plan.add_argument("--out", metavar="FILE", help="also write the proposal as a preset: growtx grow --preset FILE")
    plan.add_argument("overrides", nargs="*", metavar="section.key=value")


def _inspect(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from growtx.growth.lineage import blob_table, stage_table
    from growtx.growth.results import find_result

    result = find_result(arguments.path)
    if result.kind == "group":
        print(*_additions(result), sep="\n")
        return 0
    if result.ensemble is not None:
        print(result.ensemble.model_dump_json(indent=None if arguments.json else 1))
        return 0
    lineage = result.require_lineage()
    if arguments.json:
        print(json.dumps([manifest.model_dump(mode="json") for manifest in lineage.manifests], ensure_ascii=False))
    else:
        Console().print(stage_table(lineage), blob_table(lineage), sep="\n")
        print(*_data_sentences(lineage), sep="", end="")
    return 0


def _additions(result: Result) -> list[str]:
    """What a group holds and, of specialists, what was added to them."""
    from growtx.specialists.additions import read_additions, receipt_sentences

    lines = [part.address for part in result.parts()] or [f"{result.address}: nothing is finished"]
    for addition in read_additions(result.home):
        lines.append(f"receipt {addition.digest[:12]} of {addition.receipt.created}: added {addition.receipt.name}")
        lines += [f"  {sentence}" for sentence in receipt_sentences(addition.receipt)]
    return lines


def _data_sentences(lineage: Lineage) -> list[str]:
    """Where a run's text changed on the way; its blobs are none the worse for that."""
    from growtx.growth.lineage import OWN_MIX, shares_seen
    from growtx.store.run_records import read_changes, read_data_record

    record = read_data_record(lineage.storage)
    accepted = {change.stage: change for change in record.changes} if record else {}
    changed = [f"values: {change.sentence()}, {change.at}\n" for change in read_changes(lineage.storage)]
    sentences = changed + [f"data: {change.sentence()}, accepted {change.accepted}\n" for change in accepted.values()]
    for manifest in lineage.manifests if lineage.last.metrics.get(OWN_MIX) else ():
        seen = ", ".join(f"{share:.0%} {name}" for name, share in shares_seen(manifest).items())
        sentences.append(f"data: stage {manifest.index} trained on {seen or 'all sources'}\n")
    for before, after in itertools.pairwise(lineage.manifests):
        if before.data_fingerprint != after.data_fingerprint and after.index not in accepted:
            pair = f"{before.data_fingerprint[:12]} -> {after.data_fingerprint[:12]}"
            sentences.append(f"data: stage {after.index} trained on other text than stage {before.index} ({pair})\n")
    return sentences


def _verify(arguments: argparse.Namespace) -> int:
    from growtx.growth.results import find_result
    from growtx.store.run_lock import held

    if arguments.font and not arguments.substrate:
        raise ConfigError("--font only works with --substrate", "Add --substrate, or leave --font out")
    whole = find_result(arguments.path)
    with held(whole.home) if arguments.prune else nullcontext():  # of a group, too: it trains its parts
        parts = list(whole.parts())
        if not parts:
            raise StoreError(f"{arguments.path} holds no finished result yet", "Resume it, or give another path")
        intact = True
        for part in parts:
            if len(parts) > 1:
                print(f"{part.address}:")
            intact &= _verify_ensemble(part, arguments) if part.ensemble is not None else _verify_run(part, arguments)
    return 0 if intact else 1


def _verify_run(result: Result, arguments: argparse.Namespace) -> bool:
    """Print what is wrong with a run; returns whether nothing is."""
    from growtx.growth.lineage import tokenizer_of
    from growtx.growth.substrate_proof import verify_substrate
    from growtx.store.verify import verify
    from growtx.train.data_proof import verify_data

    lineage = result.require_lineage()
    report = verify(lineage.storage.root, prune=arguments.prune)  # of all stages, also after the one that was named
    for problem, blobs in (("missing", report.missing), ("corrupt", report.corrupt)):
        for blob, manifests in blobs.items():
            print(f"{problem}: blob {blob} (needed by {', '.join(manifests)})")
    for name in report.moved:
        print(f"moved: frozen tensors changed during {name}")
    _print_orphans(report, asked=arguments.prune)
    print(*_data_sentences(lineage), sep="", end="")
    problems = verify_data(lineage.storage, lineage.manifests)
    print(*(f"{problem}\n" for problem in problems), sep="", end="")
    tokenizer_of(lineage)  # raises when it is not the one that the manifests name
    if arguments.substrate:
        print(verify_substrate(lineage, arguments.font))
    summary = f"{report.num_manifests} manifests, {report.num_blobs} blobs, {report.num_bytes:,} bytes"
    is_intact = report.is_intact and not problems
    print(f"{'intact' if is_intact else 'NOT intact'}: {summary}")
    return is_intact


def _print_orphans(report: VerifyReport, *, asked: bool) -> None:
    """What nothing refers to, and what was done about it if that was asked for."""
    num_removed = len(report.orphans) - len(report.kept)
    if asked and not report.is_intact:
        print("nothing was removed, because something else is not as it should be")
    elif not asked and report.orphans:
        print(f"{len(report.orphans)} files that no manifest refers to (--prune removes them)")
    elif asked and num_removed:
        print(f"{num_removed} files that no manifest refers to (removed, {report.pruned_bytes:,} bytes)")
    if report.kept:
        print(f"{len(report.kept)} files that no manifest refers to are younger than an hour (kept)")


def _verify_ensemble(result: Result, arguments: argparse.Namespace) -> bool:
    """Print what is wrong with an ensemble; returns whether nothing is."""
    from growtx.growth.ensembles import open_member, read_ensemble, verify_ensemble
    from growtx.growth.substrate_proof import verify_substrate
    from growtx.store.verify import verify

    root = result.home.root
    problems, members = verify_ensemble(root), read_ensemble(root).members
    if arguments.prune and not problems:
        _print_orphans(verify(root, prune=True), asked=True)
    if arguments.substrate and not problems:  # one member is enough: intact ones share one substrate
        print(verify_substrate(open_member(root, members[0])[0], arguments.font))
    print(*problems, f"{'NOT intact' if problems else 'intact'}: {len(members)} members", sep="\n")
    return not problems


def _generate(arguments: argparse.Namespace) -> int:
    from growtx.data.tokenizer import document_ids, visible_text
    from growtx.growth.results import load_model
    from growtx.sampling import Sampling, continue_text, eos_token_ids

    if arguments.max_tokens < 1 or not arguments.temperature >= 0:
        raise ConfigError("--max-tokens below 1 or --temperature below 0", "Give a larger value")
    if not -(2**63) <= arguments.seed < 2**63:
        raise ConfigError(f"--seed {arguments.seed} is out of range", "Give one from -2^63 to 2^63 - 1")
    speculation = None
    if arguments.speculate is None:
        model, tokenizer = load_model(arguments.path, depth=arguments.depth)
    else:
        from growtx.serving.speculation import load_speculation

        draft_depth, num_drafts = _drafts(arguments.speculate)
        speculation, (model, tokenizer) = load_speculation(arguments.path, arguments.depth, draft_depth, num_drafts)
    ids = document_ids(tokenizer, arguments.prompt)
    limit = model.config.max_position_embeddings
    if len(ids) + arguments.max_tokens > limit:
        raise ConfigError(
            f"--prompt has {len(ids) - 1} tokens and --max-tokens={arguments.max_tokens}; the model takes {limit - 1}",
            "Shorten the prompt or ask for fewer tokens",
        )
    sampling = Sampling(seed=arguments.seed, temperature=arguments.temperature)
    eos_ids = eos_token_ids(model.config, model.generation_config)
    if speculation is None:
        new = continue_text(model, ids, arguments.max_tokens, sampling, eos_ids=eos_ids, num_hidden=1)
    else:
        drafted = speculation.continue_text(ids, arguments.max_tokens, sampling, eos_ids=eos_ids, num_hidden=1)
        right, made, rate = sum(drafted.was_drafted), drafted.num_drafts, drafted.tokens_per_pass
        print(f"{right} of {made} drafts were right; {rate:.2f} tokens a pass", file=sys.stderr)
        new = drafted.tokens
    print(arguments.prompt + visible_text(tokenizer, new, after=ids[1:]))
    return 0


def _drafts(given: str) -> tuple[int, int]:
    depth, colon, number = given.partition(":")
    if not (depth.isdecimal() and (number.isdecimal() or not colon)):
        raise ConfigError(f"--speculate {given} is not DEPTH or DEPTH:TOKENS", "Give it as in --speculate 2:4")
    return int(depth), int(number or 4)


def _export(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from growtx.growth.results import load_model
    from growtx.models.export import export

    model, tokenizer = load_model(arguments.path, depth=arguments.depth)
    difference = export(model, arguments.format, Path(arguments.directory), tokenizer)
    print(f"{arguments.directory}: {arguments.format}, largest logit difference {difference:.1e}")
    return 0


def _push(arguments: argparse.Namespace) -> int:
    from growtx.report.hub import push

    files = push(
        arguments.path,
        arguments.address,
        licence=arguments.licence,
        private=arguments.private,
        with_blobs=arguments.blobs,
        dry_run=arguments.dry_run,
    )
    for file in files:
        print(f"{file.sha256[:12]}  {file.num_bytes:>13,}  {file.path}")
    done = "would be sent" if arguments.dry_run else "are there"
    print(f"{arguments.address}: {len(files)} files, {sum(file.num_bytes for file in files):,} bytes {done}")
    return 0


def _pull(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from growtx.report.hub import pull

    print(f"{pull(arguments.address, Path(arguments.directory))}: every file is as it was pushed")
    return 0


def _merge(arguments: argparse.Namespace) -> int:
    from growtx.config import apply_overrides, build_config
    from growtx.merge.driver import MergeConfig, ensemble_of_paths, merge

    settings = {"rule": arguments.rule, "require_gain": arguments.require_gain}
    config = build_config(MergeConfig, apply_overrides(settings, arguments.set))
    manifest = ensemble_of_paths(arguments.out, arguments.paths, rule=config.rule, without=arguments.without)
    result = merge(manifest, arguments.out, config, texts=arguments.data)
    print(result.verdict.sentence(), f"report: {result.report}", sep="\n")
    return 0


def _substrate_report(arguments: argparse.Namespace) -> int:
    from growtx.config import build_config
    from growtx.data.tokenizer import PUBLISHED_SIZES, TokenizerConfig, build_tokenizer, token_surfaces
    from growtx.substrate.build import SubstrateConfig
    from growtx.substrate.report import as_text, substrate_report

    name = arguments.vocabulary
    family = {"family": name} if name in PUBLISHED_SIZES else {"family": "surface", "path": name}
    settings = {"kind": arguments.kind, "font": arguments.font, "cell_pixels": arguments.cell_pixels}
    out_dir = arguments.out or f"runs/substrate-{arguments.kind}"
    report = substrate_report(
        token_surfaces(build_tokenizer(build_config(TokenizerConfig, family))),
        build_config(SubstrateConfig, settings),
        hidden_size=arguments.hidden_size,
        vocabulary=name,
        out_dir=out_dir,
    )
    print(as_text(report))
    print(f"pictures and report.json: {out_dir}")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from rich.console import Console

    from growtx.run.config import load_run_config
    from growtx.run.forecast import forecast_tables, solved_preset

    limits = {"budget": arguments.budget, "memory_gib": arguments.memory_gib, "num_blocks": arguments.blocks}
    sharing = {"data_tokens": arguments.data_tokens, "num_trials": arguments.trials}
    if all(value is None for value in limits.values()):
        config = load_run_config(arguments.preset, arguments.overrides)
        Console().print(*forecast_tables(config, **sharing), sep="\n")
        return 0
    config, text = solved_preset(arguments.preset, arguments.overrides, **limits)
    Console().print(*forecast_tables(config, **sharing), sep="\n")
    print(text, end="")
    if arguments.out:
        Path(arguments.out).write_text(text, encoding="utf-8")
    return 0


def _runs(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from growtx.storage import resolve_address
    from growtx.store.runs import list_runs

    table = Table()
    for column in ("run", "state", "stages", "tokens", "bits/byte", "updated (UTC)", "job"):
        table.add_column(column)
    for run in list_runs(resolve_address(arguments.path)):
        table.add_row(
            run.name,
            run.state,
            f"{run.num_finished_stages}/{run.num_stages if run.num_stages is not None else '?'}",
            "-" if run.num_tokens is None else f"{run.num_tokens:,}",
            "-" if run.bits_per_byte is None else f"{run.bits_per_byte:.3f}",
            "-" if run.updated is None else run.updated.strftime("%Y-%m-%d %H:%M"),
            run.job_id or "-",
        )
    Console().print(table)
    return 0


def _presets(arguments: argparse.Namespace) -> int:
    from growtx.config import load_preset, preset_names, to_yaml

    if arguments.name:
        from growtx.cli.jobs import load_config

        print(to_yaml(load_config(arguments.name)), end="")
        return 0
    for name in preset_names():
        print(f"{name:20} {load_preset(name).get('description', '')}")
    return 0


def _completion(arguments: argparse.Namespace) -> int:
    try:
        import shtab
    except ImportError as error:
        raise ConfigError(
            "completion needs the package shtab, which is not installed", "Run pip install shtab"
        ) from error
    print(shtab.complete(_parser()[0], shell=arguments.shell))
    return 0


if __name__ == "__main__":
    sys.exit(main())
