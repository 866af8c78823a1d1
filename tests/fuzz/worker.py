"""Runs cases in a process of its own, so that a crash or a hang is an outcome, too: `worker.py READER CASE ...`.

Without cases it takes lines of JSON, [reader, [case, ...]], and answers each with one, {case: [outcome, words]}.
"""

import contextlib
import json
import os
import resource
import shutil
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["MALLOC_ARENA_MAX"] = "2"  # each arena of a thread takes 64 MB of addresses
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
ROOM = 3 << 29  # 1.5 GiB above what the process has before the first case


def readers() -> dict:
    """The readers by name."""
    import cases
    import parents
    import trained

    return {
        "images of 8 bits": cases.images(parents.colour),
        "images of 16 bits": cases.images(parents.deep),
        "images of floats": cases.images(parents.real_numbers),
        "masks": cases.masks,
        "vector masks": cases.vectors,
        "group tables": cases.tables,
        "label lists": cases.label_lists,
        "archives": cases.archive_members,
        "published sets": cases.published,
        "weights": trained.weights,
        "run folders": trained.runs,
        "configurations": trained.configs,
    }


def run(reader: str, numbers: list[int], notes) -> dict[int, tuple[str, str]]:
    """Runs cases together; where that fails, one by one, so that each has its own outcome."""
    home = Path(tempfile.mkdtemp(prefix="fuzz-", dir=os.environ.get("FUZZ_DIR")))
    canary = home / "here"
    canary.mkdir()
    os.chdir(canary)  # where harmful code would leave its mark
    notes.take()
    try:
        found = readers()[reader](home, reader, numbers, notes)
    except Exception:
        if len(numbers) > 1:
            return {key: value for number in numbers for key, value in run(reader, [number], notes).items()}
        found = {numbers[0]: ("FAULT", " / ".join(traceback.format_exc().splitlines()[-7:])[:1500])}
    if any(canary.iterdir()):
        if len(numbers) > 1:
            return {key: value for number in numbers for key, value in run(reader, [number], notes).items()}
        found = {numbers[0]: ("FAULT", "code out of the file was executed")}
    os.chdir("/")
    if os.environ.get("FUZZ_KEEP"):
        print("kept in", home, file=sys.stderr)
    else:
        shutil.rmtree(home, ignore_errors=True)
    return found


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Answers on the original standard output, so that nothing that the libraries print gets in between."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    from cases import Notes

    notes = Notes()
    if len(sys.argv) > 2:
        found = run(sys.argv[1], [int(case) for case in sys.argv[2:]], notes)
        print(json.dumps(found, indent=1), file=answers)
        return
    for line in sys.stdin:
        reader, numbers = json.loads(line)
        if numbers == []:  # imports what the reader needs, and then limits what it may take
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            with contextlib.suppress(Exception):
                run(reader, [-1 % 2**32], notes)
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * os.sysconf("SC_PAGE_SIZE") + ROOM
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
            print(json.dumps({"peak": peak()}), file=answers, flush=True)
            continue
        print(json.dumps({"found": run(reader, numbers, notes), "peak": peak()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
