"""Mutation testing: plant one bug at a time in a copy of the checkout, and see whether the nearest tests notice.

`python tests/mutants/run.py` (or `make mutants`) runs every mutant of `mutants.yaml`; results are written as they come
to `build/mutants/results.jsonl`, and a run that was interrupted goes on where it was. A result stays valid until the
mutated file or one of its tests changes. Tests that fail without any bug prove nothing and are named as an error.

Each run is a fork of this process, which has imported the large libraries once; growtx itself comes from the copy.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gc
import hashlib
import importlib
import json
import os
import py_compile
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("mutants.yaml")
RESULTS = ROOT / "build" / "mutants"
SHARED = ("tests/conftest.py", "tests/tiny.py", "tests/synthetic_run.py")  # what a test's outcome also depends on
LIBRARIES = (  # what takes long to import and knows nothing of growtx
    *("numpy", "pyarrow.dataset", "torch", "torch.distributed", "torch.utils.data", "safetensors.torch", "tokenizers"),
    *("transformers.modeling_utils", "transformers.generation.utils", "transformers.models.llama.modeling_llama"),
    *("deepspeed", "ray", "pydantic", "fsspec", "yaml", "PIL.Image", "sklearn", "matplotlib.pyplot", "tensorboard"),
    *("aiohttp", "fastapi.testclient", "hypothesis", "schemathesis.pytest.plugin", "xdist.plugin"),
)
ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",  # the copy is compiled once, by hash: no bug is ever read from a stale cache
    "TOKENIZERS_PARALLELISM": "false",
}
PYTEST = ("-x", "-q", "-m", "not ray", "-p", "no:cacheprovider", "-p", "no:randomly")
MINIMUM = 0.95  # the share of mutants that tests must notice
GRACE = 30.0  # seconds beyond three times what the tests take without a bug: then the bug is one that hangs


class NotApplicableError(Exception):
    """The text to replace is not in the file exactly once, or the result is no Python."""


@dataclass(frozen=True)
class Mutant:
    """One bug: `old` becomes `new` in `file`, and `tests` should fail. With a `reason` it is known to go unnoticed."""

    id: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    reason: str | None = None

    def planted(self, text: str) -> str:
        """The text of the file with the bug in it."""
        if (count := text.count(self.old)) != 1:
            raise NotApplicableError(f"the old text occurs {count} times in {self.file}")
        changed = text.replace(self.old, self.new)
        if changed == text:
            raise NotApplicableError("the new text is the old one")
        if self.file.endswith(".py"):
            try:
                ast.parse(changed)
            except SyntaxError as error:
                raise NotApplicableError(f"no Python any more: {error}") from error
        return changed

    def key(self, root: Path) -> str:
        """Changes when the result of an earlier run no longer counts."""
        texts = [_text(root / path) for path in (self.file, *dict.fromkeys(map(file_of, self.tests)))]
        return _digest([self.old, self.new, *self.tests, *texts])


@dataclass(frozen=True)
class Outcome:
    """How a run of tests ended: `killed` by the test `by`, `survived`, or an `error` that says nothing of the tests."""

    result: str
    seconds: float
    by: str = ""


def read_mutants(path: Path = LIST) -> list[Mutant]:
    """The list, in the order in which it is run: mutants that share test files stand together."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    mutants = [Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]
    return sorted(mutants, key=lambda mutant: mutant.tests)


def file_of(test: str) -> str:
    """The file of a test id."""
    return test.partition("::")[0]


def chosen(mutants: Sequence[Mutant], only: Sequence[str], shard: str) -> list[Mutant]:
    """Those whose id matches one of the patterns, and of these every n-th: shard "1/4" is the first of four parts."""
    matching = [m for m in mutants if not only or any(fnmatch(m.id, pattern) for pattern in only)]
    part, parts = map(int, shard.split("/"))
    return matching[part - 1 :: parts]


