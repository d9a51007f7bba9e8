"""Every write of a run made to fail, or the process to die right before or right after it, one at a time.

`make crash` walks all of them (about 20 minutes on two cores); the default tier takes one of each kind. After each, the
same command must end with the losses and the blobs of a run that nothing has disturbed, and `verify` find it intact.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from growtx.growth.lineage import open_lineage
from growtx.storage import Storage
from growtx.store.runs import read_metrics
from growtx.store.verify import verify
from tests.crash.child import KILLED, MODES, UNEXPECTED, Mode, run
from tests.run.configs import write_corpus

EXACT = 1e-5  # nats
SECONDS = 240


@dataclass(frozen=True)
class Point:
    """One write of a run, and what happens there."""

    number: int
    what: str
    mode: Mode

    @property
    def kind(self) -> str:
        """The operation and the kind of file: names without digits and hashes."""
        return f"{self.mode} {re.sub(r'[.][a-z0-9_]{8}$|[0-9a-f]{16,}|[0-9]+|blobs/../', '#', self.what)}"


@dataclass(frozen=True)
class Outcome:
    """What a run leaves that must not depend on what happened to it."""

    losses: tuple[tuple[int, int, float], ...]
    scores: tuple[tuple[int, int, str], ...]
    blobs: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, run_dir: str) -> Outcome:
        rows = read_metrics(Storage(run_dir))
        return cls(
            tuple((row["stage"], row["step"], row["train/loss"]) for row in rows if "train/loss" in row),
            tuple((row["stage"], row["step"], row["eval/when"]) for row in rows if "eval/when" in row),
            tuple(tuple(sorted(manifest.blobs())) for manifest in open_lineage(run_dir).manifests),
        )

    def difference(self, other: Outcome) -> str | None:
        if [row[:2] for row in self.losses] != [row[:2] for row in other.losses]:
            return f"steps {[row[:2] for row in self.losses]}"
        worst = max(abs(a[2] - b[2]) for a, b in zip(self.losses, other.losses, strict=True))
        if worst > EXACT:
            return f"losses differ by {worst:.2g}"
        if self.scores != other.scores:
            return f"scores at {self.scores}"
        return None if self.blobs == other.blobs else "other blobs"


class Harness:
    """Runs in processes that are forked from one which has imported everything."""

    def __init__(self, home: Path) -> None:
        self._home, self._corpus = home, write_corpus(home)
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(["tests.crash.child"])
        root = home / "undisturbed"
        root.mkdir()
        assert self._run(root, log=root / "writes.txt") == 0, (root / "output.txt").read_text()
        self.expected = Outcome.of(str(root / "work/run"))
        self.writes = (root / "writes.txt").read_text().splitlines()

    def points(self) -> list[Point]:
        """All of them, shuffled, so that any part is a sample."""
        points = [Point(number, what, mode) for number, what in enumerate(self.writes, 1) for mode in MODES]
        random.Random(0).shuffle(points)
        return points

    def one_of_each_kind(self) -> list[Point]:
        return list({point.kind: point for point in self.points()}.values())

    def _run(self, root: Path, log: Path | None = None, point: Point | None = None) -> int | None:
        args = (
            str(root),
            self._corpus,
            str(log) if log else None,
            point and point.number,
            point.mode if point else "before",
        )
        process = self._processes.Process(target=run, args=args)
        process.start()
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
        return process.exitcode

    def problem(self, point: Point) -> str | None:
        """What is wrong with a run that this happened to; None if nothing is."""
        root = Path(tempfile.mkdtemp(dir=self._home))
        try:
            return self._problem(root, point)
        finally:
            shutil.rmtree(root)

    def _problem(self, root: Path, point: Point) -> str | None:
        output = root / "output.txt"
        first = self._run(root, point=point)
        if first == UNEXPECTED or first not in ((0, 1) if point.mode == "error" else (0, KILLED)):
            return f"the first attempt ended with {first}: {output.read_text()[-600:]}"
        if point.mode != "error" and first == 0:
            return "it was never reached"
        again = self._run(root)
        if again != 0:
            return f"the second attempt ended with {again}: {output.read_text()[-600:]}"
        run_dir = str(root / "work/run")
        if not verify(run_dir).is_intact:
            return "it is not intact"
        state = json.loads(Path(run_dir, "status.json").read_text())["state"]
        if state != "finished":
            return f"its state is {state}"
        results = ("model/config.json", "model/README.md", "report.html")
        missing = [name for name in results if not Path(run_dir, name).exists()]
        return f"{missing} are missing" if missing else Outcome.of(run_dir).difference(self.expected)


def main(arguments: Sequence[str] = sys.argv[1:]) -> int:
    """All points, or the share I/N of them, J at a time; prints what went wrong, and how many of each kind there were.

    Args:
        arguments: I/N (default 1/1) and J (default 2).
    """
    shard, num_shards = map(int, (arguments[0] if arguments else "1/1").split("/"))
    num_processes = int(arguments[1]) if len(arguments) > 1 else 2
    with tempfile.TemporaryDirectory(prefix="growtx-crash-") as home:
        harness = Harness(Path(home))
        points = harness.points()[shard - 1 :: num_shards]
        print(f"{len(harness.writes)} writes, {len(points)} points", flush=True)
        failed = 0
        with ThreadPoolExecutor(num_processes) as pool:
            for done, (point, problem) in enumerate(zip(points, pool.map(harness.problem, points), strict=True), 1):
                if problem is not None:
                    failed += 1
                    print(f"FAILED {point}: {problem}", flush=True)
                if done % 50 == 0:
                    print(f"{done} of {len(points)}, {failed} failed", flush=True)
    kinds = Counter(f"{point.mode} {point.what.split()[0]}" for point in points)
    print(f"{len(points)} points, {failed} failed; {', '.join(f'{kind} {n}' for kind, n in sorted(kinds.items()))}")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
