"""Ten thousand damaged files through the readers: each is read, refused in one sentence, or skipped with a note.

One case alone: `python tests/fuzz/worker.py "masks" 17`, which keeps its files with FUZZ_KEEP=1.
"""

import collections
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
    "images of 8 bits": 3800,
    "images of 16 bits": 900,
    "images of floats": 700,
    "masks": 1300,
    "vector masks": 1000,
    "label lists": 400,
    "archives": 700,
    "published sets": 200,
    "weights": 1000,
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
        except (queue.Empty, BrokenPipeError):
            return None

    def close(self) -> int:
        """Ends the process; its exit status."""
        self.process.kill()
        status = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
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
            hangs, begun = worker.process.poll() is None, None
            status = worker.close()
            if len(batch) > 1:
                waiting += [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
            elif answer is None:
                how = f"hung for {PATIENCE:.0f} s" if hangs else f"ended its process ({status})"
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
