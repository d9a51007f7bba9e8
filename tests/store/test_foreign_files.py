"""Files from elsewhere: whatever is in them, a reader returns or says one sentence, and nothing else is touched."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from growtx.cli.main import main
from growtx.config import load_preset, parse_json, parse_yaml
from growtx.data.packing import open_packed
from growtx.evaluate.maps import read_maps
from growtx.evaluate.results import Evaluation, Score, read_evaluation
from growtx.exceptions import ConfigError, DataError, GrowtxError, StoreError
from growtx.growth.assembly import assemble
from growtx.growth.ensembles import EnsembleManifest, MemberRef, read_ensemble
from growtx.growth.lineage import import_lineage
from growtx.growth.results import find_result
from growtx.merge.report import read_scores
from growtx.report.run_record import read_run
from growtx.run.directory import recorded_config, write_status
from growtx.storage import Storage
from growtx.store.blobs import BlobStore
from growtx.store.manifest import latest_manifest, list_manifests, parse_manifest, read_manifest
from growtx.store.run_records import DataRecord, read_data_record
from growtx.store.runs import list_runs, read_metrics
from growtx.store.trials import TrialRecord, read_trials
from growtx.train.checkpoints import CheckpointInfo, find_checkpoint
from tests import tiny
from tests.store.manifests import manifest

FAST = settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
DEEP = "[" * 5000 + "]" * 5000
NASTY: list[Any] = [
    None, -1, 0, 2**70, 1e300, float("nan"), "", "../../x", "a/b", "..", "a" * 10_000, "\ud800", "\x00", [], {}, True,
    [[[[["x"]]]]], {"name": "../x"}, 7, "0" * 64,
]  # fmt: skip


def one_sentence(read: Callable[[], object]) -> None:
    """Fails unless `read` returns or says what is wrong in one line."""
    try:
        read()
    except GrowtxError as error:
        text = str(error)
        assert "\n" not in text and len(text) <= 700 and "Traceback" not in text, text


def paths(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from paths(value, (*at, key))


@st.composite
def damaged(draw: st.DrawFn, valid: str) -> bytes:
    """Bytes of every kind of damage to a JSON text: random, cut off, or one value of it replaced."""
    kind = draw(st.sampled_from(["bytes", "cut", "value", "value", "value", "value", "missing", "added", "deep"]))
    if kind == "bytes":
        return draw(st.binary(max_size=200))
    if kind == "cut":
        return valid.encode()[: draw(st.integers(0, len(valid)))]
    if kind == "deep":
        return DEEP.encode()
    tree = json.loads(valid)
    *parents, last = draw(st.sampled_from(list(paths(tree))))
    node = tree
    for part in parents:
        node = node[part]
    if kind == "missing":
        del node[last]
    else:
        key = "extra" if kind == "added" and isinstance(node, dict) else last
        node[key] = draw(st.sampled_from(NASTY))
    return json.dumps(tree).encode()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three stages with all the files that a run may have."""
    path = tmp_path_factory.mktemp("foreign") / "run"
    tiny.write_run(path, tiny.build_tokenizer())
    return path


HASH = "ab" * 32
READERS: dict[str, tuple[str, str, Callable[[Storage], object]]] = {
    "ensemble": (
        "ensemble.json",
        EnsembleManifest(
            members=(MemberRef(name="a", run="../a", manifest="01-a.json", digest=HASH),),
            rule={"name": "mean"},
            rule_blob=HASH,
            tokenizer_fingerprint="t",
            substrate_fingerprint="s",
        ).model_dump_json(),
        lambda storage: read_ensemble(storage.root),
    ),
    "trial": (
        "trials/stage-01/000/trial.json",
        TrialRecord(stage=1, stage_name="a", number=0, values={"a": 1}, bits_per_byte=1.5).model_dump_json(),
        read_trials,
    ),
    "checkpoint": (
        "checkpoints/stage-01/step-00000002/checkpoint.json",
        CheckpointInfo(stage=1, stage_fingerprint="f", step=2, seconds=1.0).model_dump_json(),
        lambda storage: find_checkpoint(storage, 1, "f"),
    ),
    "status": (
        "status.json",
        json.dumps({"state": "failed", "job_id": "j", "num_stages": 3}),
        lambda storage: list_runs(storage.root),
    ),
    "metrics": (
        "metrics.jsonl",
        json.dumps({"stage": 1, "step": 2, "num_tokens": 3, "train/loss": 0.5, "eval/bits_per_byte": 2.0}),
        lambda storage: (list_runs(storage.root), read_metrics(storage), read_run(storage.root).stages[0].end_tokens),
    ),
    "evaluation": (
        "evaluation.json",
        Evaluation(
            model="m",
            scores=(
                Score(
                    task="t",
                    metric="acc",
                    protocol="generated",
                    depth=1,
                    value=0.5,
                    low=0.1,
                    high=0.9,
                    num_items=5,
                ),
            ),
        ).model_dump_json(),
        read_evaluation,
    ),
    "data": ("data.json", DataRecord(data_fingerprint="d", sources={"a": "b"}).model_dump_json(), read_data_record),
    "maps": ("maps.json", json.dumps({"command": "", "layers": [], "substrate": {"points": []}}), read_maps),
    "merge": (
        "merge.json",
        json.dumps({"scores": [{"domain": "d", "name": "n", "kind": "rule", "value": 1, "low": 1, "high": 1}]}),
        lambda storage: read_scores(storage.root),
    ),
}


