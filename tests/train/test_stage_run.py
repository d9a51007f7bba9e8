"""Stages as a worker runs them, in this process: what they leave, what ends them, what they survive."""

from __future__ import annotations

import errno
import itertools
import logging
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from growtx.compat.ray import will_be_preempted
from growtx.data.packing import open_packed
from growtx.exceptions import ConfigError, DataError, FencedError, GrowtxError, StoreError, TrainingError
from growtx.fence import take_over
from growtx.growth.assembly import read_state
from growtx.growth.freezing import frozen_parameters
from growtx.growth.lineage import open_lineage, shares_seen
from growtx.models.causal_lm import GrowtxForCausalLM
from growtx.models.loss import TextScore
from growtx.run.prepare import prepare
from growtx.storage import Storage
from growtx.store.blobs import BlobStore, blob_path
from growtx.store.manifest import Manifest, list_manifests
from growtx.store.runs import read_metrics
from growtx.store.verify import verify
from growtx.train import prefix_cache, prefix_stage, stage_run
from growtx.train.batches import Batches
from growtx.train.checkpoints import CHECKPOINTS_DIR, STATE_FILE, CheckpointInfo
from growtx.train.data_proof import verify_data
from growtx.train.engine import TrainEngine
from growtx.train.job import TrainJob
from growtx.train.prefix_cache import PrefixCache
from growtx.train.progress import ProgressReporter
from growtx.train.stage_run import StageRun
from growtx.train.worker import train_loop_per_worker
from tests.run.configs import config, write_corpus

pytestmark = pytest.mark.usefixtures("process_group")
EXACT = 1e-5  # nats
TRAIN = {"steps": 8, "learning_rate": 1e-2}
TWO_STAGES: dict[str, Any] = {"grow": {"blocks": 2}, "train": TRAIN}
TRAINING = {
    "global_batch_size": 4,
    "log_every_steps": 1,
    "checkpoint": {"every_steps": 2},
    "evaluation": {"num_windows": 4, "num_samples": 1, "sample_tokens": 2},
}
Losses = list[tuple[int, int, float]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stages")
    write_corpus(path)
    return path


@pytest.fixture(autouse=True)
def warnings_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("growtx"), "propagate", True)


numbers = itertools.count()


def job(
    home: Path, run_dir: Path | str | None = None, training: dict[str, Any] | None = None, **changes: Any
) -> TrainJob:
    """A prepared run in a directory of its own."""
    settings = {"plan": TWO_STAGES, **changes, "training": {**TRAINING, **(training or {})}}
    where = run_dir or home / f"run-{next(numbers)}"
    return prepare(config(str(home / "texts.jsonl"), **settings), Storage(str(where))).job


def train(job: TrainJob) -> GrowtxError | None:
    """Train to the end; returns what went wrong."""
    outcome = train_loop_per_worker({"jobs": [job.model_dump(mode="json")], "progress_actor": None, "claims": None})
    assert not outcome["stopped"]
    return outcome["failed"].get(job.run_dir)  # type: ignore[no-any-return]


def finished(job: TrainJob) -> tuple[Manifest, ...]:
    """Train to the end; the manifests of the run."""
    problem = train(job)
    assert problem is None, problem
    assert verify(job.run_dir).is_intact
    return tuple(open_lineage(job.run_dir).manifests)


def losses(job: TrainJob) -> Losses:
    rows = read_metrics(Storage(job.run_dir))
    return [(row["stage"], row["step"], row["train/loss"]) for row in rows if "train/loss" in row]


def assert_same(found: Losses, expected: Losses) -> None:
    """The same steps of the same stages, each once, with the same losses."""
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    assert max(abs(a[2] - b[2]) for a, b in zip(found, expected, strict=True)) < EXACT


@pytest.fixture(scope="module")
def undisturbed(process_group: None, home: Path) -> Losses:
    reference = job(home)
    finished(reference)
    return losses(reference)


# --- LoRA phases -----------------------------------------------------------------------------------------------------

LORA = {"rank": 2, "alpha": 8.0}
LORA_PLAN = {"stages": [{"add": 2}, {"add": 1, "lora": LORA}, {"add": 0, "active": 0, "lora": LORA}], "train": TRAIN}


@pytest.fixture(scope="module")
def adapted(process_group: None, home: Path) -> dict[int, tuple[tuple[Manifest, ...], Losses, BlobStore]]:
    """A joint and an interleaved LoRA phase under each ZeRO stage."""
    found = {}
    for zero_stage in (1, 2, 3):
        the_job = job(home, plan=LORA_PLAN, training={"zero_stage": zero_stage})
        found[zero_stage] = (finished(the_job), losses(the_job), BlobStore(the_job.run_dir))
    return found


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_adapters_merge_exactly_into_blocks_that_stay_sealed(zero_stage: int, adapted: Any) -> None:
    (first, joint, alone), _, store = adapted[zero_stage]
    for manifest in (joint, alone):
        assert manifest.metrics["seal_max_logit_difference"] < 1e-4
    assert [ref.blob for ref in alone.blocks] == [first.blocks[0].blob, first.blocks[1].blob, joint.blocks[2].blob]
    assert [len(ref.adapters) for ref in joint.blocks] == [1, 1, 0]
    assert [len(ref.adapters) for ref in alone.blocks] == [2, 2, 1]
    adapter = store.get(alone.blocks[0].adapters[-1])
    assert adapter["mlp.up_proj.lora_B"].abs().max() > 1e-3, "the adapters did train"


