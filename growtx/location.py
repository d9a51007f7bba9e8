"""Where runs lie, and which Ray job this process belongs to: both read from the environment alone."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath

STORAGE_VARIABLE = "GROWTX_STORAGE"
HOME_DIR = "growtx"  # in the home directory: where a job keeps its runs if no storage is set
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray's job server for entrypoints; the name is meant literally


def submission_id() -> str | None:
    """The id that `ray job submit` printed and `ray job stop` takes; None outside of a job."""
    try:
        config = json.loads(os.environ.get(_JOB_VARIABLE, "{}"))
    except ValueError:
        return None
    return config.get("metadata", {}).get("job_submission_id")  # type: ignore[no-any-return]


def root() -> str:
    """Where relative addresses of runs start: `GROWTX_STORAGE`, which clusters set, or the working directory.

    The working directory of a Ray job is a copy that Ray deletes with the job: there it is `~/growtx` instead.
    """
    if storage := os.environ.get(STORAGE_VARIABLE):
        return storage.rstrip("/")
    return str(Path.cwd() if submission_id() is None else Path.home() / HOME_DIR)


def locate(path: str) -> str:
    """The full address of a run directory, of a directory of runs, or of a model in one, as commands name it."""
    if "://" in path or Path(path).is_absolute():
        return path
    start = root()
    return f"{start}/{PurePosixPath(path)}" if "://" in start else str(Path(start, path))
