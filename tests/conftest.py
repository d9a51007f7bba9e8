"""What all tests share: no network, one thread, and one small grown run to look at."""

from __future__ import annotations

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # every test is of the CPU, also on a machine with GPUs
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests import tiny
from tests.object_store import ObjectStore

# On a busy machine it is not the test that is slow.
settings.register_profile("growtx", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("growtx")

ORDER = "GROWTX_TEST_ORDER"  # a number that decides the order of tests; unset: as they stand in the files


def pytest_report_header() -> str | None:
    return f"order of tests: {ORDER}={os.environ[ORDER]}" if os.environ.get(ORDER) else None


@pytest.hookimpl(tryfirst=True)  # pytest then groups what shares a fixture that is made for several parameters
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Shuffle the files, and the tests inside each: no test may count on those before it."""
    if not (number := os.environ.get(ORDER)):
        return
    order = random.Random(number)
    files = list(dict.fromkeys(item.path for item in items))
    order.shuffle(files)
    order.shuffle(items)
    items.sort(key=lambda item: files.index(item.path))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A compact tokenizer of `tiny.VOCAB_SIZE` ids."""
    return tiny.build_tokenizer()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three stages (one block, a second one, a LoRA phase on both), as training leaves it. Read-only.

    Not by the fixture `tokenizer`, which some directories override: whoever comes first would decide for all.
    """
    path = tmp_path_factory.mktemp("shared") / "run"
    tiny.write_run(path, tiny.build_tokenizer())
    return path


@pytest.fixture
def run_dir(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of `finished_run` to damage."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """An S3 server, to which the environment of this process leads."""
    store = ObjectStore()
    patch = pytest.MonkeyPatch()
    for name, value in store.environment.items():
        patch.setenv(name, value)
    yield store
    patch.undo()
    store.stop()


@pytest.fixture(scope="session")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What Ray Train sets up around a worker: rank variables and a group."""
    import torch.distributed as dist

    from growtx.train import distributed
    from tests.train.conftest import rank_variables

    patch = pytest.MonkeyPatch()
    patch.setenv("DS_ACCELERATOR", "cpu")
    for name, value in rank_variables(rank=0, world_size=1).items():
        patch.setenv(name, value)
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    distributed._control_group = None
    patch.undo()
