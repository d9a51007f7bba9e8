"""What all commands share: how they are declared, the options of jobs, and errors as sentences."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from growtx.exceptions import GrowtxError
from growtx.redaction import redact_text

Handler = Callable[[argparse.Namespace], int]
if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # what add_subparsers returns has no public name


def add_command(
    commands: Commands, name: str, handler: Handler, summary: str, description: str = ""
) -> argparse.ArgumentParser:
    """Declare a subcommand: a line for the list of commands, and a description for its own help."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description or summary[0].upper() + summary[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(handler=handler)
    return parser


def add_job_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The options that every job takes."""
    parser.add_argument("--preset", help="name of a shipped preset, or a YAML file (default: demo)")
    parser.add_argument("--run-dir", help="run directory: a path, s3:// or gs:// (default: runs/NAME-TIME)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --run-dir")
    parser.add_argument(
        "--accept-new-data", action="store_true", help="with --resume: continue although the text of a source changed"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="YAML values, applied in order")
    return parser


def command_line() -> str:
    """The command line of this process, ready to be typed again but for credentials, which are masked."""
    program = Path(sys.argv[0]).name
    words = ["growtx", *sys.argv[1:]] if program == "growtx" else ["python", *sys.argv]
    return redact_text(shlex.join(words))


def resume_command(job: str, run_dir: str, *values: str) -> str:
    """The command line that goes on with a run, ready to be typed; `values` are overrides."""
    return shlex.join(["growtx", job, "--resume", "--run-dir", run_dir, *values])


def run_command(action: Callable[[], int], *, resumable: bool = False) -> int:
    """Run a command; a user-facing error becomes a sentence and an exit status.

    Args:
        resumable: whether the command takes --resume.
    """
    if not sys.stdout.isatty():  # logs and files have no width; rich would break tables at 80 characters
        os.environ.setdefault("COLUMNS", "160")
    try:
        return action()
    except GrowtxError as error:
        print(f"error: {redact_text(str(error))}", file=sys.stderr)
        return error.exit_code
    except SystemExit as error:
        if error.code != signal.SIGTERM or not resumable:
            raise
        print("stopped; use --resume to continue")
        return 0  # as where it is stopped in the middle: whoever pre-empts a job is no failure of it
    except KeyboardInterrupt:
        kept = ": finished stages are kept; use --resume to continue" if resumable else ""
        print(f"interrupted{kept}", file=sys.stderr)
        return 130
