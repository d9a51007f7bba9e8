"""Pushing and pulling, with the hub replaced by a folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from growtx.cli.main import main
from growtx.exceptions import ConfigError, StoreError
from growtx.growth.results import load_model
from growtx.models.saving import save_directory
from growtx.report.hub import FILES_FILE, pull, push
from tests.tiny import write_run

OPTIONS: dict[str, Any] = {"licence": "apache-2.0", "private": False, "with_blobs": True, "dry_run": False}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its model directory."""
    from tests import tiny

    path = tmp_path_factory.mktemp("hub") / "run"
    write_run(path, tiny.build_tokenizer())
    save_directory(*load_model(str(path)), path / "model")
    (path / "run.yaml").write_text(yaml.safe_dump({"name": "tiny", "provenance": {"command": "growtx grow"}}))
    return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which repositories lie."""
    root = tmp_path / "hub"

    def create(self: Any, name: str, *, private: bool, exist_ok: bool) -> None:
        (root / name).mkdir(parents=True, exist_ok=exist_ok)

    def upload(self: Any, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)

    def download(name: str, *, local_dir: Path) -> str:
        return str(shutil.copytree(root / name, local_dir))

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    yield root


def test_what_is_pulled_is_what_was_pushed_and_verifies(whole_run: Path, hub: Path, tmp_path: Path) -> None:
    files = push(str(whole_run), "hf://someone/tiny", **OPTIONS)
    assert {"model.safetensors", "README.md", "modeling_growtx.py", "growtx/blobs.sha256"} <= {f.path for f in files}
    directory = pull("hf://someone/tiny", tmp_path / "pulled")
    assert main(["verify", str(directory / "growtx")]) == 0
    ours, theirs = (load_model(str(path))[0].state_dict() for path in (whole_run, directory))
    assert all(ours[name].equal(theirs[name]) for name in ours)
    card = (directory / "README.md").read_text()
    assert "license: apache-2.0" in card and "## Lineage" in card


def test_a_dry_run_sends_nothing(whole_run: Path, hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["push", str(whole_run), "hf://someone/tiny", "--licence", "mit", "--dry-run"]
    assert main(command) == 0
    assert "would be sent" in capsys.readouterr().out
    assert not hub.exists()


def test_without_blobs_their_hashes_are_there(whole_run: Path, hub: Path) -> None:
    files = push(str(whole_run), "hf://someone/tiny", **OPTIONS | {"with_blobs": False})
    assert not [file for file in files if file.path.startswith("growtx/blobs/")]
    assert len((hub / "someone/tiny/growtx/blobs.sha256").read_text().splitlines()) >= 4


def test_a_model_without_a_licence_is_not_pushed(whole_run: Path, hub: Path) -> None:
    with pytest.raises(ConfigError, match=r"names no licence.*Add --licence"):
        push(str(whole_run), "hf://someone/tiny", **OPTIONS | {"licence": None})
    assert not hub.exists()


@pytest.mark.parametrize("address", ["someone/tiny", "hf://tiny", "hf://a/b/c", "hf://../tiny", "s3://a/b"])
def test_an_address_that_is_none_is_a_sentence(whole_run: Path, address: str) -> None:
    with pytest.raises(ConfigError, match="Write it as hf://user/name"):
        push(str(whole_run), address, **OPTIONS)


def test_a_run_without_a_model_is_refused(finished_run: Path) -> None:
    with pytest.raises(StoreError, match="no model directory yet"):
        push(str(finished_run), "hf://someone/tiny", **OPTIONS)


@pytest.mark.parametrize("damage", ["changed", "gone", "unlisted"])
def test_a_damaged_repository_is_refused_and_leaves_nothing(
    whole_run: Path, hub: Path, tmp_path: Path, damage: str
) -> None:
    push(str(whole_run), "hf://someone/tiny", **OPTIONS)
    target = hub / "someone/tiny" / (FILES_FILE if damage == "unlisted" else "model.safetensors")
    if damage == "changed":
        target.write_bytes(target.read_bytes()[:-1] + b"x")
    else:
        target.unlink()
    with pytest.raises(StoreError, match=r"not the file that was pushed|was not pushed by growtx"):
        pull("hf://someone/tiny", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists() and not list(tmp_path.glob(".pulled-*"))


def test_a_listing_cannot_name_files_elsewhere(whole_run: Path, hub: Path, tmp_path: Path) -> None:
    push(str(whole_run), "hf://someone/tiny", **OPTIONS)
    with (hub / "someone/tiny" / FILES_FILE).open("a") as listing:
        listing.write(f"{'0' * 64}  ../../secret\n")
    with pytest.raises(StoreError, match="not the file that was pushed"):
        pull("hf://someone/tiny", tmp_path / "pulled")


def test_what_the_hub_says_is_a_sentence(whole_run: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("401 Client Error: Unauthorized\nInvalid user token.")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    with pytest.raises(StoreError, match=r"cannot be used: 401 Client Error.*hf auth login"):
        push(str(whole_run), "hf://someone/tiny", **OPTIONS)
