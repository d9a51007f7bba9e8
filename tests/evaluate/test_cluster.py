from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from growtx.evaluate import cluster
from growtx.evaluate.evaluation import BenchmarkConfig
from growtx.evaluate.results import Evaluation, Score
from growtx.exceptions import ConfigError, DataError, ResourceError
from growtx.growth.results import find_result
from growtx.report.publish import publish
from growtx.storage import Storage


@pytest.mark.parametrize(("wanted", "found"), [("last", [None]), ("all", [1, 2]), ("2", [2]), ("1,2", [1, 2])])
def test_depths_are_those_of_the_lineage(grown_run: Path, wanted: str, found: list[int | None]) -> None:
    assert cluster.resolve_depths(find_result(str(grown_run)), wanted) == found


@pytest.mark.parametrize(("wanted", "message"), [("3", "no stage of depth 3"), ("deep", "not numbers of blocks")])
def test_a_depth_that_does_not_exist_names_those_that_do(grown_run: Path, wanted: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        cluster.resolve_depths(find_result(str(grown_run)), wanted)
    assert "1, 2" in str(caught.value)


def test_results_of_a_manifest_belong_to_its_run(grown_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(grown_run)
    for path in (str(grown_run), f"{grown_run}/manifests/01-depth-1.json", "manifests/01-depth-1.json", "."):
        assert Path(find_result(path).home.root).resolve() == grown_run.resolve()


def test_a_run_knows_its_world_and_what_it_held_out(grown_run: Path) -> None:
    assert cluster.default_tasks(str(grown_run)) == ("bits_per_byte", "microworld")
    config = BenchmarkConfig(tasks=("bits_per_byte",))
    data = cluster.training_text.recorded_data(str(grown_run))
    texts, config = cluster.with_training_text(str(grown_run), config, data)
    assert config.microworld is not None and config.microworld.num_people == 40
    assert set(texts) == {"microworld · Han", "microworld · Latin"}


def test_a_directory_without_a_run_needs_named_texts(tmp_path: Path) -> None:
    config = BenchmarkConfig(tasks=("bits_per_byte",))
    with pytest.raises(DataError, match="--texts"):
        cluster.with_training_text(str(tmp_path), config, None)
    (tmp_path / "novel_en.txt").write_text("Once upon a time")
    named = config.model_copy(update={"texts": (str(tmp_path / "*.txt"),)})
    texts, _ = cluster.with_training_text(str(tmp_path), named, None)
    assert texts == {"novel_en": ["Once upon a time"]}


def test_results_go_beside_the_model_and_onto_a_page(tmp_path: Path, rough: None) -> None:
    score = Score(
        task="bits_per_byte", metric="bits_per_byte", protocol="compression", depth=1, group="en",
        value=2.0, low=1.9, high=2.1, num_items=3,
    )  # fmt: skip
    page = publish(Storage(tmp_path), Evaluation(model="m", scores=(score,)))
    assert Path(page).name == "evaluation.html"
    assert (tmp_path / "evaluation.json").exists()
    assert "2.000 [1.900, 2.100]" in Path(page).read_text()


@pytest.mark.ray
def test_every_depth_and_task_is_scored_on_the_cluster(grown_run: Path, questions_dir: Path) -> None:
    ray = pytest.importorskip("ray")
    pytest.importorskip("lm_eval")
    config = BenchmarkConfig(
        tasks=("bits_per_byte", "growtx_arc_easy", "microworld_recall"),
        data_dir=str(questions_dir),
        limit=2,
        num_runs=2,
    )
    said: list[str] = []
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        evaluation = cluster.evaluate_path(str(grown_run), config, depths="all", say=said.append)
        cluster.map_path(str(grown_run))
    finally:
        ray.shutdown()
    assert evaluation.depths == [1, 2]
    assert set(evaluation.tasks) == {"bits_per_byte", "growtx_arc_easy", "microworld_recall"}
    assert evaluation.overlaps[0].task == "growtx_arc_easy"
    assert len(said) == 6
    assert (grown_run / "maps.json").exists()


def test_models_are_scored_in_tf32_on_the_gpu_that_ray_gave_and_in_fp32_on_cpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(cluster, "is_connected", lambda: True)
    try:
        monkeypatch.setattr("ray.get_gpu_ids", list)
        assert cluster._device() == torch.device("cpu") and torch.get_float32_matmul_precision() == before
        monkeypatch.setattr("ray.get_gpu_ids", lambda: ["0"])
        assert cluster._device() == torch.device("cuda") and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_parts_whose_nodes_went_away_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only node left has no CPU for them, as the head of a cluster often has not."""
    waits: list[float] = []

    def wait(references: list[str], *, num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        waits.append(timeout)
        return [], references

    remote = SimpleNamespace(remote=lambda: "reference")
    monkeypatch.setattr("ray.remote", lambda **_: lambda function: remote)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr("ray.wait", wait)
    nodes = [{"Alive": True, "Resources": {"CPU": 1.0}}, {"Alive": True, "Resources": {}}]
    monkeypatch.setattr(
        "ray.nodes", lambda: [{**node, "Alive": len(waits) < 2 or not node["Resources"]} for node in nodes]
    )
    with pytest.raises(ResourceError, match=r"no node left in the Ray cluster has a CPU\. Add nodes"):
        list(cluster._outcomes_on_cluster({("task", 1): (print, ())}))
    assert waits == [cluster.NODE_CHECK_SECONDS] * 2
