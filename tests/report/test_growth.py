from __future__ import annotations

import base64
import hashlib
import re
import uuid
from collections.abc import Callable
from pathlib import Path

import yaml

from growtx.report.growth import frozen_problems, headline, seen_section, write_report
from growtx.report.model_card import write_model_card
from growtx.report.run_record import read_run
from growtx.storage import Storage
from growtx.store.run_records import DataRecord, SourceReading

PLOTS = {"loss_against_tokens", "bits_per_byte_against_depth", "parameters_against_depth", "speed_and_memory"}
MakeRun = Callable[..., Path]


def page_of(run_dir: Path) -> str:
    return Path(write_report(str(run_dir))).read_text()


def test_report_holds_every_figure_table_and_sample(run_dir: Path) -> None:
    html = page_of(run_dir)
    assert {path.stem for path in (run_dir / "plots").glob("*.png")} == PLOTS
    assert html.count("<picture>") == len(PLOTS)
    assert html.count("<table>") == len(PLOTS) + 1
    newest_block = hashlib.sha256(b"block-3").hexdigest()[:10]
    for words in ("安娜住在", "900,000", "python rayjobs/grow.py --preset demo", newest_block, "torch"):
        assert words in html


def test_report_needs_no_network_and_no_other_file(run_dir: Path, rough: None) -> None:
    html = page_of(run_dir)
    assert not re.findall(r"https?://", html)
    assert all(source.startswith("data:image/png") for source in re.findall(r'src(?:set)?="([^"]+)"', html))


def test_report_is_written_beside_the_run_on_any_file_system(run_dir: Path, rough: None) -> None:
    remote = Storage(f"memory://{uuid.uuid4()}")
    remote.replace_directory(str(run_dir), "run", last="run.yaml")
    assert write_report(remote.path("run")) == remote.path("run/report.html")
    assert remote.exists("run/plots/loss_against_tokens.png")


def test_text_of_a_model_cannot_become_markup(make_run: MakeRun, rough: None) -> None:
    html = page_of(make_run(changes={4: {"samples": ({"prompt": "<script>", "text": "alert(1)</script>"},)}}))
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_report_says_how_much_of_each_source_was_read_and_what_was_dropped(run_dir: Path, rough: None) -> None:
    reading = SourceReading(
        name="web", share=0.214, num_parts=300, num_parts_read=64, num_documents=123_456, num_held_out=2_469,
        num_bytes=10**9, num_tokens=6 * 10**8, dropped={"duplicate": 77, "empty": 5},
    )  # fmt: skip
    assert "Held-out documents are measured on" not in page_of(run_dir)
    record = DataRecord(data_fingerprint="d", sources={"web": "s"}, readings=(reading,))
    (run_dir / "data.json").write_text(record.model_dump_json())
    page = page_of(run_dir)
    for text in ("21.4", "64 of 300", "123,456", "2,469", "77 duplicate, 5 empty"):
        assert text in page


def test_report_says_what_each_stage_saw(make_run: MakeRun, rough: None) -> None:
    seen = [{"books": 30, "puzzles": 0}, {"books": 10, "puzzles": 30}]
    metrics = [{"windows_by_source": windows, "own_mix": True} for windows in seen]
    run_dir = make_run(num_stages=2, changes={1: {"metrics": metrics[0]}, 2: {"metrics": metrics[1]}})
    section = seen_section(read_run(str(run_dir)))
    assert section is not None and section.table is not None
    assert section.table.headers == ["stage", "books", "puzzles"]
    cells = [[cell.replace("\u00a0", " ") for cell in row[1:]] for row in section.table.rows]
    assert [[cell.partition(".")[0].partition(" ")[0] for cell in row] for row in cells] == [["100", "0"], ["25", "75"]]
    assert "What each stage saw" in page_of(run_dir)


def test_a_run_of_one_mix_has_no_section_on_what_each_stage_saw(run_dir: Path) -> None:
    assert seen_section(read_run(str(run_dir))) is None


def test_headline_says_what_happened(run_dir: Path) -> None:
    assert headline(read_run(str(run_dir))).replace("\u00a0", " ") == (
        "Grew 4 blocks in 4 stages; held-out bits per byte fell from 2.17 after the first stage to 1.61; "
        "900 k of 2.10 M parameters were active in the last stage; no frozen tensor changed (52 hashes checked)."
    )


def test_headline_admits_a_rise(make_run: MakeRun) -> None:
    run_dir = make_run(changes={4: {"metrics": {"eval/bits_per_byte": 2.5}}})
    (run_dir / "metrics.jsonl").unlink()
    assert "rose from 2.17 after the first stage to 2.50 (no gain in stage 4)" in headline(read_run(str(run_dir)))


def test_frozen_tensors_that_moved_raise_an_alarm(make_run: MakeRun, rough: None) -> None:
    run_dir = make_run(changes={3: {"frozen_check": {"num_tensors": 17, "before": "a", "after": "b"}}})
    run = read_run(str(run_dir))
    assert "FROZEN TENSORS CHANGED" in headline(run)
    assert frozen_problems(run) == ["Frozen tensors changed during stage 3 (depth-3): its result must not be used"]
    assert 'role="alert"' in page_of(run_dir)


def test_a_run_that_still_goes_on_has_a_report(make_run: MakeRun, rough: None) -> None:
    run_dir = make_run(num_stages=3, finished=2)
    assert headline(read_run(str(run_dir))).endswith("stage 3 has not finished.")
    assert "not finished" in page_of(run_dir)


def test_a_run_without_any_finished_stage_has_a_report(make_run: MakeRun, rough: None) -> None:
    assert "No stage has finished yet" in page_of(make_run(num_stages=1, finished=0))


def test_manifests_alone_suffice_and_the_rest_is_named(run_dir: Path, rough: None) -> None:
    (run_dir / "metrics.jsonl").unlink()
    (run_dir / "run.yaml").unlink()
    html = page_of(run_dir)
    assert "Not recorded in this run" in html
    assert "metrics.jsonl: the loss within the stages is not known" in html


def test_credentials_that_an_older_version_recorded_are_not_shown(run_dir: Path, rough: None) -> None:
    recorded = yaml.safe_load((run_dir / "run.yaml").read_text())
    recorded["tracking"] = {"mlflow": {"tracking_uri": "http://user:s3cr3t@host"}}
    recorded["data"] = {"sources": [{"files": "https://user:s3cr3t@host/a.txt"}, {"files": ["s3://b/x?token=s3cr3t"]}]}
    recorded["provenance"]["command"] = (
        "WANDB_API_KEY=s3cr3t growtx grow tracking.mlflow.tracking_uri=http://a:s3cr3t@h"
    )
    (run_dir / "run.yaml").write_text(yaml.safe_dump(recorded))
    card = Path(write_model_card(str(run_dir))).read_text()
    html = page_of(run_dir)
    for text in (html, card):
        assert "s3cr3t" not in text and "https://user:***@host/a.txt" in text and "WANDB_API_KEY=***" in text


def test_a_browser_runs_no_script_of_a_report_and_knows_its_style_by_hash(run_dir: Path, rough: None) -> None:
    html = page_of(run_dir)
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', html)
    assert html.index(policy) < html.index("<style>"), "it holds for what comes after it"
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert "unsafe" not in policy and "script" not in policy
    assert "<script" not in html and not re.search(r"<[^>]+\s(style|on\w+)=", re.sub(r'"data:[^"]*"', "", html))
