from __future__ import annotations

import json
import re
from pathlib import Path

from growtx.evaluate.report import frozen_problems, headline, write_report
from growtx.evaluate.run_record import read_run
from tests.evaluate.conftest import sha, write_run

PLOTS = {"loss_against_tokens", "bits_per_byte_against_depth", "parameters_against_depth", "speed_and_memory"}


def change_manifest(run_dir: Path, stage: int, **changes: object) -> None:
    path = run_dir / "manifests" / f"{stage:02d}-grow-{stage}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_report_holds_every_figure_table_and_sample(run_dir: Path) -> None:
    html = write_report(str(run_dir)).read_text()
    assert {path.stem for path in (run_dir / "plots").glob("*.png")} == PLOTS
    assert html.count("<picture>") == len(PLOTS)
    assert html.count("<table>") == len(PLOTS) + 1
    for words in ("安娜住在", "900,000", "python rayjobs/grow.py --preset demo", sha("b3")[:10], "torch"):
        assert words in html


def test_report_needs_no_network_and_no_other_file(run_dir: Path) -> None:
    html = write_report(str(run_dir)).read_text()
    assert not re.findall(r"https?://", html)
    assert all(source.startswith("data:image/png") for source in re.findall(r'src(?:set)?="([^"]+)"', html))


def test_text_of_a_model_cannot_become_markup(run_dir: Path) -> None:
    change_manifest(run_dir, 4, samples=[{"prompt": "<script>", "text": "alert(1)</script>"}])
    html = write_report(str(run_dir)).read_text()
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_headline_says_what_happened(run_dir: Path) -> None:
    said = headline(read_run(run_dir)).replace("\u00a0", " ")
    assert said == (
        "Grew 4 blocks in 4 stages; held-out bits per byte fell from 2.17 after the first stage to 1.61; "
        "900 k of 2.10 M parameters were active in the last stage; nothing frozen moved (52 hashes checked)."
    )


def test_headline_admits_a_rise(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    (run_dir / "metrics.jsonl").unlink()
    change_manifest(run_dir, 4, metrics={"eval/bits_per_byte": 2.5})
    assert "rose from 2.17 after the first stage to 2.50 (no gain in stage 4)" in headline(read_run(run_dir))


def test_frozen_tensors_that_moved_raise_an_alarm(run_dir: Path) -> None:
    change_manifest(run_dir, 3, frozen_check={"num_tensors": 17, "before": "a", "after": "b"})
    run = read_run(run_dir)
    assert "FROZEN TENSORS MOVED" in headline(run)
    assert frozen_problems(run) == ["Frozen tensors changed during stage 3 · grow-3: its result must not be used"]
    assert 'role="alert"' in write_report(str(run_dir)).read_text()


def test_a_run_that_still_goes_on_has_a_report(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", num_stages=3, finished=2)
    assert headline(read_run(run_dir)).endswith("stage 3 has not finished.")
    assert "not finished" in write_report(str(run_dir)).read_text()


def test_a_run_without_any_finished_stage_has_a_report(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", num_stages=1, finished=0)
    assert "No stage has finished yet" in write_report(str(run_dir)).read_text()


def test_manifests_alone_suffice_and_the_rest_is_named(run_dir: Path) -> None:
    (run_dir / "metrics.jsonl").unlink()
    (run_dir / "run.yaml").unlink()
    html = write_report(str(run_dir)).read_text()
    assert "Not recorded in this run" in html
    assert "metrics.jsonl: the loss within the stages is not known" in html
