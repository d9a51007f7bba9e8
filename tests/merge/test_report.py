"""Merge reports: text of every language and of mixed documents, honest sentences, pages that need no network."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from growtx.cli.main import main
from growtx.config import build_config
from growtx.data.sources import DataConfig
from growtx.data.tokenizer import token_num_bytes
from growtx.evaluate.intervals import Interval
from growtx.exceptions import ConfigError, DataError, GrowtxError
from growtx.growth.ensembles import read_ensemble, verify_ensemble
from growtx.growth.results import load_model
from growtx.merge.report import (
    _gate_sentence,
    compared_with,
    gains_by_domain,
    judge,
    kept_gain,
    read_scores,
    write_merge_report,
)
from growtx.merge.scores import BEFORE, OLD_ROUTE, Measured, MergeScores, fitting, prepared_rules, score_merge
from growtx.merge.speed import Speed
from growtx.merge.text import MIXED, MergeText, OwnText, merge_text, own_text, spliced
from growtx.models import GrowtxEnsembleForCausalLM
from growtx.models.ensemble import RULES, from_members
from growtx.models.loss import TextScore, labels_of, score_windows
from growtx.report.plot_style import LIGHT
from tests import tiny
from tests.models.ensemble.taking_apart import member_of

OTHER_TEXT = "newest weights learn while a frozen block reads its own write"
WORDS = {"a": tiny.TEXT.split(), "b": OTHER_TEXT.split()}
RULES_TRIED = ["mean", "weighted-mean", "posterior", "cluster"]


def documents(name: str, num: int = 60) -> list[str]:
    words = WORDS[name]
    return [f"{i} " + " ".join(words[(i * j + j) % len(words)] for j in range(1, 40)) for i in range(num)]


def write_files(directory: Path) -> dict[str, str]:
    paths = {}
    for name in WORDS:
        path = directory / f"text-{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents(name)))
        paths[name] = str(path)
    return paths


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """That of the models of `tiny`."""
    return tiny.build_tokenizer()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Two specialists whose runs say what they were grown on: one source of their own, one that they share."""
    root = tmp_path_factory.mktemp("merge")
    files = write_files(root)
    for name, stages in {"a": [{"add": 1}], "b": [{"add": 1}, {"add": 1}]}.items():
        tiny.write_run(root / name, tokenizer, {"stages": stages})
        sources = [
            {"name": f"own-{name}", "files": files[name]},
            {"name": "shared", "files": files["a"], "max_documents": 40},
        ]
        data = {"sources": sources, "validation_fraction": 0.4}
        (root / name / "run.yaml").write_text(json.dumps({"name": name, "data": data}))
    return root


@pytest.fixture(scope="module")
def text(tokenizer: Any) -> MergeText:
    own = OwnText({name: documents(name) for name in WORDS}, {"a": ["a"], "b": ["a", "b"]})
    return merge_text(own, tokenizer, context_length=tiny.CONTEXT_LENGTH, num_fit=9, num_measured=6)


@pytest.fixture(scope="module")
def ensemble(home: Path) -> GrowtxEnsembleForCausalLM:
    return from_members({name: load_model(str(home / name))[0] for name in "ab"})


@pytest.fixture(scope="module")
def scores(ensemble: GrowtxEnsembleForCausalLM, text: MergeText, tokenizer: Any) -> MergeScores:
    fit = fitting(ensemble, text, num_steps=3, batch_size=4, seed=0)
    rules, notes = prepared_rules(ensemble, text, RULES_TRIED, fit)
    control = {"control": member_of(ensemble, "a")}
    return score_merge(ensemble, text, rules, token_num_bytes(tokenizer), controls=control, batch_size=4, notes=notes)


def test_a_source_that_several_members_read_is_one_group(home: Path) -> None:
    trees = {name: json.loads((home / name / "run.yaml").read_text())["data"] for name in "ab"}
    own = own_text({name: build_config(DataConfig, tree) for name, tree in trees.items()}, max_bytes=10**6)
    assert list(own.groups) == ["own-a", "shared", "own-b"]
    assert own.groups_of == {"a": ["own-a", "shared"], "b": ["own-b", "shared"]}


