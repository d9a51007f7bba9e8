"""The dashboards and what they are provisioned with: every panel asks for metrics that something exports."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from growtx.compat.ray import metric_tag
from growtx.train import tracking
from growtx.train.tracking import DESCRIPTIONS, TrainingGauges, gauge_name

PROJECT = Path(__file__).parents[2]
MONITORING = PROJECT / "cluster" / "monitoring"
DASHBOARDS = sorted((MONITORING / "dashboards").glob("*.json"))
METRIC = re.compile(r"\bray_[a-z0-9_]+")


def exported() -> set[str]:
    """Names that Ray's own dashboards use, those of a growth, and those of the endpoint."""
    panels = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    by_ray = {name for path in panels.glob("*_panels.py") for name in METRIC.findall(path.read_text())}
    by_growth = {f"ray_{gauge_name(key)}" for key in DESCRIPTIONS}
    declared = re.findall(r'"(growtx_[a-z_]+)"', (PROJECT / "growtx" / "serving" / "metrics.py").read_text())
    by_endpoint = {f"ray_{name}{suffix}" for name in declared for suffix in ("", "_bucket")}  # buckets of histograms
    return by_ray | by_growth | by_endpoint


def queries(dashboard: dict[str, Any]) -> list[str]:
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    variables = [item["query"]["query"] for item in dashboard["templating"]["list"] if item["type"] == "query"]
    return panels + variables


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_panels_ask_only_for_metrics_that_exist(path: Path) -> None:
    asked = [(query, set(METRIC.findall(query))) for query in queries(json.loads(path.read_text()))]
    assert all(names for _, names in asked)
    assert {name for _, names in asked for name in names} <= exported()


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_panels_have_a_place_a_title_and_the_chosen_source(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    places: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        x, y, width, height = (panel["gridPos"][key] for key in "xywh")
        cells = {(column, row) for column in range(x, x + width) for row in range(y, y + height)}
        assert panel["title"]
        assert x + width <= 24
        assert not cells & places, f"{panel['title']} lies on another panel"
        places |= cells
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert dashboard["uid"] == f"growtx-{path.stem}"


def test_the_training_dashboard_shows_every_gauge_of_a_growth() -> None:
    text = (MONITORING / "dashboards" / "training.json").read_text()
    hidden = {"train/grad_norm", "eval/loss"}  # told by the report, and by bits per byte
    assert {key for key in DESCRIPTIONS if f"ray_{gauge_name(key)}" not in text} == hidden


def test_everything_that_the_compose_file_mounts_exists_and_listens_on_loopback() -> None:
    services = yaml.safe_load((MONITORING / "compose.yaml").read_text())["services"]
    for service in services.values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source == "/tmp/ray" or (MONITORING / source).exists()
    assert "--web.listen-address=127.0.0.1:9090" in services["prometheus"]["command"]
    assert services["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    source = yaml.safe_load((MONITORING / "grafana-datasource.yaml").read_text())["datasources"][0]
    assert source["url"] == "http://127.0.0.1:9090"


def test_gauges_take_what_a_row_has_and_leave_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, tuple[float, dict[str, str]]] = {}

    class Recorder:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self.name = name

        def set(self, value: float, tags: dict[str, str]) -> None:
            written[self.name] = (value, tags)

    monkeypatch.setattr("ray.util.metrics.Gauge", Recorder)
    monkeypatch.setattr("growtx.train.tracking.is_connected", lambda: True)
    monkeypatch.setattr("growtx.train.tracking._gauges", tracking._gauges.__wrapped__)
    TrainingGauges("first").update({"train/loss": 2.5, "stage": 1, "stage_name": "depth-1", "eval/loss": None})
    assert written == {"growtx_train_loss": (2.5, {"run": "first"}), "growtx_stage": (1.0, {"run": "first"})}


def test_a_run_with_letters_beyond_ascii_is_exported_under_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray encodes tags as ASCII; outside of a cluster it does so, too, and then forgets the value."""
    monkeypatch.setattr("growtx.train.tracking._gauges", cache(tracking._gauges.__wrapped__))
    monkeypatch.setattr("growtx.train.tracking.is_connected", lambda: True)
    TrainingGauges("/läufe/日本 #1%20").update({"train/loss": 2.5})
    assert metric_tag("/läufe/日本 #1%20") == "/l%C3%A4ufe/%E6%97%A5%E6%9C%AC #1%2520"
    assert metric_tag("s3://bucket/runs/a-b_c.d") == "s3://bucket/runs/a-b_c.d"


def test_without_ray_there_are_no_gauges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("growtx.train.tracking._gauges", lambda: pytest.fail("nobody would export them"))
    TrainingGauges("/r/a").update({"train/loss": 2.5})
