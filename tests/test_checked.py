"""A file is read to be proven once, and again whenever it, or what it should hold, may be another."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from growtx.checked import check_once, node_directory


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROWTX_NODE_CACHE", str(tmp_path / "node"))


class Check:
    """Counts how often it is asked."""

    def __init__(self, problem: str | None = None) -> None:
        self.problem, self.count = problem, 0

    def __call__(self) -> str | None:
        self.count += 1
        return self.problem


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    return path


def test_a_file_that_is_as_it_should_be_is_read_once(file: Path) -> None:
    check = Check()
    assert [check_once(file, "hash", check) for _ in range(3)] == [None] * 3
    assert check.count == 1
    assert check_once(file, "hash", check, force=True) is None
    assert check.count == 2
    assert check_once(file, "another hash", check) is None
    assert check.count == 3


def test_what_is_wrong_is_never_taken_for_checked(file: Path) -> None:
    wrong = Check("it is cut off")
    assert [check_once(file, "hash", wrong) for _ in range(2)] == ["it is cut off"] * 2
    assert wrong.count == 2
    assert check_once(file, "hash", Check()) is None
    assert check_once(file, "hash", wrong, force=True) == "it is cut off"
    assert check_once(file, "hash", wrong) == "it is cut off", "a later look revokes an earlier one"


def test_whatever_writes_to_a_file_has_it_checked_again(file: Path) -> None:
    check = Check()
    check_once(file, "hash", check)
    time.sleep(0.01)
    for number, change in enumerate(
        (
            lambda: file.write_bytes(b"54321"),
            lambda: file.write_bytes(b"123456"),
            lambda: file.with_name("new").write_bytes(b"123456") and file.with_name("new").replace(file),
            lambda: (file.write_bytes(b"abcdef"), os.utime(file, (0, 0))),
            lambda: (file.write_bytes(b"ABCDEF"), os.utime(file, (0, 0))),  # the times of content are the same again
        )
    ):
        change()
        check_once(file, "hash", check)
        assert check.count == number + 2
        time.sleep(0.01)


def test_a_file_that_is_replaced_while_it_is_read_does_not_count_as_checked(file: Path) -> None:
    def replacing() -> None:
        file.with_name("new").write_bytes(b"54321")
        file.with_name("new").replace(file)

    assert check_once(file, "hash", replacing) is None
    check = Check("it holds something else")
    assert check_once(file, "hash", check) == "it holds something else"


def test_where_nothing_can_be_remembered_everything_is_read(file: Path) -> None:
    node_directory().parent.mkdir(exist_ok=True)
    node_directory().write_text("a file is in the way")
    check = Check()
    assert [check_once(file, "hash", check) for _ in range(2)] == [None, None]
    assert check.count == 2