def test_lora_phases_take_the_same_steps_under_every_zero_stage(adapted: Any) -> None:
    for zero_stage in (2, 3):
        assert_same(adapted[zero_stage][1], adapted[1][1])


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_what_training_held_is_within_a_tenth_of_the_forecast(zero_stage: int, adapted: Any) -> None:
    for manifest in adapted[zero_stage][0]:
        held, forecast = manifest.metrics["held_bytes"], manifest.metrics["forecast_bytes"]
        assert {"weights", "gradients", "optimizer"} <= held.keys() <= forecast.keys()
        for kind, size in held.items():
            assert forecast[kind] == pytest.approx(size, rel=0.1), (manifest.name, kind)


def test_a_stage_tells_the_pause_since_the_one_before(adapted: Any) -> None:
    first, joint, alone = adapted[1][0]
    assert first.metrics["pause_seconds"] is None
    assert joint.metrics["pause_seconds"] > 0 and alone.metrics["pause_seconds"] > 0


# --- the prefix cache ------------------------------------------------------------------------------------------------


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_cache, "WINDOWS_PER_SHARD", 4)


def cached_shards(job: TrainJob) -> list[Path]:
    return sorted(Path(job.prefix_cache_dir).rglob("*"))


@pytest.mark.usefixtures("small_shards")
def test_a_cached_prefix_gives_the_losses_of_a_recomputed_one(home: Path, undisturbed: Losses) -> None:
    cached = job(home, training={"prefix": "cache"}, cache_dir=str(home / "cache-filled"))
    second = finished(cached)[1]
    assert_same(losses(cached), undisturbed)
    assert second.frozen_check.before == second.frozen_check.after
    assert any(path.suffix == ".npy" for path in cached_shards(cached))


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("prefix", ["auto", "cache"])
def test_a_disk_that_fills_while_caching_costs_the_run_nothing_unless_the_cache_is_asked_for(
    prefix: str, home: Path, undisturbed: Losses, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    the_job = job(home, training={"prefix": prefix}, cache_dir=str(home / f"cache-{prefix}"))
    original = PrefixCache._write

    def second_shard_does_not_fit(self: PrefixCache, shard: int, states: torch.Tensor) -> None:
        if cached_shards(the_job)[1:]:
            raise StoreError(f"shard {shard} cannot be written: the disk is full")
        original(self, shard, states)

    monkeypatch.setattr(PrefixCache, "_write", second_shard_does_not_fit)
    monkeypatch.setattr("growtx.growth.flops.MAX_CACHE_COST_RATIO", 99.0)
    problem = train(the_job)
    assert not any(path.suffix == ".npy" for path in cached_shards(the_job)), "half a cache would keep the disk full"
    if prefix == "auto":
        assert problem is None and "stage 2 recomputes its prefix" in caplog.text
        assert_same(losses(the_job), undisturbed)
    else:
        assert isinstance(problem, StoreError) and len(open_lineage(the_job.run_dir).manifests) == 1


@pytest.mark.usefixtures("small_shards")
def test_a_run_that_shares_a_damaged_prefix_cache_computes_it_again(home: Path, undisturbed: Losses) -> None:
    first = job(home, training={"prefix": "cache"}, cache_dir=str(home / "cache-damaged"))
    finished(first)
    manifests = open_lineage(first.run_dir).manifests
    shards = [path for path in cached_shards(first) if path.suffix == ".npy"]
    assert verify_data(Storage(first.run_dir), manifests) == []
    for shard in shards:
        shard.write_bytes(bytes(shard.stat().st_size))
    assert len(verify_data(Storage(first.run_dir), manifests)) == len(shards) > 0
    second = job(home, training={"prefix": "cache"}, cache_dir=str(home / "cache-damaged"))
    finished(second)
    assert_same(losses(second), undisturbed)
    assert verify_data(Storage(first.run_dir), manifests) == []


def test_workers_refuse_overwritten_tokens_and_the_next_start_packs_them_again(home: Path, undisturbed: Losses) -> None:
    the_job = job(home, cache_dir=str(home / "cache-overwritten"))
    (packed,) = (home / "cache-overwritten/packed").glob("*/train.arrow")
    content = bytearray(packed.read_bytes())
    third = len(content) // 3
    content[third : 2 * third] = bytes(third)
    packed.write_bytes(content)
    problem = train(the_job)
    assert isinstance(problem, DataError) and "--resume: it is packed again" in str(problem)
    assert "is missing or damaged" in verify_data(Storage(the_job.run_dir), [])[0]
    again = job(home, Path(the_job.run_dir), cache_dir=str(home / "cache-overwritten"))
    finished(again)
    assert_same(losses(again), undisturbed)
    assert verify_data(Storage(the_job.run_dir), []) == []


def test_workers_refuse_other_data_than_the_driver_has_seen(home: Path) -> None:
    problem = train(job(home).model_copy(update={"data_fingerprint": "0" * 64}))
    assert isinstance(problem, DataError) and "is not what this run was prepared with" in str(problem)


def test_workers_that_have_lost_their_driver_save_a_checkpoint_and_end(
    home: Path, undisturbed: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    the_job = job(home, training={"checkpoint": {"every_steps": None, "every_seconds": None}})
    original = StageRun._step

    def lose_the_driver(self: StageRun) -> torch.Tensor:
        self.context.reporter.is_lost = self.stage.index == 2 and self.position.step == 4
        return original(self)

    with monkeypatch.context() as patched:
        patched.setattr(StageRun, "_step", lose_the_driver)
        assert "lost contact with the command" in str(train(the_job))
    assert [path.name for path in Path(the_job.run_dir, "checkpoints/stage-02").iterdir()] == ["step-00000005"]
    finished(the_job)
    assert_same(losses(the_job), undisturbed)


def test_workers_whose_node_will_be_taken_away_save_at_once_and_go_on(
    home: Path, undisturbed: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are told so some time before: whatever they train until then may still be saved, or is trained again."""
    the_job = job(home, training={"checkpoint": {"every_steps": None, "every_seconds": None}})
    original, saved = StageRun.save, list[tuple[int, int]]()
    told = iter([False] * (TRAIN["steps"] + 4) + [True] * 99)

    def save(self: StageRun, **options: bool) -> None:
        saved.append((self.stage.index, self.position.step))
        original(self, **options)

    monkeypatch.setattr("growtx.train.stage_run.will_be_preempted", lambda: next(told))
    monkeypatch.setattr(StageRun, "save", save)
    finished(the_job)
    assert saved == [(2, 5)], "once, in the step after they heard of it"
    assert_same(losses(the_job), undisturbed)


def test_a_manifest_proves_that_everything_active_trained(home: Path) -> None:
    for manifest in finished(job(home)):
        check = manifest.metrics["active_check"]
        assert check["num_tensors"] > 10
        assert check["num_changed"] == check["num_with_gradients"] == check["num_tensors"]


def test_a_stage_in_which_nothing_moves_is_not_stored(home: Path) -> None:
    the_job = job(home, plan={"grow": {"blocks": 2}, "train": {**TRAIN, "learning_rate": 1e-30}})
    assert re.search(
        r"\d+ of \d+ active tensors of stage 1 .* did not change\); the stage was not", str(train(the_job))
    )
    assert open_store(the_job) == []


def test_a_stage_with_a_tensor_that_no_gradient_reaches_is_not_stored(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weight decay moves it all the same, so that it moved proves nothing."""
    original = TrainEngine.__init__

    def cut_off(self: TrainEngine, model: torch.nn.Module, *arguments: Any) -> None:
        (weight,) = (tensor for name, tensor in model.named_parameters() if name.endswith("lm_head.weight"))
        weight.register_hook(torch.zeros_like)
        original(self, model, *arguments)

    monkeypatch.setattr(TrainEngine, "__init__", cut_off)
    the_job = job(home)
    assert re.search(r"^1 of \d+ active .*lm_head.weight had no gradient in any step\); the stage", str(train(the_job)))
    assert open_store(the_job) == []


def open_store(job: TrainJob) -> list[str]:
    return list_manifests(Storage(job.run_dir))


def test_a_cache_that_cannot_fit_is_given_up_before_its_windows_are_listed(
    home: Path, undisturbed: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    def list_them(*_: object) -> None:
        raise AssertionError("at the size of `pgt`, this takes minutes on every rank")

    monkeypatch.setattr(Batches, "visiting_order", list_them)
    monkeypatch.setattr(PrefixCache, "missing", list_them)
    the_job = job(home, training={"prefix": "auto", "prefix_cache_gib": 1e-6})
    manifests = finished(the_job)
    assert not any(manifest.metrics["prefix_cached"] for manifest in manifests)
    assert_same(losses(the_job), undisturbed)


def test_rows_are_stored_before_the_checkpoint_that_makes_them_the_past(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an object store rows are gathered; a run that goes on from the checkpoint does not write them again."""
    the_job = job(
        home,
        run_dir=f"memory://{next(numbers)}/run",
        cache_dir=str(home / "cache-of-memory"),
        training={"checkpoint": {"every_steps": 3}, "evaluation": {**TRAINING["evaluation"], "every_steps": None}},  # type: ignore[dict-item]
    )
    original, stored = stage_run.write_checkpoint, list[tuple[int, int]]()

    def write(storage: Storage, info: CheckpointInfo, *state: Any, keep: int) -> None:
        stored.append((info.step, losses(the_job)[-1][1]))
        original(storage, info, *state, keep=keep)

    monkeypatch.setattr(stage_run, "write_checkpoint", write)
    finished(the_job)
    assert len(stored) >= 4 and all(step == last for step, last in stored), stored


def test_outside_of_ray_nobody_is_taken_away() -> None:
    assert not will_be_preempted()


# --- a request to stop that comes between the steps -------------------------------------------------------------------

PHASE_PLAN = {"grow": {"blocks": 3}, "train": TRAIN}
PHASE_TRAINING: dict[str, Any] = {"prefix": "cache", "evaluation": {**TRAINING["evaluation"], "every_steps": 4}}  # type: ignore[dict-item]
PHASES = ("starting", "filling", "start", "during", "end", "storing")


def rows_of(job: TrainJob) -> list[tuple[int, int, str]]:
    rows = read_metrics(Storage(job.run_dir))
    return [(row["stage"], row["step"], row.get("eval/when", "")) for row in rows]


class StopsIn:
    """Lets the reporter of a worker hear of a stop in one phase of the second stage; counts who else asks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
        self._wanted, self._phase, self.heard = phase, "", False
        self._within(monkeypatch, StageRun, "__init__", lambda run, context, stage, parent: "starting")
        self._within(monkeypatch, PrefixCache, "fill", lambda *_: "filling")
        self._within(monkeypatch, StageRun, "evaluate", lambda run, when: when)
        self._within(monkeypatch, StageRun, "_store", lambda *_: "storing")
        self._stage = 0
        monkeypatch.setattr(ProgressReporter, "ask", lambda reporter: self._ask())

    def _within(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, phase: Callable[..., str]) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any) -> Any:
            if name == "__init__":
                self._stage = args[2].index
            before, self._phase = self._phase, phase(*args)
            try:
                return original(*args)
            finally:
                self._phase = before

        monkeypatch.setattr(owner, name, wrapped)

    def _ask(self) -> bool:
        self.heard = self.heard or (self._stage == 2 and self._phase == self._wanted)
        return self.heard


@pytest.mark.parametrize("phase", PHASES)
def test_a_stop_is_heard_in_every_phase_and_costs_nothing(
    phase: str, home: Path, stopless: tuple[Losses, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    the_job = job(home, plan=PHASE_PLAN, training=PHASE_TRAINING)
    shutil.rmtree(the_job.prefix_cache_dir)  # that of the run which nobody stops
    with monkeypatch.context() as patched:
        stop = StopsIn(patched, phase)
        outcome = train_loop_per_worker(
            {"jobs": [the_job.model_dump(mode="json")], "progress_actor": None, "claims": None}
        )
    assert stop.heard and outcome == {"stopped": True, "failed": {}}
    saved = {"during": "step-00000004", "end": "step-00000008"}.get(phase)
    assert saved is None or Path(the_job.run_dir, CHECKPOINTS_DIR, "stage-02", saved).exists()
    num_stored = len(open_lineage(the_job.run_dir).manifests)
    assert num_stored == (2 if phase == "storing" else 1), "what is being stored is stored"
    finished(the_job)
    assert_same(losses(the_job), stopless[0])
    assert rows_of(the_job) == stopless[1], "every score is there, and once"


@pytest.fixture(scope="module")
def stopless(process_group: None, home: Path) -> tuple[Losses, list[Any]]:
    """Losses and rows of the run that nobody stops."""
    reference = job(home, plan=PHASE_PLAN, training=PHASE_TRAINING)
    finished(reference)
    return losses(reference), rows_of(reference)


def test_the_loop_waits_for_the_device_only_where_it_writes_a_row(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever adds up over ranks reads from the device first; checkpoints do as well."""
    the_job = job(home, training={"log_every_steps": 4, "checkpoint": {"every_steps": 1000}})
    steps, original, sums = [], StageRun._step, stage_run.sum_over_ranks

    def noted_step(self: StageRun) -> torch.Tensor:
        steps.append("step")
        return original(self)

    def noted_sum(values: torch.Tensor) -> torch.Tensor:
        steps.append("sum")
        return sums(values)

    monkeypatch.setattr(StageRun, "_step", noted_step)
    monkeypatch.setattr(stage_run, "sum_over_ranks", noted_sum)
    finished(the_job)
    assert steps.count("sum") == len(losses(the_job)) < steps.count("step")


def test_a_loss_that_is_not_finite_leaves_no_checkpoint_to_resume_into(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    the_job = job(home, training={"log_every_steps": 8, "checkpoint": {"every_steps": 4}})
    original = StageRun._step

    def diverge(self: StageRun) -> torch.Tensor:
        totals = original(self)
        return totals * math.nan if self.position.step == 4 else totals

    with monkeypatch.context() as patched:
        patched.setattr(StageRun, "_step", diverge)
        assert "is not finite at step 4" in str(train(the_job))
    assert not Path(the_job.run_dir, CHECKPOINTS_DIR).exists()


# --- a damaged run without a copy ------------------------------------------------------------------------------------


def damage_blob(run: Path) -> None:
    blob = open_lineage(str(run)).manifests[1].new_blobs[0]
    path = next(run.glob(f"blobs/**/{blob}*"))
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))


def damage_manifest(run: Path) -> None:
    sorted(run.glob("manifests/02-*.json"))[0].write_text("{")


@pytest.mark.parametrize("damage", [damage_blob, damage_manifest])
def test_a_damaged_run_without_a_copy_goes_on_as_the_sentence_says(
    damage: Callable[[Path], None], home: Path, stopless: tuple[Losses, list[Any]]
) -> None:
    the_job = job(home, plan=PHASE_PLAN, training=PHASE_TRAINING)
    finished(the_job)
    run = Path(the_job.run_dir)
    damage(run)
    with pytest.raises(StoreError, match="out of manifests/ and resume: they are trained again"):
        for manifest in open_lineage(str(run)).manifests:
            read_state(BlobStore(str(run)), manifest)
    (run / "aside").mkdir()
    for name in ("02-", "03-"):
        for path in run.glob(f"manifests/{name}*.json"):
            path.rename(run / "aside" / path.name)
    finished(the_job)
    assert_same(losses(the_job), stopless[0])
    assert rows_of(the_job) == stopless[1]


# --- another driver ---------------------------------------------------------------------------------------------------


def files_of(run: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for path in run.rglob("*") if path.is_file() and "tensorboard" not in str(path)
    }


@pytest.mark.parametrize("step", [1, 5, 8])
def test_orphaned_workers_write_nothing_beside_a_new_driver(
    step: int, home: Path, undisturbed: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their driver died, another took the run over; they notice at the next write, whatever it is, and end."""
    the_job = job(home)
    run = Path(the_job.run_dir)
    orphans = the_job.model_copy(update={"fences": (take_over(str(run)),)})
    original, taken = StageRun._step, {}

    def step_and_lose_the_driver(self: StageRun) -> torch.Tensor:
        totals = original(self)
        if self.stage.index == 2 and self.position.step == step:
            taken["fence"], taken["files"] = take_over(str(run)), files_of(run)
        return totals

    with monkeypatch.context() as patched:
        patched.setattr(StageRun, "_step", step_and_lose_the_driver)
        assert isinstance(train(orphans), FencedError)
    assert files_of(run) == taken["files"]
    new = the_job.model_copy(update={"fences": (taken["fence"],)})
    finished(new)
    assert_same(losses(new), undisturbed)


# --- what ends a stage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train_settings", "expected", "num_steps"),
    [
        ({"steps": 3}, "steps", 3),
        ({"tokens": 3 * 4 * 32}, "tokens", 3),
        ({"steps": 50, "seconds": 1e-6}, "seconds", 1),
        ({"steps": 50, "convergence": {"patience": 2, "min_delta": 100.0, "every_steps": 2}}, "convergence", 6),
    ],
)
def test_the_manifest_says_what_ended_the_stage(
    train_settings: dict[str, Any], expected: str, num_steps: int, home: Path
) -> None:
    (manifest,) = finished(job(home, plan={"grow": {"blocks": 1}, "train": train_settings}))
    assert (manifest.ended_by, manifest.metrics["steps"]) == (expected, num_steps)


# --- variants --------------------------------------------------------------------------------------------------------


def test_a_learned_substrate_trains_in_the_first_stage_and_is_frozen_from_then_on(home: Path) -> None:
    plan = {"grow": {"blocks": 2, "train_substrate": True}, "train": TRAIN}
    learned = job(home, plan=plan, substrate={"kind": "learned"})
    first, second = finished(learned)
    assert first.substrate != learned.substrate.blob and first.substrate in first.new_blobs
    assert learned.substrate.blob in first.new_blobs, "what it started from is its own, too"
    assert not {first.substrate, learned.substrate.blob} & set(second.new_blobs)
    assert second.substrate == first.substrate
    assert second.frozen_check.num_tensors == 1 + 12  # the substrate and the first block


def test_a_sliding_window_seals_a_block_when_it_has_passed(home: Path) -> None:
    first, second, third = finished(job(home, plan={"grow": {"blocks": 3, "active": 2}, "train": {"steps": 2}}))
    assert second.blocks[0] != first.blocks[0], "block 1 was still in the window"
    assert third.blocks[0] == second.blocks[0] and third.blocks[1] != second.blocks[1]


# --- faults ----------------------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process died."""


def crash_at(monkeypatch: pytest.MonkeyPatch, the_job: TrainJob, stage: int, step: int) -> None:
    """Train until a worker dies at the beginning of a step."""
    original = StageRun._step

    def dying(self: StageRun) -> torch.Tensor:
        if (self.stage.index, self.position.step) == (stage, step):
            raise Crash
        return original(self)

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(StageRun, "_step", dying)
        train(the_job)


def test_after_a_truncated_checkpoint_training_goes_on_from_the_one_before(
    home: Path, undisturbed: Losses, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    the_job = job(home)
    crash_at(monkeypatch, the_job, stage=2, step=7)
    run = Storage(the_job.run_dir)
    newest = f"{CHECKPOINTS_DIR}/stage-02/step-00000006/{STATE_FILE}"
    run.write_bytes(newest, run.read_bytes(newest)[:-100])
    finished(the_job)
    assert_same(losses(the_job), undisturbed)
    assert "step-00000006 is damaged" in caplog.text


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2)])
def test_training_goes_on_under_another_zero_stage(
    before: int, after: int, home: Path, undisturbed: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    the_job = job(home, training={"zero_stage": before})
    crash_at(monkeypatch, the_job, stage=2, step=5)
    training = the_job.training.model_copy(update={"zero_stage": after})
    finished(the_job.model_copy(update={"training": training}))
    assert_same(losses(the_job), undisturbed)


@pytest.fixture
def fill_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """From now on writing a file whose path contains a part ends as on a full disk, until called back."""
    original = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if full and full[-1] in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, target)

    full: list[str] = []
    monkeypatch.setattr(Path, "replace", replace)
    return full.append


def test_a_disk_that_is_full_at_a_checkpoint_costs_no_finished_stage(
    home: Path, undisturbed: Losses, fill_disk: Callable[[str], None]
) -> None:
    the_job = job(home)
    fill_disk("stage-02/step-00000004")
    problem = train(the_job)
    assert isinstance(problem, StoreError) and "the disk is full" in str(problem)
    assert len(open_lineage(the_job.run_dir).manifests) == 1 and verify(the_job.run_dir).is_intact
    fill_disk("nothing any more")
    finished(the_job)
    assert_same(losses(the_job), undisturbed)


# --- the guards of a stage's end -------------------------------------------------------------------------------------


def assert_only_the_first_stage_is_sealed(the_job: TrainJob) -> None:
    run = Path(the_job.run_dir)
    assert [path.name for path in sorted((run / "manifests").iterdir())] == ["01-depth-1.json", "latest"]
    assert (run / "manifests/latest").read_text() == "01-depth-1.json\n"
    assert verify(the_job.run_dir).is_intact


def test_a_stage_in_which_a_frozen_tensor_moved_is_not_stored(
    home: Path, undisturbed: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    the_job, original = job(home), TrainEngine.step

    def moving(self: TrainEngine, *arguments: Any) -> torch.Tensor:
        totals = original(self, *arguments)
        for _, parameter in itertools.islice(frozen_parameters(self.model), 1, 2):
            parameter.data.view(-1)[0] += 1e-3
        return totals

    with monkeypatch.context() as patched:
        patched.setattr(TrainEngine, "step", moving)
        problem = train(the_job)
    assert isinstance(problem, TrainingError) and "a frozen tensor changed during stage 2" in str(problem)
    assert_only_the_first_stage_is_sealed(the_job)


def test_a_stage_without_a_finite_score_is_not_stored(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    the_job, original = job(home), StageRun.evaluate

    def failing(self: StageRun, when: str) -> dict[str, TextScore]:
        scores = original(self, when)
        return {**scores, "": TextScore(float("nan"), 1, 1)} if (self.stage.index, when) == (2, "end") else scores

    with monkeypatch.context() as patched:
        patched.setattr(StageRun, "evaluate", failing)
        problem = train(the_job)
    assert isinstance(problem, TrainingError) and "held-out loss of stage 2" in str(problem)
    assert_only_the_first_stage_is_sealed(the_job)


@pytest.mark.parametrize("change", [1e-2, float("nan")])
def test_a_stored_model_that_computes_something_else_is_not_sealed(
    change: float, home: Path, undisturbed: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    the_job, original = job(home), stage_run.assemble

    def changed(store: BlobStore, manifest: Manifest) -> GrowtxForCausalLM:
        model = original(store, manifest)
        if manifest.index == 2:
            model.lm_head.weight.data[0, 0] += change
        return model

    with monkeypatch.context() as patched:
        patched.setattr(stage_run, "assemble", changed)
        problem = train(the_job)
    assert isinstance(problem, TrainingError) and "the stored model's logits differ" in str(problem)
    assert_only_the_first_stage_is_sealed(the_job)
    finished(the_job)
    assert_same(losses(the_job), undisturbed)


def test_a_stage_whose_blob_vanished_is_not_sealed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    the_job, original = job(home), stage_run.assemble

    def losing(store: BlobStore, manifest: Manifest) -> GrowtxForCausalLM:
        model = original(store, manifest)
        if manifest.index == 2:
            store.storage.remove(blob_path(manifest.blocks[-1].blob))
        return model

    with monkeypatch.context() as patched:
        patched.setattr(stage_run, "assemble", losing)
        problem = train(the_job)
    assert isinstance(problem, StoreError) and "a blob of stage 2" in str(problem)
    assert_only_the_first_stage_is_sealed(the_job)


def test_a_manifest_says_where_its_stage_began_and_what_it_stands_on(home: Path) -> None:
    the_job = job(home).model_copy(update={"changes": ("plan.train.steps changed",)})
    first, second = finished(the_job)
    assert (first.parent, second.parent) == (None, first.digest())
    rows = [row for row in read_metrics(Storage(the_job.run_dir)) if "eval/when" in row]
    for manifest in (first, second):
        start, end = (
            next(row for row in rows if (row["stage"], row["eval/when"]) == (manifest.index, when))
            for when in ("start", "end")
        )
        assert manifest.metrics["eval/bits_per_byte_start"] == start["eval/bits_per_byte"] != end["eval/bits_per_byte"]
        assert manifest.metrics["eval/bits_per_byte"] == end["eval/bits_per_byte"]
        assert manifest.metrics["changes"] == ["plan.train.steps changed"]


def test_samples_of_the_same_prompt_differ(home: Path) -> None:
    evaluation = {"num_windows": 4, "sample_tokens": 12, "prompts": ["Anna", "Anna"]}
    (manifest,) = finished(job(home, plan={"grow": {"blocks": 1}, "train": TRAIN}, training={"evaluation": evaluation}))
    assert [sample["prompt"] for sample in manifest.samples] == ["Anna", "Anna"]
    assert len({sample["text"] for sample in manifest.samples}) == 2


# --- stopping and checkpoints ----------------------------------------------------------------------------------------


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Stage and step of every checkpoint that is written from now on."""
    found: list[tuple[int, int]] = []
    original = StageRun.save

    def save(self: StageRun) -> None:
        found.append((self.stage.index, self.position.step))
        original(self)

    monkeypatch.setattr(StageRun, "save", save)
    return found


@pytest.mark.parametrize("asked_at", [(1, 3), (2, 5)])
def test_a_request_to_stop_is_followed_at_once_and_nothing_is_trained_twice(
    asked_at: tuple[int, int],
    home: Path,
    undisturbed: Losses,
    saved: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    the_job = job(home, training={"checkpoint": {"every_steps": None, "every_seconds": None}})
    original, trained = StageRun._step, []

    def ask(self: StageRun) -> torch.Tensor:
        trained.append((self.stage.index, self.position.step))
        self.context.reporter.stop_requested = (self.stage.index, self.position.step + 1) == asked_at
        return original(self)

    with monkeypatch.context() as patched:
        patched.setattr(StageRun, "_step", ask)
        config = {"jobs": [the_job.model_dump(mode="json")], "progress_actor": None, "claims": None}
        assert train_loop_per_worker(config) == {"stopped": True, "failed": {}}
    assert trained[-1] == (asked_at[0], asked_at[1] - 1)
    assert saved == [asked_at]
    finished(the_job)
    assert_same(losses(the_job), undisturbed)


def test_checkpoints_are_written_when_due_but_not_at_the_end(home: Path, saved: list[tuple[int, int]]) -> None:
    plan = {"grow": {"blocks": 1}, "train": {"steps": 6}}
    finished(job(home, plan=plan))
    assert saved == [(1, 2), (1, 4)]
    saved.clear()
    finished(job(home, plan=plan, training={"checkpoint": {"every_steps": None, "every_seconds": 1e-9}}))
    assert saved == [(1, step) for step in range(1, 6)]


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a checkpoint remembers in place of what it did; empty: as it was."""
    changes: dict[str, Any] = {}
    original = stage_run.find_checkpoint

    def changed(*arguments: Any) -> tuple[str, CheckpointInfo] | None:
        found = original(*arguments)
        return found and (found[0], found[1].model_copy(update=changes))

    monkeypatch.setattr(stage_run, "find_checkpoint", changed)
    return changes


def test_on_other_text_convergence_is_judged_anew(
    home: Path, remembered: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two evaluations without a gain end the stage, and one was before the checkpoint at step 4."""
    convergence = {"patience": 2, "min_delta": 100.0, "every_steps": 2}
    plan = {"grow": {"blocks": 1}, "train": {"steps": 50, "convergence": convergence}}
    same, other = job(home, plan=plan), job(home, plan=plan)
    for the_job in (same, other):
        crash_at(monkeypatch, the_job, stage=1, step=5)
    assert finished(same)[0].metrics["steps"] == 6
    remembered["data_fingerprint"] = "0" * 64
    assert finished(other)[0].metrics["steps"] == 10


@pytest.mark.parametrize("crashed_at", [(1, 1), (2, 3)])
def test_what_was_written_before_the_first_checkpoint_is_written_once(
    crashed_at: tuple[int, int], home: Path, undisturbed: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    the_job = job(home, training={"checkpoint": {"every_steps": None, "every_seconds": None}})
    stage, step = crashed_at
    crash_at(monkeypatch, the_job, stage=stage, step=step)
    assert losses(the_job)[-1][:2] == crashed_at
    finished(the_job)
    assert_same(losses(the_job), undisturbed)


def test_time_and_first_score_from_before_a_crash_count(
    home: Path, remembered: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    the_job = job(home, plan={"grow": {"blocks": 1}, "train": TRAIN})
    crash_at(monkeypatch, the_job, stage=1, step=5)
    remembered.update({"seconds": 1000.0, "first_bits_per_byte": 123.0})
    (manifest,) = finished(the_job)
    assert 1000 < manifest.metrics["seconds"] < 2000
    assert manifest.metrics["eval/bits_per_byte_start"] == 123.0
    timed = {"steps": 8, "seconds": 900.0}
    other = job(home, plan={"grow": {"blocks": 1}, "train": timed})
    remembered.clear()
    crash_at(monkeypatch, other, stage=1, step=5)
    remembered["seconds"] = 1000.0
    (manifest,) = finished(other)
    assert (manifest.ended_by, manifest.metrics["steps"]) == ("seconds", 4), "the time was over at the checkpoint"


def test_a_checkpoint_beside_other_frozen_tensors_is_refused(
    home: Path, remembered: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    the_job = job(home)
    crash_at(monkeypatch, the_job, stage=2, step=5)
    remembered["frozen_before"] = "0" * 64
    problem = train(the_job)
    assert isinstance(problem, TrainingError) and "its frozen tensors differ from those on this machine" in str(problem)
    assert_only_the_first_stage_is_sealed(the_job)


def test_a_loss_that_is_not_finite_ends_the_stage_with_the_command_that_goes_on(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    the_job, original = job(home), TrainEngine.step

    def diverging(self: TrainEngine, *arguments: Any) -> torch.Tensor:
        totals = original(self, *arguments)
        if any("layers.1." in name for name, _ in self.trainable()):
            totals[0] = float("inf")
        return totals

    monkeypatch.setattr(TrainEngine, "step", diverging)
    problem = train(the_job)
    assert isinstance(problem, TrainingError) and "the loss of stage 2 (depth-2) is not finite at step 1" in str(
        problem
    )
    assert f"--run-dir {the_job.run_dir} plan.train.learning_rate=0.0033" in problem.remedy
    assert_only_the_first_stage_is_sealed(the_job)


def test_a_stage_reads_on_where_the_one_before_has_ended(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begins: list[int] = []

    class Noted(Batches):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            begins.append(options["num_samples_before"])
            super().__init__(*arguments, **options)

    monkeypatch.setattr(stage_run, "Batches", Noted)
    manifests = finished(job(home))
    assert begins == [0, 8 * 4]
    assert [manifest.num_tokens for manifest in manifests] == [8 * 4 * 32, 2 * 8 * 4 * 32]


def test_every_step_drops_other_numbers(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = {"stages": [{"add": 1}, {"add": 0, "active": 0, "lora": {**LORA, "dropout": 0.1}}], "train": {"steps": 4}}
    the_job, original, seeds = job(home, plan=plan), torch.manual_seed, []

    def recording(seed: int) -> torch.Generator:
        seeds.append(seed)
        return original(seed)

    with monkeypatch.context() as patched:
        patched.setattr(stage_run.torch, "manual_seed", recording)
        finished(the_job)
    assert len(set(seeds)) >= 4
    again = job(home, plan=plan)
    finished(again)
    assert_same(losses(again), losses(the_job))


# --- prefixes that change --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"lora": LORA}, {"train_substrate": True}])
def test_a_prefix_that_changes_in_the_stage_is_not_cached(change: dict[str, Any], home: Path) -> None:
    plan = {"stages": [{"add": 1}, {"add": 1, **change}], "train": TRAIN}
    substrate = {"kind": "learned"} if "train_substrate" in change else {"kind": "binary"}
    asked = job(home, plan=plan, substrate=substrate, training={"prefix": "cache"})
    problem = train(asked)
    assert isinstance(problem, ConfigError) and "changes what its prefix computes" in str(problem)
    left = job(home, plan=plan, substrate=substrate, cache_dir=str(home / f"cache-{'-'.join(change)}"))
    assert not finished(left)[1].metrics["prefix_cached"]
    assert not any(path.suffix == ".npy" for path in cached_shards(left))


@pytest.mark.usefixtures("small_shards")
def test_what_other_workers_have_not_put_where_this_one_sees_it_is_computed_here(
    home: Path, undisturbed: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_stage, "world_size", lambda: 3)  # two thirds are the others', who write elsewhere
    cached = job(home, training={"prefix": "cache"}, cache_dir=str(home / "cache-shares"))
    assert finished(cached)[1].metrics["prefix_cached"]
    assert_same(losses(cached), undisturbed)


# --- recipes: ways to grow, each a choice of its own -----------------------------------------------------------------

RECIPES: dict[str, dict[str, Any]] = {
    "one schedule": {"plan": {"schedule": "plan", "decay": 0.5}},
    "unfrozen": {"plan": {"unfreeze": True}},
    "in the middle": {"plan": {"insert": "middle", "grow": None, "stages": [{"add": 2}, {"add": 1}]}},
    "reinjection": {"reinjection": True},
    "completep": {"plan": {"parametrization": "completep"}},
    "muon": {"plan": {"train": {**TRAIN, "optimizer": "muon"}}},
}


def recipe_job(home: Path, name: str, **training: Any) -> TrainJob:
    recipe = RECIPES[name]
    model = {"hidden_size": 32, "num_attention_heads": 2, "context_length": 32}
    model["substrate_reinjection"] = recipe.get("reinjection", False)
    return job(home, plan={**TWO_STAGES, **recipe.get("plan", {})}, model=model, training=training)


@pytest.fixture(scope="module")
def of_recipes(process_group: None, home: Path) -> dict[str, tuple[tuple[Manifest, ...], Losses]]:
    found = {}
    for name in RECIPES:
        the_job = recipe_job(home, name)
        found[name] = (finished(the_job), losses(the_job))
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_otherwise_and_its_manifests_hold(name: str, of_recipes: Any, undisturbed: Losses) -> None:
    manifests, found = of_recipes[name]
    assert found[-1][2] < found[0][2]
    assert max(abs(a[2] - b[2]) for a, b in zip(found, undisturbed, strict=True)) > 1e-4
    for manifest in manifests:
        check = manifest.metrics["active_check"]
        assert check["num_changed"] == check["num_tensors"] == check["num_with_gradients"]
        assert manifest.metrics["seal_max_logit_difference"] < 1e-4
        assert manifest.frozen_check.before == manifest.frozen_check.after


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_goes_on_after_a_crash_under_another_zero_stage(
    name: str, home: Path, of_recipes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    the_job = recipe_job(home, name, zero_stage=1)
    crash_at(monkeypatch, the_job, stage=2, step=5)
    finished(the_job.model_copy(update={"training": the_job.training.model_copy(update={"zero_stage": 3})}))
    assert_same(losses(the_job), of_recipes[name][1])


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("name", ["in the middle", "reinjection", "muon", "one schedule"])
def test_a_recipe_with_a_frozen_prefix_may_cache_it(name: str, home: Path, of_recipes: Any) -> None:
    the_job = recipe_job(home, name, prefix="cache")
    second = finished(the_job)[1]
    assert second.metrics["prefix_cached"]
    assert_same(losses(the_job), of_recipes[name][1])


def test_an_unfrozen_stage_stores_every_block_anew(of_recipes: Any) -> None:
    first, second = of_recipes["unfrozen"][0]
    assert {ref.blob for ref in second.blocks} <= set(second.new_blobs)
    assert first.blocks[0] != second.blocks[0]
    assert second.frozen_check.num_tensors == 1  # the substrate


def test_a_block_in_the_middle_stands_between_frozen_ones(of_recipes: Any) -> None:
    first, second = of_recipes["in the middle"][0]
    assert [second.blocks[0], second.blocks[2]] == list(first.blocks)
    assert second.frozen_check.num_tensors == 1 + 2 * 12


def test_the_scalars_of_frozen_blocks_are_frozen_with_them(home: Path, of_recipes: Any) -> None:
    first, second = of_recipes["reinjection"][0]
    assert first.blocks[0] == second.blocks[0]
    assert second.frozen_check.num_tensors == 1 + 13


# --- stages with data of their own -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_sources(home: Path) -> dict[str, Any]:
    (home / "other").mkdir()
    write_corpus(home / "other", num_documents=40)
    names = {"plain": home / "texts.jsonl", "other": home / "other" / "texts.jsonl"}
    return {"sources": [{"files": str(file), "name": name} for name, file in names.items()], "validation_fraction": 0.2}


def test_a_stage_trains_on_the_sources_that_it_names_and_the_next_reads_on(
    home: Path, two_sources: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, list[int]] = {}
    original = StageRun._step

    def noted(self: StageRun) -> torch.Tensor:
        seen.setdefault(self.stage.index, []).extend(self.batches.windows(self.position.step).tolist())
        return original(self)

    monkeypatch.setattr(StageRun, "_step", noted)
    plan = {"train": TRAIN, "stages": [{"data": {"other": 1}}, {"data": {"plain": 3, "other": 1}}, {}]}
    the_job = job(home, plan=plan, data=two_sources, training={"prefix": "recompute"})
    first, second, third = finished(the_job)
    windows = [manifest.metrics["windows_by_source"] for manifest in (first, second, third)]
    assert windows == [{"plain": 0, "other": 32}, {"plain": 24, "other": 8}, {"plain": 16, "other": 16}]
    assert third.metrics["windows_by_source_since_first_stage"] == {"plain": 40, "other": 56}
    assert first.data_fingerprint == third.data_fingerprint, "what is packed and held out is the same for all"
    assert shares_seen(second) == {"plain": 0.75, "other": 0.25}
    size = open_packed(the_job.packed_path).mix.num_windows[0]
    drawn = list(seen.values())
    assert all(window >= size for window in drawn[0]) and len(drawn[0]) == 32
    of_plain = [window for windows in drawn[1:] for window in windows if window < size]
    assert len(set(of_plain[: min(size, 40)])) == min(size, 40), "no window returns before its source is through"


def test_stages_without_data_of_their_own_say_what_they_saw(home: Path, two_sources: dict[str, Any]) -> None:
    (first, second) = finished(job(home, data=two_sources))
    assert first.metrics["windows_by_source"] == second.metrics["windows_by_source"] == {"plain": 16, "other": 16}
    assert not second.metrics["own_mix"]
