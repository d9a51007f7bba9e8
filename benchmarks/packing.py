"""How fast text is packed on clusters of one-CPU nodes, and what that costs in memory and on the disk."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from growtx.config import build_config
from growtx.data.packing import PackedData
from growtx.data.packing_job import PlanNeed, pack
from growtx.data.sources import DataConfig
from growtx.data.tokenizer import Encoder, encoder_definition

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Row = dict[str, Any]
CONTEXT_LENGTH = 1024
SALT_EVERY = 200  # characters, so that no long stretch of text comes twice
NUM_FILES = 16


def write_salted(texts: Sequence[str], num_bytes: int, directory: Path) -> str:
    """Repeat texts, each time with other numbers in them, until there is enough; returns the pattern of the files."""
    rows: list[str] = []
    written = number = 0
    per_file = num_bytes // NUM_FILES
    for round_number in range(10**6):
        for text in texts:
            parts = [text[start : start + SALT_EVERY] for start in range(0, len(text), SALT_EVERY)]
            rows.append(f" {round_number * 7919 + number} ".join(parts))
            written += len(rows[-1].encode())
            if written >= per_file:
                file = directory / f"{number:03}.parquet"
                pq.write_table(pa.table({"text": rows}), file, row_group_size=256, compression="none")
                rows, written, number = [], 0, number + 1
                if number == NUM_FILES:
                    return str(directory / "*.parquet")
    raise AssertionError


def measure_packing(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], *, num_bytes: int, nodes: Sequence[int], rounds: int
) -> Iterator[Row]:
    """Pack the same text on clusters of so many one-CPU nodes.

    Yields:
        first the tokenizer alone, with the library's own way and with ours, in one thread; then, per cluster and round,
        a row for its first job, whose processes must start and know no word yet, and one for a second job that packs
        everything again: `seconds`, `megabytes_per_second`, `megabytes_per_cpu_second` (of the processes that pack,
        which tells more where others use the machine too), `task_bytes` and `driver_bytes` (resident memory of the
        largest process that packs, and what packing adds to that of the driver), `disk_ratio` (largest size on the disk
        while packing, relative to what is packed), `fingerprint`.
    """
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "texts").mkdir()
        files = write_salted(texts, num_bytes, Path(directory) / "texts")
        yield from _tokenizer_alone(tokenizer, files)
        for round_number in range(rounds):
            for num_nodes in nodes:
                with one_cpu_nodes(num_nodes):
                    for job in ("first job", "second job"):
                        place = Path(directory) / f"{num_nodes}-{round_number}-{job}"
                        yield {"what": f"{num_nodes} nodes, {job}", **_packed(tokenizer, files, place)}


def _tokenizer_alone(tokenizer: PreTrainedTokenizerFast, files: str) -> Iterator[Row]:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    sample = pq.read_table(sorted(Path(files).parent.glob("*.parquet"))[0])["text"].to_pylist()
    num_bytes = sum(len(text.encode()) for text in sample)
    encoder, backend = Encoder(encoder_definition(tokenizer)), tokenizer.backend_tokenizer
    for what, encode in (
        ("tokenizer, library alone", lambda: backend.encode_batch_fast(sample, add_special_tokens=False)),
        ("tokenizer, in pieces", lambda: encoder.encode(sample)),
    ):
        started, cpu_started = time.perf_counter(), time.process_time()
        encode()
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        rates = {"megabytes_per_second": seconds, "megabytes_per_cpu_second": cpu_seconds}
        yield {"what": what, "seconds": seconds, **{name: num_bytes / 1e6 / spent for name, spent in rates.items()}}


def _packed(tokenizer: PreTrainedTokenizerFast, files: str, place: Path) -> Row:
    config = build_config(DataConfig, {"sources": [{"files": files}]})
    with _watched(place) as peak:
        started = time.perf_counter()
        data, (reading,) = pack(config, tokenizer, context_length=CONTEXT_LENGTH, cache_dir=str(place), need=PlanNeed())
        seconds = time.perf_counter() - started
    packed = _size(place)
    return {
        "seconds": seconds,
        "megabytes_per_second": reading.num_bytes / 1e6 / seconds,
        "megabytes_per_cpu_second": reading.num_bytes / 1e6 / peak["cpu_seconds"],
        "task_bytes": peak["task"],
        "driver_bytes": peak["driver"],
        "disk_ratio": max(peak["disk"], packed) / packed,
        "fingerprint": _fingerprint(data),
    }


def _fingerprint(data: PackedData) -> str:
    data.verify()
    return data.fingerprint[:12]


@contextmanager
def one_cpu_nodes(num_nodes: int) -> Iterator[None]:
    """A cluster of this machine's processes, to which this one is connected."""
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        for _ in range(num_nodes - 1):
            cluster.add_node(**node)
        root = str(Path(__file__).parents[1])
        variables = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
        ray.init(address=cluster.address, runtime_env={"env_vars": variables}, log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


@contextmanager
def _watched(place: Path) -> Iterator[dict[str, float]]:
    """The largest process, the CPU time of tasks and the largest size on the disk while something runs."""
    peak, ended = {"task": 0.0, "driver": 0.0, "disk": 0.0, "cpu_seconds": 0.0}, threading.Event()
    spent, spent_before = dict[int, float](), _cpu_seconds()
    before = psutil.Process().memory_info().rss

    def watch() -> None:
        while not ended.wait(0.5):
            peak["driver"] = max(peak["driver"], psutil.Process().memory_info().rss - before)
            for process in psutil.process_iter():
                with suppress(psutil.NoSuchProcess):
                    if process.name().startswith("ray::Flat"):
                        spent[process.pid] = sum(process.cpu_times()[:2]) - spent_before.get(process.pid, 0.0)
                        peak["task"] = max(peak["task"], process.memory_info().rss)
            peak["disk"] = max(peak["disk"], _size(place))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()
        peak["cpu_seconds"] = sum(spent.values())


def _cpu_seconds() -> dict[int, float]:
    """What every process has used so far."""
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            found[process.pid] = sum(process.cpu_times()[:2])
    return found


def _size(place: Path) -> int:
    total = 0
    for path in place.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # it has just been moved into its place
            continue
    return total