def test_equal_names_of_unlike_sources_are_told_apart(tmp_path: Path) -> None:
    files = write_files(tmp_path)
    data = {
        name: build_config(DataConfig, {"sources": [{"name": "text", "files": path}], "validation_fraction": 0.5})
        for name, path in files.items()
    }
    assert list(own_text(data, max_bytes=10**6).groups) == ["text", "b text"]


def test_fitted_and_measured_windows_are_different_documents(text: MergeText, tokenizer: Any) -> None:
    for name in WORDS:
        fit, measured = (tokenizer.decode(windows[name].flatten()) for windows in (text.fit, text.measured))
        numbers = [set(re.findall(r"</s>(\d+) ", decoded)) for decoded in (fit, measured)]
        assert numbers[0] and numbers[1] and not numbers[0] & numbers[1]


def test_mixed_documents_hold_a_paragraph_of_every_group(text: MergeText, tokenizer: Any) -> None:
    mixed = text.measured[MIXED]
    assert mixed.shape == (6, tiny.CONTEXT_LENGTH) and text.main == MIXED
    assert [name for name, _ in text.parts] == ["a", "b"] and text.parts[-1][1] == tiny.CONTEXT_LENGTH
    middle = text.parts[0][1]
    assert torch.equal(mixed[0, 1 : middle - 1], text.measured["a"][0, 1 : middle - 1])
    assert torch.equal(mixed[0, middle:], text.measured["b"][0, 1 : 1 + tiny.CONTEXT_LENGTH - middle])
    assert torch.equal(mixed[1, 1 : middle - 1], text.measured["b"][1, 1 : middle - 1])  # the order turns


def test_text_too_short_for_a_window_is_a_sentence(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="the held-out text of x is too short: "):
        merge_text(OwnText({"x": ["abc", "abc"]}, {}), tokenizer, context_length=32, num_fit=1, num_measured=1)


def test_one_group_alone_is_judged_by_itself(tokenizer: Any) -> None:
    alone = merge_text(OwnText({"a": documents("a")}, {}), tokenizer, context_length=32, num_fit=2, num_measured=2)
    assert alone.main == "a" and not alone.parts


def test_members_score_as_they_do_alone(scores: MergeScores, text: MergeText, home: Path, tokenizer: Any) -> None:
    for member in "ab":
        model, _ = load_model(str(home / member))
        for domain, windows in text.measured.items():
            bytes_V = torch.from_numpy(token_num_bytes(tokenizer))
            alone = TextScore(*score_windows(model, windows, labels_of(windows, None), bytes_V).sum(0).tolist())
            assert scores.domains[domain].interval(member).value == pytest.approx(alone.bits_per_byte, rel=1e-5)


def test_every_rule_is_measured_before_and_after_fitting(scores: MergeScores) -> None:
    rules = ["mean", "weighted-mean", "weighted-mean (fitted)", "posterior", "posterior (fitted)", "cluster"]
    assert scores.names("rule", "fitted rule") == [*rules, "cluster (fitted)"]
    assert scores.names("member") == ["a", "b"] and scores.names("control") == ["control"]
    assert len(scores.rows()) == len(scores.kinds) * len(scores.domains)
    assert all(row.low is not None and row.low <= row.value <= (row.high or 0) for row in scores.rows())


def test_text_of_a_member_pools_its_groups(scores: MergeScores) -> None:
    pooled, parts = scores.domains["text of b"], [scores.domains[name] for name in "ab"]
    assert pooled.num_bytes.sum() == sum(part.num_bytes.sum() for part in parts)
    assert scores.own == {"a": ["a"], "b": ["a", "b", "text of b"]}


def test_only_rules_that_look_at_the_text_have_weights_along_it(scores: MergeScores) -> None:
    assert {"posterior", "cluster"} <= set(scores.weights) and "mean" not in scores.weights
    for weights_TN in scores.weights.values():
        assert weights_TN.shape == (tiny.CONTEXT_LENGTH - 1, 2) and np.allclose(weights_TN.sum(1), 1)


def test_a_rule_that_lacks_text_is_left_out_with_a_note(ensemble: GrowtxEnsembleForCausalLM, tokenizer: Any) -> None:
    own = OwnText({name: documents(name) for name in WORDS}, {})
    text = merge_text(own, tokenizer, context_length=tiny.CONTEXT_LENGTH, num_fit=3, num_measured=2)
    rules, notes = prepared_rules(ensemble, text, ["mean", "cluster"], lambda rule: None)
    assert list(rules) == ["mean"] and len(notes) == 1 and "cluster: there is no text of a, b alone" in notes[0]


