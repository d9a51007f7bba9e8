"""A run's directory: claimed by one configuration, resumed by the same one, never mixed with another."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from growtx import __version__
from growtx.command import command_line
from growtx.compat.ray import submission_id
from growtx.config import build_config, parse_yaml, to_yaml
from growtx.exceptions import ConfigError
from growtx.growth.plan import PlanConfig
from growtx.redaction import ENVIRONMENT, masked_keys, redact_text, redact_tree
from growtx.run.config import JobConfig, RunConfig, differing_keys
from growtx.storage import Storage, resolve_address
from growtx.store.manifest import latest_manifest, list_manifests
from growtx.store.run_lock import acquire, fenced
from growtx.store.run_records import (
    CHANGES_FILE,
    DATA_FILE,
    RUN_FILE,
    STATUS_FILE,
    ValueChange,
    append_changes,
    read_status,
)
from growtx.store.runs import has_metrics
from growtx.substrate.build import SUBSTRATE_FILE

Config = TypeVar("Config", bound=JobConfig)
_PACKAGES = ("torch", "ray", "deepspeed", "transformers", "tokenizers", "peft", "safetensors")


def default_run_dir(name: str) -> str:
    """`runs/NAME-TIME`, as a user would name it."""
    return f"runs/{name}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"


def resolve_run_arguments(
    arguments: argparse.Namespace, kind: type[Config], load: Callable[[str | None, list[str]], Config]
) -> tuple[Config, str]:
    """The configuration and the run directory that the arguments of a job (`command.job_parser`) ask for.

    `--resume` alone continues with the configuration of the run directory. With `--preset` it also starts a run that
    does not exist yet, so that the same command can be repeated until it succeeds.

    Args:
        load: makes a configuration from a preset and overrides.

    Raises:
        ConfigError: naming key, value and remedy.
    """
    if arguments.run_dir is None:
        if arguments.resume:
            raise ConfigError("--resume does not say which run", "Add its --run-dir")
        config = load(arguments.preset, arguments.overrides)
        return config, resolve_address(default_run_dir(config.name))
    if arguments.resume and arguments.preset is None:
        return resumed_config(arguments.run_dir, arguments.overrides, kind), resolve_address(arguments.run_dir)
    return load(arguments.preset, arguments.overrides), resolve_address(arguments.run_dir)


def claim(run_dir: str, config: JobConfig, *, resume: bool) -> Storage:
    """Claim the directory for this run, or check that this run has it; until this process ends, no other may claim it.

    Raises:
        ConfigError: it holds a run and `resume` is off, it holds another run, another process is working on it, or the
            configuration has credentials where they would be needed again.
    """
    _refuse_credentials(config)
    storage = Storage(resolve_address(run_dir))
    acquire(storage)
    storage = fenced(storage)
    _release_if_nothing_trained(storage)
    if storage.exists(RUN_FILE):
        if not resume:
            raise ConfigError(
                f"--run-dir {run_dir} already holds a run", "Add --resume to continue it, or name another directory"
            )
        append_changes(storage, _changed_values(storage, run_dir, recorded_config(storage, type(config)), config))
    resolved = config.model_copy(update={"provenance": provenance()})
    storage.write_text(RUN_FILE, to_yaml(resolved))
    return storage


def begin_run(run_dir: str, config: JobConfig, *, resume: bool, console: Console) -> Storage:
    """Claim a run's directory and print its path and the resolved configuration."""
    run = claim(run_dir, config, resume=resume)
    console.print(f"run directory: {redact_text(run.root)}", highlight=False, markup=False, soft_wrap=True)
    console.print(to_yaml(config), highlight=False, markup=False, end="")
    return run


def _release_if_nothing_trained(storage: Storage) -> None:
    """A run that failed before its first stage (a mistyped path, say) has nothing to keep: it may start anew."""
    if read_status(storage).state != "failed":
        return
    if not (list_manifests(storage) or has_metrics(storage)):
        for name in (RUN_FILE, SUBSTRATE_FILE, DATA_FILE, CHANGES_FILE, "tokenizer"):
            if storage.exists(name):
                storage.remove(name)


def recorded_config(storage: Storage, kind: type[Config] = RunConfig) -> Config:  # type: ignore[assignment]
    """The configuration that a run directory was made with."""
    tree = parse_yaml(storage.read_text(RUN_FILE), storage.path(RUN_FILE))
    return build_config(kind, tree if isinstance(tree, dict) else {})


def resumed_config(
    run_dir: str,
    overrides: list[str],
    kind: type[Config] = RunConfig,  # type: ignore[assignment]
) -> Config:
    """The configuration of a run to be resumed, with overrides of what may change (resources, for example)."""
    storage = Storage(resolve_address(run_dir))
    if not storage.exists(RUN_FILE):
        raise ConfigError(f"--resume: {storage.root} holds no run", "Check it, or add --preset to start one there")
    return build_config(kind, recorded_config(storage, kind).model_dump(mode="json"), overrides)


