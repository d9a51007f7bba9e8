"""The `growtx` command and what all jobs share: sentences instead of tracebacks, exit statuses that mean something."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from growtx.cli.main import main, parse
from growtx.command import run_command
from growtx.config import preset_names
from growtx.exceptions import ConfigError, StoreError
from growtx.growth.lineage import open_lineage
from growtx.storage import Storage
from growtx.store.blobs import BlobStore, blob_path
from growtx.store.manifest import write_manifest
from growtx.store.run_records import DataRecord, write_data_record
from tests import tiny

Capture = pytest.CaptureFixture[str]


def error_of(capsys: Capture) -> str:
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err.removeprefix("error: ").strip()


def test_a_command_line_that_cannot_be_parsed_exits_with_2(capsys: Capture) -> None:
    for arguments in (
        [],
        ["fly"],
        ["inspect"],
        ["generate", "run"],
        ["generate", "run", "--prompt", "x", "--depth", "a"],
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    assert "usage: growtx" in capsys.readouterr().err


def test_the_version_is_printed(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out.startswith("growtx 0.")


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_path_without_a_run_is_one_sentence_and_exits_with_1(command: str, tmp_path: Path, capsys: Capture) -> None:
    assert main([command, str(tmp_path / "nothing")]) == 1
    assert "there is no such run" in error_of(capsys)
    assert main([command, str(tmp_path)]) == 1
    assert "has no finished stage" in error_of(capsys)


def test_inspect_prints_stages_and_blobs(finished_run: Path, capsys: Capture) -> None:
    assert main(["inspect", str(finished_run)]) == 0
    printed = capsys.readouterr().out
    lineage = open_lineage(str(finished_run))
    assert all(f"{manifest.index} {manifest.name}" in printed for manifest in lineage.manifests)
    assert all(blob[:12] in printed for blob in lineage.last.blobs())


def test_inspect_says_what_each_stage_saw_where_stages_had_mixes_of_their_own(run_dir: Path, capsys: Capture) -> None:
    lineage = open_lineage(str(run_dir))
    assert main(["inspect", str(run_dir)]) == 0 and "trained on" not in capsys.readouterr().out
    parent = None
    for manifest, books in zip(lineage.manifests, (4, 1, 2), strict=True):
        metrics = {**manifest.metrics, "own_mix": True, "windows_by_source": {"books": books, "puzzles": 4 - books}}
        changed = manifest.model_copy(update={"metrics": metrics, "parent": parent})
        write_manifest(Storage(str(run_dir)), changed)
        parent = changed.digest()
    assert main(["inspect", str(run_dir)]) == 0
    printed = capsys.readouterr().out
    assert "data: stage 1 trained on 100% books, 0% puzzles" in printed
    assert "data: stage 2 trained on 25% books, 75% puzzles" in printed


def test_inspect_can_print_the_manifests_for_programs(finished_run: Path, capsys: Capture) -> None:
    assert main(["inspect", "--json", f"{finished_run}/manifests/02-depth-2.json"]) == 0
    names = [manifest["name"] for manifest in json.loads(capsys.readouterr().out)]
    assert names == ["depth-1", "depth-2"]


def test_verify_says_that_a_run_is_intact(finished_run: Path, capsys: Capture) -> None:
    for path in (finished_run, finished_run / "manifests/01-depth-1.json"):
        assert main(["verify", str(path)]) == 0
        assert capsys.readouterr().out.startswith("intact: 3 manifests, 8 blobs, ")


def change_last_byte(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


DAMAGES: dict[str, Callable[[Path], None]] = {"corrupt": change_last_byte, "missing": Path.unlink}


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_names_the_blob_that_does_not_match_and_exits_with_1(
    damage: str, run_dir: Path, capsys: Capture
) -> None:
    blob = open_lineage(str(run_dir)).manifests[0].blocks[0].blob
    DAMAGES[damage](run_dir / blob_path(blob))
    for path in (run_dir, run_dir / "manifests/03-tune-2.json"):
        assert main(["verify", str(path)]) == 1
        needed_by = "01-depth-1.json, 02-depth-2.json, 03-tune-2.json"
        first, last = capsys.readouterr().out.splitlines()
        assert first == f"{damage}: blob {blob} (needed by {needed_by})" and last.startswith("NOT intact: 3 manifests")


def test_one_damaged_part_of_a_group_is_enough(finished_run: Path, tmp_path: Path, capsys: Capture) -> None:
    for name in ("a", "b", "c"):
        shutil.copytree(finished_run, tmp_path / name)
    (tmp_path / "run.yaml").write_text("kind: study\n")
    assert main(["verify", str(tmp_path)]) == 0
    change_last_byte(tmp_path / "a" / blob_path(open_lineage(str(finished_run)).last.head))
    capsys.readouterr()
    assert main(["verify", str(tmp_path)]) == 1
    verdicts = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "manifests, " in line]
    assert verdicts == ["NOT intact", "intact", "intact"]


def test_packed_text_that_was_changed_makes_a_run_not_intact(run_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    packed = tmp_path / "packed/mix.json"
    packed.parent.mkdir()
    packed.write_text("{}")
    record = DataRecord(data_fingerprint="d", sources={}, packed_path=str(packed))
    write_data_record(Storage(str(run_dir)), record)
    assert main(["verify", str(run_dir)]) == 1
    printed = capsys.readouterr().out
    assert "packed data: " in printed and "NOT intact: 3 manifests" in printed


def test_verify_refuses_another_tokenizer(run_dir: Path, capsys: Capture) -> None:
    path = run_dir / "tokenizer/tokenizer.json"
    tree = json.loads(path.read_text())
    tree["model"]["merges"].pop()
    path.write_text(json.dumps(tree))
    assert main(["verify", str(run_dir)]) == 1
    assert "the tokenizer is a different one" in capsys.readouterr().err


def test_verify_removes_what_no_manifest_refers_to_only_when_asked(run_dir: Path, capsys: Capture) -> None:
    import torch

    orphan = run_dir / blob_path(BlobStore(str(run_dir)).put({"left": torch.zeros(3)}))
    assert main(["verify", str(run_dir)]) == 0 and orphan.exists()
    assert "1 files that no manifest refers to (--prune removes them)" in capsys.readouterr().out
    size = orphan.stat().st_size
    assert main(["verify", "--prune", str(run_dir)]) == 0 and orphan.exists()
    assert "1 files that no manifest refers to are younger than an hour (kept)" in capsys.readouterr().out
    os.utime(orphan, (0, 0))
    assert main(["verify", "--prune", str(run_dir)]) == 0 and not orphan.exists()
    assert f"1 files that no manifest refers to (removed, {size} bytes)" in capsys.readouterr().out
    assert main(["verify", str(run_dir)]) == 0
    assert "no manifest" not in capsys.readouterr().out


def generate(run: Path, *options: str) -> int:
    return main(["generate", str(run), "--prompt", "a block", "--max-tokens", "8", *options])


def test_generate_continues_the_prompt_the_same_way_for_the_same_seed(finished_run: Path, capsys: Capture) -> None:
    def text(*options: str) -> str:
        assert generate(finished_run, *options) == 0
        return capsys.readouterr().out

    once = text("--seed", "1", "--temperature", "2")
    assert once.startswith("a block") and once == text("--seed", "1", "--temperature", "2")
    assert once != text("--seed", "2", "--temperature", "2")
    greedy = text("--temperature", "0")
    assert greedy == text("--temperature", "0", "--seed", "5")
    assert text("--temperature", "0", "--depth", "1").startswith("a block")
    assert main(["generate", str(finished_run), "--prompt", "", "--max-tokens", "2"]) == 0


def test_generate_with_drafts_says_the_same_and_how_many_were_right(tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "run"
    tiny.write_run(run, tiny.build_tokenizer(), {"grow": {"blocks": 3}, "train": {"steps": 1}})
    assert generate(run, "--seed", "3") == 0
    plain = capsys.readouterr().out
    assert generate(run, "--seed", "3", "--speculate", "2:3") == 0
    found = capsys.readouterr()
    assert found.out == plain and re.search(r"^\d+ of \d+ drafts were right; \d\.\d\d tokens a pass$", found.err, re.M)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--max-tokens", "0"], "--max-tokens below 1"),
        (["--temperature", "-1"], "--temperature below 0"),
        (["--temperature", "nan"], "--temperature below 0"),
        (["--seed", str(2**70)], f"--seed {2**70} is out of range"),
        (["--max-tokens", "1000"], "and --max-tokens=1000; the model takes 31"),
        (["--speculate", "two"], "--speculate two is not DEPTH or DEPTH:TOKENS"),
        (["--speculate", "1"], "the blocks of depth 1 are not the lowest of depth 2: a LoRA phase changed them"),
        (["--speculate", "2:3"], "depth 2 with 3 drafts cannot speculate for depth 2"),
        (["--speculate", "7"], "has no depth 7 that could draft. Its depths: 1, 2"),
    ],
)
def test_generate_refuses_what_cannot_be_with_status_2(
    options: list[str], sentence: str, finished_run: Path, capsys: Capture
) -> None:
    assert generate(finished_run, *options) == 2
    assert sentence in error_of(capsys)


def test_generate_refuses_a_depth_that_was_never_grown(finished_run: Path, capsys: Capture) -> None:
    assert generate(finished_run, "--depth", "9") == 1
    assert error_of(capsys).endswith("has no stage of depth 9. Its depths are 1, 2.")


def test_runs_are_listed_with_their_state(finished_run: Path, capsys: Capture) -> None:
    assert main(["runs", str(finished_run.parent)]) == 0
    assert "run" in capsys.readouterr().out
    assert main(["runs", str(finished_run / "nothing")]) == 1
    assert "there is no such directory" in error_of(capsys)


def test_presets_are_listed_with_a_description_and_printed_resolved(capsys: Capture) -> None:
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == preset_names() and all(len(line.split()) > 2 for line in lines)
    assert main(["presets", "demo"]) == 0
    assert "initializer_range: 0.02" in capsys.readouterr().out
    assert main(["presets", "dmo"]) == 2
    assert "unknown preset" in error_of(capsys)


def test_a_preset_with_credentials_is_printed_without_them(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: demo\ntracking: {mlflow: {tracking_uri: 'http://user:s3cr3t@host'}}\n")
    assert main(["presets", str(file)]) == 0
    assert "http://user:***@host" in capsys.readouterr().out
    file.write_text("extends: demo\ntracking: {mlflow: {tracking_uri: 'http://user:s3cr3t@host', x: 1}}\n")
    assert main(["presets", str(file)]) == 2
    assert "s3cr3t" not in capsys.readouterr().err


def test_plan_says_whether_the_prefix_cache_pays_and_what_it_takes(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")

    # 200 steps of 32 windows, 128 tokens of 128 numbers in fp32: 400 MiB if no window returns, a tenth of it if ten do
    def last_table(*options: str) -> str:
        plan = "plan={grow: {blocks: 2}, train: {steps: 200}}"
        assert main(["plan", "--preset", "demo", plan, *options]) == 0
        return capsys.readouterr().out.split("Frozen prefix")[1]

    assert "400.0" in last_table() and "5,120" in last_table() and "seen too rarely" in last_table()
    returning = last_table("--data-tokens", str(640 * 128))
    assert "40.0" in returning and "saves 90%" in returning
    assert "saves 50%" in last_table("--trials", "2")


def test_plan_proposes_stages_within_a_budget_as_a_preset_that_grow_takes(tmp_path: Path, capsys: Capture) -> None:
    from growtx.growth.flops import active_parameters
    from growtx.growth.plan import resolve
    from growtx.run.config import load_run_config
    from growtx.run.forecast import planned_architecture

    file = tmp_path / "proposal.yaml"
    assert main(["plan", "--preset", "demo", "--budget", "950000", "--blocks", "5", "--out", str(file)]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith(file.read_text()) and "activations" in printed and "plan:" in printed
    config = load_run_config(str(file), [])
    stages = resolve(config.plan)
    assert stages[-1].num_blocks == 5 and stages[-1].lora is not None and config.plan.budget.active_parameters == 950000
    assert max(active_parameters(planned_architecture(config), stage) for stage in stages) <= 950_000
    assert main(["plan", "--memory-gib", "0.05", "--blocks", "12"]) == 0
    assert "plan:" in capsys.readouterr().out
    assert main(["plan", "--budget", "1000"]) == 2
    assert "Give at least" in error_of(capsys)
    assert main(["plan", "--budget", "-1"]) == 2
    assert "must be positive" in error_of(capsys)


def test_a_job_takes_overrides_before_between_and_after_its_options() -> None:
    arguments = parse(["grow", "a=1", "--preset", "demo", "b=2", "--run-dir", "x", "c=3", "--resume"])
    assert (arguments.preset, arguments.run_dir, arguments.resume) == ("demo", "x", True)
    assert arguments.overrides == ["a=1", "b=2", "c=3"]
    nothing = parse(["grow"])
    assert (nothing.preset, nothing.run_dir, nothing.resume, nothing.overrides) == (None, None, False, [])


def fail(error: BaseException) -> Callable[[], int]:
    def action() -> int:
        raise error

    return action


def test_a_command_ends_with_the_status_of_its_error(capsys: Capture) -> None:
    assert run_command(lambda: 0) == 0
    assert run_command(fail(StoreError("blob is missing", "Restore it"))) == 1
    assert error_of(capsys) == "blob is missing. Restore it."
    assert run_command(fail(ConfigError("seed=x: no number"))) == 2
    assert error_of(capsys) == "seed=x: no number."
    assert run_command(fail(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert run_command(fail(KeyboardInterrupt()), resumable=True) == 130
    assert "use --resume to continue" in capsys.readouterr().err
    assert run_command(fail(SystemExit(signal.SIGTERM)), resumable=True) == 0
    with pytest.raises(SystemExit):
        run_command(fail(SystemExit(signal.SIGTERM)))


def test_a_mistake_of_our_own_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


def test_tables_in_logs_are_not_broken_at_80_characters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")  # so that the end of the test restores what was there
    monkeypatch.delenv("COLUMNS")
    assert run_command(lambda: print(Console().width) or 0) == 0
    assert int(capsys.readouterr().out) >= 160