@pytest.mark.parametrize("kind", READERS)
def test_a_reader_of_any_damaged_file_returns_or_says_one_sentence(kind: str, tmp_path: Path) -> None:
    name, valid, read = READERS[kind]
    storage = Storage(str(tmp_path / "run"))
    storage.write_text("run.yaml", "name: run\n")

    @FAST
    @given(damaged(valid))
    def check(data: bytes) -> None:
        storage.write_bytes(name, data)
        one_sentence(lambda: read(storage))

    storage.write_text(name, valid)
    one_sentence(lambda: read(storage))
    check()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_packed_data_that_name_a_directory_outside_are_refused(tmp_path: Path) -> None:
    """What is damaged is replaced, and replacing removes it: a key that is a path would remove something else."""
    (tmp_path / "outside").mkdir()
    mix = {"sources": [{"name": "a", "weight": 1, "key": "ab" * 32}]}
    path = tmp_path / "cache/packed/mix.json"
    path.parent.mkdir(parents=True)

    @FAST
    @given(damaged(json.dumps(mix)))
    def check(data: bytes) -> None:
        path.write_bytes(data)
        one_sentence(lambda: open_packed(str(path)))

    check()
    path.write_text(json.dumps({"sources": [{"name": "a", "weight": 1, "key": "../../outside"}]}))
    with pytest.raises(DataError, match=r"damaged: sources\.0\.key"):
        open_packed(str(path))
    assert (tmp_path / "outside").is_dir()


@FAST
@given(damaged(manifest(2, None, metrics={"a": 1}).to_bytes().decode()))
def test_a_damaged_manifest_is_one_sentence(data: bytes) -> None:
    one_sentence(lambda: parse_manifest(data, "here").to_bytes())


@FAST
@given(
    st.text(max_size=80) | st.sampled_from([DEEP, "{[]: 1}", "&a [*a]", "a: 1e999", "!!int x", '"\\ud800"', "[1", "{"])
)
def test_run_yaml_may_hold_anything(text: str) -> None:
    one_sentence(lambda: parse_yaml(text, "here"))


def test_yaml_that_repeats_itself_into_billions_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 9)}]" for at in range(1, 10)]
    with pytest.raises(ConfigError, match=r"here is not valid YAML: .*too many values"):
        parse_yaml("\n".join(lines), "here")


def test_presets_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"extends: {tmp_path}/b.yaml\n")
    (tmp_path / "b.yaml").write_text(f"extends: {tmp_path}/a.yaml\n")
    with pytest.raises(ConfigError, match=r"extends leads in a circle: .*a\.yaml -> .*b\.yaml -> .*a\.yaml"):
        load_preset(f"{tmp_path}/a.yaml")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"state": []}', '{"state": "failed", "num_stages": "x"}'])
def test_a_damaged_status_file_is_no_status(tmp_path: Path, text: str) -> None:
    from growtx.run.directory import _release_if_nothing_trained

    storage = Storage(str(tmp_path / "run"))
    storage.write_text("run.yaml", "name: run\n")
    storage.write_text("status.json", text)
    _release_if_nothing_trained(storage)
    assert storage.exists("run.yaml") and list_runs(storage.root)[0].num_stages is None
    write_status(storage, "failed", 2)
    _release_if_nothing_trained(storage)
    assert not storage.exists("run.yaml")


@pytest.mark.parametrize("name", ["../../outside", "a/b", "..\\x", "", "x" * 200, "a\x00b", "é"])
def test_a_manifest_cannot_name_a_file_outside(name: str) -> None:
    tree = json.loads(manifest(1, None).to_bytes()) | {"name": name}
    with pytest.raises(StoreError, match="damaged: name"):
        parse_manifest(json.dumps(tree).encode(), "here")


@pytest.mark.parametrize("key", ["substrate", "head", "new_blobs", "parent"])
def test_a_manifest_cannot_name_a_blob_outside(key: str) -> None:
    value: Any = "../" * 5 + "x"
    tree = json.loads(manifest(1, None).to_bytes()) | {key: [value] if key == "new_blobs" else value}
    with pytest.raises(StoreError, match=f"damaged: {key}"):
        parse_manifest(json.dumps(tree).encode(), "here")


