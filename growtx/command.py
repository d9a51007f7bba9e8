"""What all commands share: arguments of jobs, and errors as sentences."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from typing import Any

from growtx.exceptions import GrowtxError


class _JobParser(argparse.ArgumentParser):
    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Overrides may stand before, between and after options, which argparse does not allow by itself."""
        return self.parse_intermixed_args(args, namespace)


def job_parser(description: str) -> argparse.ArgumentParser:
    """The arguments that every job takes."""
    parser = _JobParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", help="name of a shipped preset, or a YAML file (default: demo)")
    parser.add_argument("--run-dir", help="where the run goes: a path or s3://, gs:// (default: runs/NAME-TIME)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --run-dir")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="YAML values, applied in order")
    return parser


def command_line() -> str:
    """The command of this process, as a person can type it again."""
    return shlex.join(["python", *sys.argv])


def run_command(action: Callable[[], int]) -> int:
    """Run a command; an error that a user can understand becomes a sentence and an exit status."""
    if not sys.stdout.isatty():  # logs and files have no width; rich would break tables at 80 characters
        os.environ.setdefault("COLUMNS", "160")
    try:
        return action()
    except GrowtxError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: finished stages are kept; --resume goes on", file=sys.stderr)
        return 130
