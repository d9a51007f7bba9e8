"""The metrics that Ray has collected from all processes of all nodes, reduced to ours."""

from __future__ import annotations

import urllib.request
from contextlib import suppress

import ray

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
    """Samples of several pages by family: a family's HELP and TYPE may stand only once."""
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
