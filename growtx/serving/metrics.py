"""Metrics for Prometheus. Ray collects the metrics of all processes; `GET /metrics` reads them from its nodes."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterable
from contextlib import suppress

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from growtx.compat.ray import metric_tag
from growtx.serving.requests import Token

LATENCY_BOUNDARIES = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]
METRIC_PREFIX = "ray_growtx_"  # Ray puts its own name in front


class IngressMetrics:
    """Requests, tokens and latencies, as the clients of one front end see them."""

    def __init__(self, model: str) -> None:
        tags = {"model": metric_tag(model)}

        def tagged(metric: Counter | Histogram) -> Counter | Histogram:
            metric.set_default_tags(tags)
            return metric

        self.requests = tagged(Counter("growtx_requests_total", "answers by HTTP status", ("model", "status")))
        self.prompt_tokens = tagged(
            Counter("growtx_prompt_tokens_total", "tokens of prompts that were read", ("model",))
        )
        self.queue = Gauge("growtx_queue", "texts that have no token yet", ("model",)).set_default_tags(tags)
        self._num_waiting = 0
        self.tokens = tagged(Counter("growtx_tokens_total", "generated tokens", ("model",)))
        self.first_token = tagged(
            Histogram(
                "growtx_time_to_first_token_seconds", "from request to first token", LATENCY_BOUNDARIES, ("model",)
            )
        )
        self.inter_token = tagged(
            Histogram("growtx_inter_token_seconds", "between tokens of a text", LATENCY_BOUNDARIES, ("model",))
        )
        self.member_weight = tagged(
            Counter(
                "growtx_member_weight_total",
                "sum over generated tokens of each member's weight; divide by growtx_tokens_total",
                ("model", "member"),
            )
        )

    def count_answer(self, status: int) -> None:
        self.requests.inc(1, {"status": str(status)})

    def wait(self, change: int) -> None:
        """Count one more or one fewer text that has no token yet."""
        self._num_waiting += change
        self.queue.set(self._num_waiting)


class TextClock:
    """Times the tokens of one text, from the start of the `with` block."""

    def __init__(self, metrics: IngressMetrics, members: tuple[str, ...], num_prompt_tokens: int) -> None:
        self._metrics = metrics
        self._members = members
        self._num_prompt_tokens = num_prompt_tokens
        self._before = time.perf_counter()
        self._has_begun = False

    def __enter__(self) -> TextClock:
        self._metrics.wait(1)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._has_begun:
            self._metrics.wait(-1)

    def tick(self, tokens: Iterable[Token]) -> None:
        """Called with the tokens that arrived together."""
        now = time.perf_counter()
        arrived = list(tokens)
        if not self._has_begun:
            self._metrics.wait(-1)
            self._metrics.prompt_tokens.inc(self._num_prompt_tokens)
        latency = self._metrics.inter_token if self._has_begun else self._metrics.first_token
        latency.observe(now - self._before)
        self._before, self._has_begun = now, True
        self._metrics.tokens.inc(len(arrived))
        for index, member in enumerate(self._members):
            total = sum(token.weights[index] for token in arrived if token.weights)
            if total > 0:  # a counter cannot go down, and contrastive weights can
                self._metrics.member_weight.inc(total, {"member": member})


class FailoverMetrics:
    """What clients do not see: texts whose replica was lost."""

    def __init__(self) -> None:
        self.failovers = Counter("growtx_failovers_total", "texts that continued, or restarted, on another replica")


class EngineMetrics:
    """How full one engine is."""

    def __init__(self) -> None:
        self.batch_size = Gauge("growtx_batch_size", "texts in the last step", ("replica",))

    def set(self, replica: str, batch_size: int) -> None:
        self.batch_size.set(batch_size, {"replica": replica})


# The metrics that Ray has collected from all processes of all nodes, reduced to ours.


TIMEOUT_SECONDS = 2
WANTED = "ray_growtx_"


def read_cluster_metrics() -> str:
    """Prometheus' text format; a node that does not answer is left out."""
    pages = []
    for node in ray.nodes():
        if node["Alive"] and node.get("MetricsExportPort"):
            address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            with suppress(OSError), urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as response:
                pages.append(response.read().decode())
    return merge_pages(pages)


def merge_pages(pages: list[str]) -> str:
    """Samples of several pages by family: a family's HELP and TYPE may appear only once."""
    families: dict[str, dict[str, None]] = {}
    for page in pages:
        family = ""
        for line in page.split("\n"):
            if line.startswith(("# HELP ", "# TYPE ")):
                family = line.split(" ", 3)[2]
            if family.startswith(WANTED) and line:
                families.setdefault(family, {})[line] = None
    lines = [line for family in families.values() for line in sorted(family, key=_comments_first)]
    return "\n".join([*lines, ""])


def _comments_first(line: str) -> bool:
    return not line.startswith("#")