class Checkout:
    """A copy of the working tree in which bugs are planted, so that the tree itself is never touched."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "tree"
        self.scratch = directory / "scratch"
        listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in filter(None, subprocess.check_output(listing, cwd=ROOT, text=True).split("\0")):
            if (ROOT / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.root / name)
        self._compile()

    def _compile(self) -> None:
        for path in self.root.rglob("*.py"):
            py_compile.compile(str(path), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)

    @contextlib.contextmanager
    def with_bug(self, mutant: Mutant) -> Iterator[None]:
        path = self.root / mutant.file
        original = path.read_text(encoding="utf-8")
        path.write_text(mutant.planted(original), encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(original, encoding="utf-8")

    def state(self, test: str) -> str:
        """Changes with whatever a test file may depend on when no bug is planted."""
        below = (path for top in ("growtx", "serve") for path in (self.root / top).rglob("*.*"))
        sources = sorted(path for path in below if path.suffix != ".pyc")
        return _digest([_text(path) for path in (*sources, *(self.root / name for name in (*SHARED, test)))])

    def start(self, work: Callable[[], int], log: Path) -> int:
        """Do some work in a fork that runs in this copy, in a session of its own; the process id."""
        sys.stdout.flush()
        if process := os.fork():
            return process
        status = 70
        try:
            self._enter(log)
            status = work()
        finally:
            os._exit(int(status))

    def _enter(self, log: Path) -> None:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for target in (1, 2):
            os.dup2(descriptor, target)
        os.chdir(self.root)
        os.environ["PYTHONPATH"] = str(self.root)
        os.environ["GROWTX_NODE_CACHE"] = str(self.scratch / "node")
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        here = {"", str(ROOT), str(Path(__file__).parent)}
        sys.path[:] = [str(self.root), *(path for path in sys.path if path not in here)]
        for name in [name for name in sys.modules if name == "tests" or name.startswith("tests.")]:
            del sys.modules[name]

    def run_tests(self, tests: Sequence[str]) -> int:
        """pytest's exit status; to be called in the fork."""
        import pytest

        return int(pytest.main([*PYTEST, f"--basetemp={self.scratch / 'tmp'}", *tests]))

    def is_imported(self) -> int:
        """Whether this copy is what Python imports, here and in programs that tests start (0 if so)."""
        program = "import growtx, serve, tests; print(growtx.__file__, serve.__file__, tests.__file__)"
        found = subprocess.check_output([sys.executable, "-c", program], cwd="/", text=True).split()
        import growtx

        return 0 if all(Path(path).is_relative_to(self.root) for path in (*found, str(growtx.__file__))) else 1


class Job:
    """One run of tests in progress."""

    def __init__(self, checkout: Checkout, work: Callable[[], int], log: Path, limit: float) -> None:
        self.log = log
        self._limit = limit
        self._begin = time.monotonic()
        self._process = checkout.start(work, log)

    def poll(self) -> Outcome | None:
        """How it ended, or None while it runs."""
        process, status = os.waitpid(self._process, os.WNOHANG)
        seconds = time.monotonic() - self._begin
        if not process and seconds < self._limit:
            return None
        self.kill()
        if not process:
            os.waitpid(self._process, 0)
            return Outcome("killed", seconds, f"no end within {self._limit:.0f} s")
        return outcome(os.waitstatus_to_exitcode(status), seconds, _text(self.log))

    def kill(self) -> None:
        """End it with all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process, signal.SIGKILL)

    def wait(self) -> Outcome:
        while (ended := self.poll()) is None:
            time.sleep(0.05)
        return ended


def outcome(status: int, seconds: float, output: str) -> Outcome:
    """What pytest's exit status means: 1 is a failed test, 2 a file that cannot be imported, below 0 a signal."""
    if status == 0:
        return Outcome("survived", seconds)
    if status < 0:
        return Outcome("killed", seconds, f"ended by signal {-status}")
    found = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    if status in {1, 2} and found:
        return Outcome("killed", seconds, found[-1])
    return Outcome("error", seconds, f"status {status}")


class Records:
    """What was found so far, one JSON line each; a line that was being written when a run died is passed over."""

    def __init__(self, path: Path, again: bool = False) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._rows: dict[str, dict[str, Any]] = {}
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if text and not text.endswith("\n"):
            path.write_text(text + "\n", encoding="utf-8")
        for line in [] if again else text.splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                self._rows[row["id"]] = row

    def get(self, name: str, key: str) -> Outcome | None:
        row = self._rows.get(name)
        return Outcome(row["result"], row["seconds"], row["by"]) if row and row["key"] == key else None

    def add(self, name: str, key: str, found: Outcome) -> None:
        row = {"id": name, "key": key, "result": found.result, "seconds": round(found.seconds, 1), "by": found.by}
        self._rows[name] = row
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


Progress = Generator[Outcome | None, None, None]  # None while tests run, then how they ended


class Runner:
    """Runs mutants in one copy: first, once, each of their test files without a bug."""

    def __init__(self, checkout: Checkout, records: Records, directory: Path) -> None:
        self.checkout = checkout
        self._records = records
        self._directory = directory

    def known(self, mutant: Mutant) -> Outcome | None:
        """An earlier result that still counts."""
        try:
            mutant.planted(_text(self.checkout.root / mutant.file))
        except (NotApplicableError, FileNotFoundError) as error:
            return Outcome("error", 0.0, str(error))
        return self._records.get(mutant.id, mutant.key(self.checkout.root))

    def run(self, mutant: Mutant) -> Progress:
        """Yield None as long as tests run, at the end the outcome."""
        seconds = 0.0
        for test in dict.fromkeys(mutant.tests):
            yield from self._unharmed(test)
            without_bug = self._records.get(test, self.checkout.state(file_of(test)))
            assert without_bug is not None
            if without_bug.result != "survived":
                yield Outcome("error", 0.0, f"{test} fails without a bug: {without_bug.by}")
                return
            seconds += without_bug.seconds
        key = mutant.key(self.checkout.root)
        with self.checkout.with_bug(mutant):
            for found in self._job(mutant.id, mutant.tests, 3 * seconds + GRACE):
                if found is not None and found.result != "error":
                    self._records.add(mutant.id, key, found)
                yield found

    def _unharmed(self, test: str) -> Progress:
        key = self.checkout.state(file_of(test))
        if self._records.get(test, key) is None:
            for found in self._job(f"without-{test.replace('/', '-').replace('::', '-')}", [test], 1800.0):
                if found is None:
                    yield None
                else:
                    self._records.add(test, key, found)

    def _job(self, name: str, tests: Sequence[str], limit: float) -> Progress:
        log = self._directory / f"{name[:120]}.txt"
        job = Job(self.checkout, lambda: self.checkout.run_tests(tests), log, limit)
        try:
            while (found := job.poll()) is None:
                yield None
        except GeneratorExit:  # this program ends
            job.kill()
            raise
        yield found


