"""Ten thousand damaged files through the readers: each is read, refused in one sentence, or skipped with a note.

One case alone: `python tests/fuzz/worker.py "masks" 17`, which keeps its files with FUZZ_KEEP=1.
"""

import collections
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("worker.py")
OUTCOMES = ("read", "refused in one sentence", "skipped with a note")
ALL = {
    "images of 8 bits": 2600,
    "images of 16 bits": 900,
    "images of floats": 700,
    "masks": 1300,
    "vector masks": 1000,
    "group tables": 500,
    "label lists": 400,
    "archives": 700,
    "published sets": 200,
    "weights": 1000,
    "run folders": 150,
    "configurations": 550,
}
SLOW = ("published sets", "run folders")  # of which a case takes a second
TOGETHER = 40  # cases of a batch
PATIENCE = 60.0  # seconds for a case, on a machine that has other work
ROOM = 3 << 29  # bytes; see worker.py


class Worker:
    """A process that runs cases; its log is what the libraries print."""

    def __init__(self, folder: Path):
        environment = os.environ | {"FUZZ_DIR": str(folder), "XLA_FLAGS": ""}
        self.log = folder / "worker.log"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([sys.executable, str(WORKER)], **pipes, stderr=log, env=environment)
        self.answers: queue.Queue = queue.Queue()
        self.hangs = False
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(json.loads(line))
        self.answers.put(None)

    def ask(self, reader: str, cases: list[int], patience: float) -> dict | None:
        """The answer, or None where the process has died or takes too long; without cases, its memory so far."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([reader, cases]).encode() + b"\n")
            self.process.stdin.flush()
            return self.answers.get(timeout=patience)
        except BrokenPipeError:
            return None
        except queue.Empty:
            self.hangs = True
            return None

    def close(self) -> int:
        """Ends the process; its exit status."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()  # by which it ends
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(0 if self.hangs else 20)
        self.process.kill()
        status = self.process.wait()
        self.process.stdout.close()
        return status


def run(counts: dict[str, int], folder: Path) -> dict[str, dict[int, tuple[str, str]]]:
    """The outcome of every case; of a batch that ends its process, those of its cases alone."""
    found, worker = {reader: {} for reader in counts}, Worker(folder)
    for reader, count in counts.items():
        begun, waiting = None, [list(range(i, min(i + TOGETHER, count))) for i in range(0, count, TOGETHER)]
        while waiting:
            if begun is None:
                answer = worker.ask(reader, [], 300)
                assert answer is not None, f"{reader} does not start: {worker.log.read_bytes()[-2000:]!r}"
                begun = answer["peak"]
            batch = waiting.pop()
            answer = worker.ask(reader, batch, PATIENCE if len(batch) == 1 else 3 * PATIENCE)
            grown = 0 if answer is None else answer["peak"] - begun
            if answer is not None and grown <= ROOM:
                found[reader] |= {int(case): tuple(outcome) for case, outcome in answer["found"].items()}
                continue
            status, begun = worker.close(), None
            if len(batch) > 1:
                waiting += [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
            elif answer is None:
                how = f"hung for {PATIENCE:.0f} s" if worker.hangs else f"ended its process ({status})"
                found[reader][batch[0]] = "FAULT", f"{how}: {worker.log.read_bytes()[-500:]!r}"
            else:
                found[reader][batch[0]] = "FAULT", f"took {grown / 2**30:.1f} GiB"
            worker = Worker(folder)
    worker.close()
    return found


def table(found: dict[str, dict[int, tuple[str, str]]], seconds: float) -> str:
    names = [*OUTCOMES, "FAULT"]
    lines = [f"{'reader':<20}{'cases':>7}" + "".join(f"{name:>26}" for name in names)]
    sums = collections.Counter()
    for reader, outcomes in found.items():
        counts = collections.Counter(outcome for outcome, _ in outcomes.values())
        sums += counts
        lines.append(f"{reader:<20}{len(outcomes):>7}" + "".join(f"{counts[name]:>26}" for name in names))
    lines.append(f"{'all':<20}{sums.total():>7}" + "".join(f"{sums[name]:>26}" for name in names))
    return "\n".join([*lines, f"in {seconds:.0f} s"])


linux = pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")


def check(counts: dict[str, int], folder: Path) -> None:
    began = time.monotonic()
    found = run(counts, folder)
    print("\n" + table(found, time.monotonic() - began))
    assert {reader: len(outcomes) for reader, outcomes in found.items()} == counts
    for reader, outcomes in found.items():  # some damage leaves a file readable: a reader of none is not tested
        assert counts[reader] < 100 or any(outcome == "read" for outcome, _ in outcomes.values()), (
            f"{reader} reads none"
        )
    faults = [
        f'python tests/fuzz/worker.py "{reader}" {case}: {words}'
        for reader, outcomes in found.items()
        for case, (outcome, words) in sorted(outcomes.items())
        if outcome not in OUTCOMES
    ]
    assert not faults, "\n".join([f"{len(faults)} faults", *faults[:200]])


@linux
@pytest.mark.slow
def test_ten_thousand_damaged_files(tmp_path, capsys):
    assert sum(ALL.values()) == 10_000
    with capsys.disabled():
        check(ALL, tmp_path)


@linux
def test_some_damaged_files(tmp_path):
    check({reader: max(5, count // 50) for reader, count in ALL.items() if reader not in SLOW}, tmp_path)


STAND_IN = """
import json, os, sys, time
for line in sys.stdin:
    _, cases = json.loads(line)
    if 2 in cases:
        os.abort()
    if 3 in cases:
        time.sleep(100)
    found = {case: ["FAULT", "as it says"] if case == 5 else ["read", ""] for case in cases}
    print(json.dumps({"found": found, "peak": 2**31 if 4 in cases else 0}), flush=True)
"""


def test_a_crash_a_hang_and_hunger_are_found_and_named(tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text(STAND_IN)
    monkeypatch.setitem(globals(), "WORKER", tmp_path / "worker.py")
    monkeypatch.setitem(globals(), "PATIENCE", 2.0)
    found = run({"masks": 8}, tmp_path)["masks"]
    assert sorted(found) == list(range(8))
    assert {case: words.partition(":")[0] for case, (outcome, words) in found.items() if outcome == "FAULT"} == {
        2: "ended its process (-6)",
        3: "hung for 2 s",
        4: "took 2.0 GiB",
        5: "as it says",
    }
    with pytest.raises(AssertionError, match=r'4 faults\n.*worker\.py "masks" 2: ended its process'):
        check({"masks": 8}, tmp_path)
