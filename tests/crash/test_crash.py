"""A sample of the crash harness; `make crash` walks every write."""

from __future__ import annotations

import pytest

from tests.crash.harness import Harness, Point

NUM_POINTS = 12
SEEN = ("lock", "fence", "run.yaml", "status.json", "blobs/", "manifests/", "checkpoints/", "metrics.jsonl", "model")


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    return Harness(tmp_path_factory.mktemp("crash"))


def test_every_kind_of_file_is_among_the_writes(harness: Harness) -> None:
    assert len(harness.writes) > 200
    assert not [name for name in SEEN if not any(" run/" in write and name in write for write in harness.writes)]
    assert any(" cache/" in write for write in harness.writes)
    assert len(harness.points()) == len(set(harness.points())) == 3 * len(harness.writes)


@pytest.mark.timeout(300)
def test_a_run_that_a_crash_or_an_error_has_met_ends_as_if_nothing_had_happened(harness: Harness) -> None:
    problems = {point: harness.problem(point) for point in harness.one_of_each_kind()[:NUM_POINTS]}
    assert not {point: problem for point, problem in problems.items() if problem is not None}


def test_a_point_that_is_never_reached_is_noticed(harness: Harness) -> None:
    """Otherwise a harness that kills nothing would be content with everything."""
    beyond = Point(10 * len(harness.writes), "nothing", "before")
    assert harness.problem(beyond) == "it was never reached"