def measured(**bits: float) -> Measured:
    noise = np.random.default_rng(0).normal(0, 0.01, 50)
    return Measured({name: 100 * value + noise for name, value in bits.items()}, np.full(50, 100.0))


def made(**domains: Measured) -> MergeScores:
    kinds: dict[str, Any] = {"ru": "member", "zh": "member", "mean": "rule", "posterior": "rule"}
    return MergeScores(kinds, domains, "mixed", {}, {}, [])


def test_a_gain_is_said_with_its_interval_and_its_price() -> None:
    scores = made(
        mixed=measured(ru=3.0, zh=2.5, mean=2.0, posterior=1.9), Russian=measured(ru=2.0, zh=4.0, mean=2.2, posterior=2)
    )
    verdict = judge(scores, "mean")
    assert verdict.has_gained and verdict.best_member == "zh" and verdict.gain.value == pytest.approx(0.5)
    sentence = verdict.sentence()
    assert "On mixed the merge by mean gains 0.500 bits per byte against its best member, zh" in sentence
    assert "on Russian it is 10.0\u00a0% worse than the best member on that text" in sentence
    assert "The best rule tried is posterior, with a gain of +0.600" in sentence


def test_a_loss_is_said_as_one() -> None:
    verdict = judge(made(mixed=measured(ru=2.0, zh=3.0, mean=2.4, posterior=2.3)), "posterior")
    assert not verdict.has_gained and "loses 0.300 bits per byte against its best member, ru" in verdict.sentence()


def test_the_report_needs_no_network_and_has_every_number(scores: MergeScores, text: MergeText, tmp_path: Path) -> None:
    verdict = judge(scores, "posterior")
    assert verdict.rule == "posterior (fitted)"
    out = str(tmp_path / "out")
    page = Path(write_merge_report(out, scores, verdict, parts=text.parts, facts={"windows": {"a": 6}}))
    html = page.read_text()
    assert "http" not in re.sub(r"data:[^\"]+", "", html).replace("http-equiv", "")
    assert "Member weights along a document" in html and html.count("<picture>") == 3
    for name in scores.kinds:
        assert f">{name}<" in html
    assert {path.name for path in (page.parent / "plots").iterdir()} == {
        f"merge_{name}.png" for name in ("gains", "scores", "weights")
    }
    record = json.loads((page.parent / "merge.json").read_text())
    assert len(record["scores"]) == len(scores.rows()) and record["windows"] == {"a": 6}
    assert record["sentence"] == verdict.sentence()


def test_values_before_tuning_stand_beside_those_after(scores: MergeScores, tmp_path: Path) -> None:
    out = str(tmp_path / "before")
    verdict = judge(scores, "mean")
    write_merge_report(out, scores, verdict)
    before = read_scores(out)
    assert before == tuple(scores.rows()) and read_scores(str(tmp_path / "none")) == ()
    doubled = [score.model_copy(update={"value": 2 * score.value}) for score in before if score.name != "mean"]
    html = Path(write_merge_report(str(tmp_path / "after"), scores, verdict, before=doubled)).read_text()
    table = html.split("What tuning the heads changed")[1].split("</table>")[0]
    assert f">{scores.names('member')[0]}<" in table and ">mean<" not in table
    assert table.count("(−50.0\u00a0%)") == len(scores.domains) * (len(scores.kinds) - len(scores.names("control")) - 1)


def test_gains_are_also_said_in_percent_of_the_best_member(tmp_path: Path) -> None:
    scores = made(mixed=measured(ru=2.0, zh=3.0, mean=2.4, posterior=1.9))
    html = Path(write_merge_report(str(tmp_path), scores, judge(scores, "posterior"))).read_text()
    assert "+0.100 (+5.0\u00a0%)" in html and "−0.400 (−20.0\u00a0%)" in html


def with_others() -> MergeScores:
    scores = made(
        mixed=measured(ru=3.0, zh=2.5, mean=2.0, trunk=2.4, control=1.5, **{BEFORE: 2.2, OLD_ROUTE: 2.2}),
        Russian=measured(ru=2.0, zh=4.0, mean=2.2, trunk=2.6, control=2.3, **{BEFORE: 2.1, OLD_ROUTE: 2.1}),
    )
    kinds: dict[str, Any] = {"ru": "member", "zh": "member", "trunk": "trunk", "control": "control"}
    return replace(scores, kinds={**kinds, BEFORE: "before", OLD_ROUTE: "before", "mean": "rule"})


