"""Results on the Hugging Face hub: `growtx push` and `growtx pull`.

A repository holds what `from_pretrained` opens, and below `growtx/` the lineage: manifests, the hashes of all blobs
and, if asked for, the blobs themselves, so that `growtx verify` works on what was pulled. `growtx/files.sha256` lists
every file; a pull checks it.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growtx.config import parse_yaml
from growtx.exceptions import ConfigError, GrowtxError, StoreError
from growtx.growth.lineage import TOKENIZER_DIR, Lineage
from growtx.growth.results import HUGGING_FACE_FILE, find_result
from growtx.report.model_card import write_model_card
from growtx.storage import Storage
from growtx.store.blobs import blob_path
from growtx.store.manifest import MANIFESTS_DIR
from growtx.store.run_records import DATA_FILE, RUN_FILE
from growtx.substrate.build import SUBSTRATE_FILE

PREFIX = "hf://"
MODEL_DIR = "model"
LINEAGE_DIR = "growtx"
FILES_FILE = f"{LINEAGE_DIR}/files.sha256"
BLOBS_FILE = f"{LINEAGE_DIR}/blobs.sha256"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class PushedFile:
    """A file of a repository."""

    path: str
    num_bytes: int
    sha256: str


def push(
    path: str, address: str, *, licence: str | None, private: bool, with_blobs: bool, dry_run: bool
) -> list[PushedFile]:
    """Put the model of a run, its card and its lineage on the hub; returns what is there then.

    Args:
        path: of a run with its model directory.
        address: `hf://user/name`; the repository is made if there is none.
        licence: an SPDX identifier; default: the run's own.
        dry_run: prepare everything and send nothing.

    Raises:
        ConfigError: the address is none, or there is no licence.
        StoreError: there is no finished run, a blob is missing, or the hub refuses.
    """
    name = repository(address)
    lineage = find_result(path).require_lineage()
    with tempfile.TemporaryDirectory() as directory:
        _stage(lineage, Path(directory), _licence(lineage.storage, licence), with_blobs=with_blobs)
        files = list(_listed(Path(directory)))
        (Path(directory) / FILES_FILE).write_text("".join(f"{file.sha256}  {file.path}\n" for file in files))
        if not dry_run:
            _upload(Path(directory), name, private=private)
    return files


def pull(address: str, target: Path) -> Path:
    """Fetch a repository and check every file against the hashes in it; returns the directory.

    Raises:
        ConfigError: the address is none.
        StoreError: the directory is taken, the hub refuses, or a file is not what was pushed; nothing is left then.
    """
    import huggingface_hub

    name = repository(address)
    if target.exists() and any(target.iterdir()):
        raise StoreError(f"{target} is not empty", "Name a directory that does not exist yet")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        fetched = Path(scratch) / "fetched"
        with _hub_errors(address):
            huggingface_hub.snapshot_download(name, local_dir=fetched)
        _check(fetched, address)
        shutil.rmtree(fetched / ".cache", ignore_errors=True)  # bookkeeping of the download
        if target.exists():
            target.rmdir()
        fetched.rename(target)
    return target


def repository(address: str) -> str:
    """`user/name` of `hf://user/name`."""
    name = address.removeprefix(PREFIX)
    if not address.startswith(PREFIX) or not _NAME.fullmatch(name):
        raise ConfigError(f"{address} is no repository on the hub", "Write it as hf://user/name")
    return name


def _licence(run: Storage, given: str | None) -> str:
    if given:
        return given
    tree = parse_yaml(run.read_text(RUN_FILE), run.path(RUN_FILE)) if run.exists(RUN_FILE) else {}
    if not (isinstance(tree, dict) and tree.get("license")):
        raise ConfigError(
            "the run names no licence, and a model without one may not be used by anybody",
            "Add --licence apache-2.0 (or another SPDX identifier), or set license in the run's configuration",
        )
    return str(tree["license"])


def _stage(lineage: Lineage, directory: Path, licence: str, *, with_blobs: bool) -> None:
    """Lay the repository out in a local directory."""
    run = lineage.storage
    if not run.exists(f"{MODEL_DIR}/{HUGGING_FACE_FILE}"):
        raise StoreError(f"{run.root} has no model directory yet", "Let the run end, or resume it: that writes it")
    write_model_card(run.root)
    for file in run.list_files(MODEL_DIR):
        _copy(run, file, directory / file.removeprefix(f"{MODEL_DIR}/"))
    card = directory / "README.md"
    card.write_text(_with_licence(card.read_text(encoding="utf-8"), licence), encoding="utf-8")
    blobs = sorted({blob for manifest in lineage.manifests for blob in (*manifest.blobs(), *manifest.new_blobs)})
    files = [f"{MANIFESTS_DIR}/{manifest.file_name}" for manifest in lineage.manifests]
    files += [file for file in (f"{MANIFESTS_DIR}/latest", SUBSTRATE_FILE, DATA_FILE) if run.exists(file)]
    if with_blobs:
        files += [*map(blob_path, blobs), *run.list_files(TOKENIZER_DIR)]
    for file in files:
        _copy(run, file, directory / LINEAGE_DIR / file)
    (directory / BLOBS_FILE).write_text("".join(f"{blob}  {blob_path(blob)}\n" for blob in blobs))


def _with_licence(card: str, licence: str) -> str:
    head, body = card.removeprefix("---\n").split("---\n", 1)
    lines = [line for line in head.splitlines() if not line.startswith("license:")]
    return "---\n" + "\n".join([*lines, f"license: {licence}"]) + "\n---\n" + body


def _copy(run: Storage, file: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(run.read_bytes(file))


def _listed(directory: Path) -> Iterator[PushedFile]:
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            yield PushedFile(path.relative_to(directory).as_posix(), path.stat().st_size, _sha256(path))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(directory: Path, address: str) -> None:
    listing = directory / FILES_FILE
    if not listing.is_file():
        raise StoreError(f"{address} was not pushed by growtx: it has no {FILES_FILE}", "Load it with transformers")
    for line in listing.read_text(encoding="utf-8").splitlines():
        expected, _, name = line.partition("  ")
        path = directory / name
        if not path.resolve().is_relative_to(directory.resolve()) or not path.is_file() or _sha256(path) != expected:
            raise StoreError(f"{address}: {name} is not the file that was pushed", "Pull again, or ask who pushed it")


def _upload(directory: Path, name: str, *, private: bool) -> None:
    import huggingface_hub

    api: Any = huggingface_hub.HfApi()
    with _hub_errors(f"{PREFIX}{name}"):
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=directory, commit_message="growtx push")


@contextmanager
def _hub_errors(address: str) -> Iterator[None]:
    """What the hub or the network says, as a sentence."""
    try:
        yield
    except GrowtxError:
        raise
    except Exception as error:  # httpx, huggingface_hub and the file system have classes of their own each
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        remedy = (
            "Log in with `hf auth login`" if "401" in reason or "token" in reason.lower() else "Check name and network"
        )
        raise StoreError(f"{address} cannot be used: {reason}", remedy) from error
