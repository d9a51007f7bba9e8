"""One run in a process of its own, which dies, or whose disk fails, at one of its writes."""

from __future__ import annotations

import builtins
import errno
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

# Preloaded once by the fork server, so that a run takes seconds; none of these starts a thread.
import tests.run.configs  # noqa: F401

Mode = Literal["before", "after", "error"]
MODES: tuple[Mode, ...] = ("before", "after", "error")
KILLED = 137
UNEXPECTED = 99  # a traceback where a sentence would do
_WRITING = ("w", "a", "x", "+")


class Writes:
    """Numbers every change of the file system below a directory, and lets one of them go wrong.

    Args:
        log: file that gets a line for each; None to write none.
        point: number of the change that goes wrong; None for none.
    """

    def __init__(self, root: Path, log: Path | None, point: int | None, mode: Mode) -> None:
        self._root, self._log, self._point, self._mode = f"{root}{os.sep}", log, point, mode
        self._number = 0
        self._open = io.open

    def patch(self) -> None:
        for name in ("replace", "rename", "unlink", "remove", "rmdir", "mkdir", "fsync", "ftruncate"):
            setattr(os, name, self._wrapped(name, getattr(os, name)))
        os.open = self._wrapped("open", os.open, lambda args: bool(args[1] & (os.O_WRONLY | os.O_RDWR)))
        for module in (io, builtins):
            module.open = self._wrapped("open", self._open, self._writes)  # type: ignore[attr-defined]

    @staticmethod
    def _writes(args: tuple[Any, ...]) -> bool:
        mode = args[1] if len(args) > 1 else "r"
        return isinstance(mode, str) and any(letter in mode for letter in _WRITING)

    def _wrapped(
        self, name: str, original: Callable[..., Any], counts: Callable[[tuple[Any, ...]], bool] = lambda args: True
    ) -> Callable[..., Any]:
        def changed(*args: Any, **kwargs: Any) -> Any:
            path = _path_of(args[0])
            if not path.startswith(self._root) or "tensorboard" in path or not counts((*args, *kwargs.values())):
                return original(*args, **kwargs)
            self._number += 1
            self._note(name, path)
            if self._number != self._point:
                return original(*args, **kwargs)
            if self._mode == "error":
                raise OSError(errno.ENOSPC, "No space left on device", path)
            with suppress(OSError):
                if self._mode == "after":
                    original(*args, **kwargs)
            os._exit(KILLED)

        return changed

    def _note(self, name: str, path: str) -> None:
        if self._log is not None:
            with self._open(self._log, "a") as log:
                log.write(f"{name} {path.removeprefix(self._root)}\n")


def _path_of(target: Any) -> str:
    if isinstance(target, int):
        with suppress(OSError):
            return str(Path(f"/proc/self/fd/{target}").readlink())
        return ""
    # Not resolved, since that asks the file system for every part; all paths of a run are absolute.
    return os.fsdecode(target) if isinstance(target, (str, bytes, os.PathLike)) else ""


def run(root: str, corpus: str, log: str | None, point: int | None, mode: Mode) -> None:
    """Begin the run in `root`, or go on with it, up to its report; exits as the command would."""
    sys.stdout = sys.stderr = Path(root, "output.txt").open("a")  # noqa: SIM115
    status = UNEXPECTED
    try:
        without_figures()
        Writes(Path(root, "work"), Path(log) if log else None, point, mode).patch()
        status = grow_here(f"{root}/work/run", f"{root}/work/cache", corpus)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def grow_here(run_dir: str, cache_dir: str, corpus: str) -> int:
    """The run itself, begun or gone on with."""
    from rich.console import Console

    from growtx.exceptions import GrowtxError
    from growtx.run.grow import grow
    from tests.run.configs import config

    settings = config(
        corpus,
        cache_dir=cache_dir,
        plan={"grow": {"blocks": 2}, "train": {"steps": 4}},
        training={
            "global_batch_size": 4,
            "prefix": "cache",
            "log_every_steps": 1,
            "checkpoint": {"every_steps": 2},
            "evaluation": {"num_windows": 4, "num_samples": 1, "sample_tokens": 2},
        },
    )
    try:
        grow(settings, run_dir, resume=True, console=Console(quiet=True), here=True)
    except GrowtxError as error:
        print(f"error: {error}")
        return 1
    return 0


def without_figures() -> None:
    """Drawing them takes longer than the whole run."""
    from growtx.run import grow as module
    from growtx.storage import Storage

    def write_report(run_dir: str) -> str:
        Storage(run_dir).write_text("report.html", "report")
        return "report.html"

    assert hasattr(module, "write_report")
    module.write_report = write_report