def test_a_merge_is_held_against_the_best_member_what_was_before_the_control_and_the_trunk() -> None:
    """The old route is what was before: drawn twice it would say nothing."""
    assert compared_with(with_others()) == {
        "the best member": {"mixed": "zh", "Russian": "ru"},
        BEFORE: {"mixed": BEFORE, "Russian": BEFORE},
        "control": {"mixed": "control", "Russian": "control"},
        "trunk": {"mixed": "trunk", "Russian": "trunk"},
    }


def test_the_picture_of_gains_has_a_bar_for_each_text_and_reference() -> None:
    (axes,) = gains_by_domain(with_others(), "mean", LIGHT).axes
    bars = {str(bars.get_label()): [bar.get_width() for bar in bars] for bars in axes.containers if len(bars) == 2}
    assert {name: [pytest.approx(value) for value in values] for name, values in bars.items()} == {
        "against the best member": [0.5, -0.2],
        "against ensemble before": [0.2, -0.1],
        "against control": [-0.5, 0.1],
        "against trunk": [0.4, 0.4],
    }
    assert [label.get_text() for label in axes.get_yticklabels()] == ["mixed", "Russian"]


def test_the_report_says_what_the_trunk_gave_and_what_the_branches(tmp_path: Path) -> None:
    scores = with_others()
    html = Path(write_merge_report(str(tmp_path), scores, judge(scores, "mean"))).read_text()
    table = html.split("What the trunk gave, and what the branches")[1].split("</table>")[0]
    row = [re.sub("<.*?>", "", cell) for cell in re.findall(r"<td.*?</td>", table.split("Russian")[1])]
    assert row[:3] == ["2.600", "ru", "2.000"] and row[4] == "2.200"
    assert row[3].startswith("+0.600") and row[5].startswith("+0.400")
    without = made(mixed=measured(ru=3.0, zh=2.5, mean=2.0, posterior=1.9))
    page = Path(write_merge_report(str(tmp_path / "no"), without, judge(without, "mean"))).read_text()
    assert "What the trunk gave" not in page and "What the merge gained" in page


QUICK = ["--set", "num_windows=4", "--set", "fit_windows=4", "--set", "fit_steps=2"]