def test_a_manifest_under_the_name_of_another_stage_is_refused(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("manifests/02-other.json", manifest(1, None).to_bytes())
    with pytest.raises(StoreError, match=r"02-other\.json is that of 01-depth-1\.json"):
        read_manifest(storage, "02-other.json")


def test_a_parent_from_elsewhere_writes_nothing_outside_of_the_run(run: Path, tmp_path: Path) -> None:
    foreign, home = tmp_path / "foreign", tmp_path / "home"
    copy(run, foreign)
    (foreign / "tokenizer/deeper").mkdir()
    (foreign / "tokenizer/deeper/x").write_text("x")
    home.mkdir()
    with pytest.raises(StoreError, match="no part of a tokenizer"):
        import_lineage(str(foreign), Storage(str(home / "new")))
    (foreign / "tokenizer/deeper/x").unlink()
    name = list_manifests(Storage(str(foreign)))[-1]
    tree = json.loads((foreign / "manifests" / name).read_bytes()) | {"name": "../../../escaped"}
    (foreign / "manifests" / name).write_text(json.dumps(tree))
    with pytest.raises(StoreError, match="damaged: name"):
        import_lineage(str(foreign), Storage(str(home / "new")))
    assert {path.name for path in tmp_path.iterdir()} == {"foreign", "home"} and not list(home.iterdir())


def copy(source: Path, target: Path) -> None:
    import shutil

    shutil.copytree(source, target)


def last_of(path: Path, **changes: Any) -> Any:
    """The last manifest of a run, changed; not written."""
    last = latest_manifest(Storage(str(path)))
    assert last is not None
    return last.model_copy(update=changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": "x"},
        {"num_hidden_layers": 7},
        {"hidden_size": 0},
        {"hidden_size": 32},
        {"vocab_size": 2**40},
        {"num_attention_heads": 0},
        {"substrate_expansion": []},
        {"vocab_size": "many"},
        {"layer_norm_eps": None},
    ],
)
def test_a_model_that_its_blobs_do_not_fit_is_one_sentence(run: Path, changes: dict[str, Any]) -> None:
    model = last_of(run).model | changes
    with pytest.raises(GrowtxError) as caught:
        assemble(BlobStore(str(run)), last_of(run, model=model))
    one_sentence(lambda: (_ for _ in ()).throw(caught.value))


def test_a_head_cannot_replace_what_is_not_its_own(run: Path) -> None:
    store, last = BlobStore(str(run)), last_of(run)
    head = store.get(last.head) | {"model.layers.0.mlp.up_proj.weight": torch.zeros(2)}
    with pytest.raises(StoreError, match=r"the head of manifest .* holds 'model\.layers\.0"):
        assemble(store, last_of(run, head=store.put(head)))
    with pytest.raises(StoreError, match=r"the substrate of manifest .* holds"):
        assemble(store, last_of(run, substrate=last.head))


def test_an_adapter_that_is_none_is_one_sentence(run: Path) -> None:
    store, last = BlobStore(str(run)), last_of(run)
    wrong = store.put({"mlp.up_proj.scaling": torch.tensor(1.0)})
    blocks = (last.blocks[0].model_copy(update={"adapters": (wrong,)}), *last.blocks[1:])
    with pytest.raises(StoreError, match="do not fit its model"):
        assemble(store, last_of(run, blocks=blocks))


@pytest.mark.parametrize("file", ["manifests", "run.yaml", "status.json", "tokenizer/tokenizer.json", "substrate.json"])
def test_commands_on_a_run_with_a_damaged_file_end_with_a_sentence(
    file: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy(run, tmp_path / "run")
    target = tmp_path / "run" / file
    target = sorted(target.glob("0*"))[-1] if target.is_dir() else target
    (tmp_path / "run/run.yaml").write_text("name: run\n")
    valid = target.read_text() if target.exists() else '{"state": "failed"}'
    for data in (b"", b"\xff\xfe", DEEP.encode(), b"[]", valid.encode()[: len(valid) // 2], b'{"a": "\\ud800"}'):
        target.write_bytes(data)
        for command in ("inspect", "verify", "runs"):
            assert main([command, str(tmp_path / "run")]) in (0, 1, 2)
            printed = capsys.readouterr()
            assert "Traceback" not in printed.err and printed.err.count("\n") <= 2, printed.err
        one_sentence(lambda: recorded_config(Storage(str(tmp_path / "run"))))
        one_sentence(lambda: find_result(str(tmp_path / "run")).load())
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_json_beyond_all_measure_is_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("1" * 5000, str(2**64), "[" + DEEP + "]", '"\\udfff"'):
        with pytest.raises(StoreError, match="here is damaged: it is not JSON"):
            parse_json(text.encode(), "here", "")
    monkeypatch.setattr("growtx.config._LARGEST_JSON", 10)
    with pytest.raises(StoreError, match="here is damaged: it has 12 bytes"):
        parse_json(b'"0123456789"', "here", "")