def run_all(mutants: Sequence[Mutant], runners: Sequence[Runner], report: Callable[[Mutant, Outcome], None]) -> None:
    """Give each runner the next mutant as soon as it is free."""
    waiting = list(reversed(mutants))
    running: dict[int, tuple[Mutant, Progress]] = {}
    try:
        while waiting or running:
            for number, runner in enumerate(runners):
                if number not in running and waiting:
                    running[number] = (waiting[-1], runner.run(waiting.pop()))
            for number, (mutant, progress) in list(running.items()):
                if (found := next(progress)) is not None:
                    next(progress, None)  # takes the bug out again
                    del running[number]
                    report(mutant, found)
            time.sleep(0.05)
    finally:
        for _, progress in running.values():
            progress.close()


def summary(mutants: Sequence[Mutant], found: dict[str, Outcome]) -> tuple[list[str], bool]:
    """The lines to print at the end, and whether all is as it should be."""
    counts = Counter(outcome.result for outcome in found.values())
    share = counts["killed"] / max(1, len(found))
    lines, fine = [], share >= MINIMUM and not counts["error"]
    for mutant in mutants:
        result = found[mutant.id].result
        if result == "survived":
            lines.append(f"survived    {mutant.id} ({mutant.file}): {mutant.reason or 'NO TEST NOTICES IT'}")
        if result == "error":
            lines.append(f"error       {mutant.id} ({mutant.file}): {found[mutant.id].by}")
        if result == "killed" and mutant.reason:
            lines.append(f"stale       {mutant.id} ({mutant.file}): killed, so it needs no reason any more")
        fine &= result == "error" or (result == "survived") == bool(mutant.reason)
    lines.append(f"{len(found)} mutants: {counts['killed']} killed, {counts['survived']} survived, "
                 f"{counts['error']} errors; killed {share:.1%}")  # fmt: skip
    return lines, fine


def main() -> int:
    arguments = _arguments()
    mutants = chosen(read_mutants(), arguments.only, arguments.shard)
    records = Records(RESULTS / "results.jsonl", arguments.again)
    found: dict[str, Outcome] = {}

    def report(mutant: Mutant, outcome: Outcome) -> None:
        found[mutant.id] = outcome
        place = f"{len(found):4}/{len(mutants)} {outcome.result:8} {outcome.seconds:6.1f} s"
        print(f"{place}  {mutant.id}  {outcome.by}", flush=True)

    os.environ.update(ENVIRONMENT)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends, too
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="growtx-mutants-") as directory:
        runners = [_runner(Path(directory, str(number)), records) for number in range(arguments.jobs)]
        known = {mutant.id: runners[0].known(mutant) for mutant in mutants}
        found |= {name: outcome for name, outcome in known.items() if outcome is not None}
        if len(found) < len(mutants):
            _import_libraries()
            run_all([mutant for mutant in mutants if mutant.id not in found], runners, report)
    lines, fine = summary(mutants, found)
    print(*lines, sep="\n")
    print(f"{time.monotonic() - begin:.0f} s; results in {RESULTS.relative_to(ROOT)}")
    return 0 if fine else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", action="append", default=[], metavar="GLOB", help="ids to run; may be repeated")
    parser.add_argument("--jobs", type=int, default=2, help="how many run at once, each in a copy of its own (2)")
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="the I-th of N parts of the list")
    parser.add_argument("--again", action="store_true", help="do not use earlier results")
    return parser.parse_args()


def _runner(directory: Path, records: Records) -> Runner:
    """A copy with its runner, after proving that the copy is what gets imported."""
    checkout = Checkout(directory)
    if Job(checkout, checkout.is_imported, RESULTS / "import.txt", 300.0).wait().result != "survived":
        raise SystemExit(f"{checkout.root} is not what Python imports; see {RESULTS / 'import.txt'}")
    return Runner(checkout, records, RESULTS)


def _import_libraries() -> None:
    """Once, so that each fork begins with them."""
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):  # an optional one: its tests skip themselves
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # pytest collects garbage at its end, and need not walk through all that was imported here


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _digest(parts: Sequence[str]) -> str:
    return hashlib.blake2b("\0".join(parts).encode(errors="replace"), digest_size=8).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