def test_growtx_merge_writes_a_loadable_ensemble_and_its_report(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "both"
    rules = ["--set", "rules=[mean, mixture]"]
    assert (
        main(["merge", str(home / "a"), f"two={home}/b", "--out", str(out), "--rule", "posterior", *QUICK, *rules]) == 0
    )
    assert "the merge by posterior (fitted)" in capsys.readouterr().out
    assert read_ensemble(str(out)).names == ["a", "two"] and (out / "report.html").exists()
    model, _ = load_model(str(out))
    assert isinstance(model, GrowtxEnsembleForCausalLM) and model.rule.name == "posterior"
    later = tmp_path / "later"
    assert main(["merge", str(out), f"c={home}/a", "--without", "two", "--out", str(later), *QUICK, *rules]) == 0
    assert read_ensemble(str(later)).names == ["a", "c"] and read_ensemble(str(later)).rule == {"name": "mean"}


def test_a_merged_gate_is_stored_verified_and_loaded_as_it_was_fitted(home: Path, tmp_path: Path) -> None:
    """The members of `home` stand on one block."""
    out = tmp_path / "gate"
    rules = ["--set", "rules=[posterior, trunk-state]"]
    assert main(["merge", str(home / "a"), str(home / "b"), "--out", str(out), "--rule", "gate", *QUICK, *rules]) == 0
    record, manifest = json.loads((out / "merge.json").read_text()), read_ensemble(str(out))
    assert manifest.rule["name"] == "gate" and manifest.rule_blob
    model, _ = load_model(str(out))
    assert model.rule.router.evidence.weight.abs().sum() > 0, "what was fitted"
    assert model.rule.threshold.item() == pytest.approx(manifest.rule["threshold"])
    names = [name for rule in ("posterior", "trunk-state", "gate") for name in (rule, f"{rule} (fitted)")]
    assert list(record["speeds"])[1:] == names and next(iter(record["speeds"])) in {"a", "b"}
    assert 1 <= record["speeds"]["gate (fitted)"]["branches_per_token"] <= 2
    assert "The gate keeps" in (out / "report.html").read_text()
    assert verify_ensemble(str(out)) == []
    blob = next((out / "blobs").rglob("*.safetensors"))
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    assert "rule gate: blob" in verify_ensemble(str(out))[0]


def test_the_report_says_what_the_gate_keeps_and_costs() -> None:
    scores = made(mixed=measured(ru=3.0, zh=2.5, **{"posterior": 2.0, "gate (fitted)": 2.1}))
    kinds = {**scores.kinds, "gate (fitted)": "fitted rule"}
    kinds.pop("mean")
    one = {"share_opened": 0.0, "branches_per_token": 1.0}
    speeds = {
        "zh": Speed(tokens_per_second=100.0, **one),
        "gate (fitted)": Speed(tokens_per_second=80.0, share_opened=0.04, branches_per_token=1.5),
    }
    scores = replace(scores, kinds=kinds, speeds=speeds)
    assert kept_gain(scores, "gate (fitted)") == pytest.approx(0.8, abs=0.01)
    sentence = _gate_sentence(scores)
    assert "keeps 80.0 % of it at 1.25 times" in sentence.replace("\u00a0", " ") and "4.0 % of the" in sentence.replace(
        "\u00a0", " "
    )
    assert "is not reached" in sentence
    better = replace(scores, domains={"mixed": measured(ru=3.0, zh=2.5, **{"posterior": 2.0, "gate (fitted)": 2.0})})
    assert "is reached" in _gate_sentence(better)
    slower = {**speeds, "gate (fitted)": speeds["gate (fitted)"].model_copy(update={"tokens_per_second": 70.0})}
    assert "is not reached" in _gate_sentence(replace(better, speeds=slower))


def test_spliced_windows_are_pieces_of_others() -> None:
    windows_WT = torch.arange(5 * 20).view(5, 20)
    rows = spliced(windows_WT, 30, torch.Generator().manual_seed(0))
    assert rows.shape == (30, 20) and torch.isin(rows, windows_WT).all()
    breaks_W = ((rows[:, 1:] - rows[:, :-1]) != 1).sum(1)
    assert breaks_W.max() <= 5 and (breaks_W > 0).float().mean() > 0.8


def test_growtx_merge_measures_on_named_files(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["merge", str(home / "a"), str(home / "b"), "--out", str(tmp_path / "x"), *QUICK, "--set", "rules=[]"]
    assert main([*arguments, "--data", f"{home}/text-a.jsonl", "--data", f"{home}/text-b.jsonl"]) == 0
    assert set(json.loads((tmp_path / "x/merge.json").read_text())["windows"]) == {"text-a", "text-b", MIXED}


def test_a_merge_that_loses_is_refused_when_asked(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from growtx.merge import driver

    losing = Interval(-0.4, -0.5, -0.3)
    monkeypatch.setattr(driver, "judge", lambda scores, rule: replace(judge(scores, rule), gain=losing))
    out = str(tmp_path / "out")
    manifest = driver.ensemble_of_paths(out, [str(home / "a"), str(home / "b")], rule="mean")
    config = driver.MergeConfig(require_gain=True, rules=("mean",), num_windows=4, fit_windows=3)
    with pytest.raises(GrowtxError, match=r"loses 0\.400 bits per byte .* the ensemble was not written"):
        driver.merge(manifest, out, config)
    assert (tmp_path / "out/report.html").exists() and not (tmp_path / "out/ensemble.json").exists()


@pytest.mark.parametrize(
    ("paths", "without", "sentence"),
    [
        (["a", "x=a", "x=b"], [], "two members are called x"),
        (["a"], ["b"], "--without removes members of an ensemble"),
    ],
)
def test_members_that_cannot_be_are_refused(paths: list[str], without: list[str], sentence: str, home: Path) -> None:
    from growtx.merge.driver import ensemble_of_paths

    named = [re.sub(r"(\w)$", rf"{home}/\1", path) for path in paths]
    with pytest.raises(ConfigError, match=sentence):
        ensemble_of_paths(str(home / "out"), named, rule="mean", without=without)


def test_every_rule_there_is_can_be_compared() -> None:
    from growtx.merge.driver import MergeConfig

    assert set(MergeConfig().compared) == set(RULES)