def _refuse_credentials(config: JobConfig) -> None:
    """Refuse them in what resumed runs, evaluations and merges read from run.yaml, which keeps none."""
    tree = config.model_dump(mode="json", exclude={"tracking", "provenance"})
    if keys := list(masked_keys(redact_tree(tree))):
        raise ConfigError(
            f"{', '.join(keys)}: there is a credential in it, and run.yaml keeps none, which is read again to resume "
            "and to evaluate",
            f"Set it in the environment of every node instead ({ENVIRONMENT})",
        )


def _changed_values(storage: Storage, run_dir: str, recorded: JobConfig, config: JobConfig) -> list[ValueChange]:
    """The training values that a resumed run has other than before; its finished stages stay as they are.

    Raises:
        ConfigError: something else differs, and this would be another run.
    """
    before, after = redact_tree(recorded.identity_fields()), redact_tree(config.identity_fields())
    keys = differing_keys(before, after)
    fixed = [key for key in keys if not key.startswith(config.changeable)]
    if not fixed and keys and _structure(recorded) != _structure(config):
        fixed = [key for key in keys if key.startswith("plan.")]
    if fixed:
        shown = ", ".join(fixed[:5]) + (f" and {len(fixed) - 5} more" if len(fixed) > 5 else "")
        raise ConfigError(
            f"--run-dir {run_dir} holds another run: {shown} differ",
            "Resume without them (--resume --run-dir alone takes what is in its run.yaml), or name another directory; "
            + _what_may_change(config),
        )
    last = latest_manifest(storage)
    from_stage = 1 if last is None else last.index + 1
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return [
        ValueChange(key=key, before=value_at(before, key), after=value_at(after, key), from_stage=from_stage, at=now)
        for key in keys
    ]


def _what_may_change(config: JobConfig) -> str:
    names = [key.rstrip(".") for key in config.changeable]
    return f"of what decides the results, only {', '.join(names)} may change" if names else "no value may change here"


def _structure(config: JobConfig) -> Any:
    """What every stage adds and lets train: the part of a plan that cannot change on the way."""
    plan: PlanConfig = config.plan  # type: ignore[attr-defined]
    fields = {"name", "add", "active", "head", "train_substrate", "insert", "data"}
    stages = [stage.model_dump(include=fields) for stage in plan.stage_configs()]
    return plan.mode, plan.match, plan.unfreeze, plan.insert, stages


def value_at(tree: Any, dotted: str) -> Any:
    """What a tree has at a dotted key; None where it has none."""
    for part in dotted.split("."):
        if isinstance(tree, list) and part.isdecimal() and int(part) < len(tree):
            tree = tree[int(part)]
        else:
            tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def provenance() -> dict[str, Any]:
    """What a reader needs to repeat a run: versions, commit, command."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "cpus": os.cpu_count(),
        "versions": {"growtx": __version__, **{name: version(name) for name in _PACKAGES}},
    }


def _git_commit() -> str | None:
    result = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip() or None


def write_status(storage: Storage, state: str, num_stages: int | None) -> None:
    """Write the state of the run to its status file, which `growtx runs` reads."""
    status = {
        "state": state,
        "updated": datetime.now(UTC).isoformat(timespec="seconds"),
        "job_id": submission_id(),
        "num_stages": num_stages,
        "num_finished_stages": len(list_manifests(storage)),
    }
    storage.write_text(STATUS_FILE, json.dumps(status) + "\n")


class RunStatus:
    """What a command reports about the run that it is working on; see `recording_status`."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.num_stages: int | None = None  # None: not known, or the run consists of runs
        self.is_stopped = False

    def begin(self, num_stages: int | None = None) -> None:
        """Mark the run as running."""
        self.num_stages = num_stages
        self.write("running")

    def stop(self) -> None:
        """Record at once that a stop was requested: whatever stops the job may not wait for the end."""
        if not self.is_stopped:
            self.is_stopped = True
            self.write("stopped")

    def write(self, state: str) -> None:
        write_status(self._storage, state, self.num_stages)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Until Ray starts, which handles the signal likewise, it would kill this process without a word."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def recording_status(run: Storage) -> Iterator[RunStatus]:
    """Record in the status file how the `with` block ends: finished, stopped or failed.

    SIGTERM ends it like Ctrl-C, with SystemExit, unless something inside of it knows better (`stop_on_signals`).
    """
    status = RunStatus(run)
    status.begin()
    try:
        with _ended_by_sigterm():
            yield status
    except BaseException as error:
        asked = isinstance(error, (KeyboardInterrupt, SystemExit))  # by Ctrl-C, or by Ray's handler of SIGTERM
        status.write("stopped" if asked or status.is_stopped else "failed")
        raise
    status.write("stopped" if status.is_stopped else "finished")
