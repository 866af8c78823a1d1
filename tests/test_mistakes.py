"""What `python main.py` answers to a command that cannot be run, and to a run that cannot go on."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Answers many command lines one after the other, each in a fork of a process that has imported main.py.
ANSWERS = """
import json, os, sys
from types import SimpleNamespace
import jax, main
from absl import app
from grass_jax.rendezvous import NotMetError
from grass_jax.stopping import Stopped

def fails(error):
    def fail(*_, **__):
        raise error
    return fail

codes = []
for arguments, broken, log in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY), 2)
        sys.argv = ["main.py", *arguments]
        exec(broken)
        app.run(main.main, flags_parser=main.parse)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
"""


def answers(cases: list[tuple[list[str], str]], folder: Path) -> list[tuple[int, str]]:
    """Exit code and standard error of main.py for command lines, each with code that breaks something before it."""
    logs = [str(folder / f"log{number}") for number in range(len(cases))]
    given = json.dumps([[*case, log] for case, log in zip(cases, logs, strict=True)])
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", ANSWERS, given], cwd=ROOT, env=environment, stdout=subprocess.PIPE, timeout=300
    )
    return list(zip(json.loads(done.stdout), (Path(log).read_text() for log in logs), strict=True))


FOLDER = ["--config=configs/gs.py:folder"]
SEGMENT, PREDICT = ["--config=configs/segment.py:folder"], ["--config=configs/predict.py"]
MISTAKES = [
    ([*FOLDER, "--config.batch_size=0"], "config.batch_size must be a whole number of at least 2, not 0."),
    ([*FOLDER, "--config.batch_size=abc"], "config.batch_size must be a whole number, not 'abc'."),
    ([*FOLDER, "--config.batch_size=16.5"], "config.batch_size must be a whole number, not '16.5'."),
    ([*FOLDER, "--config.gs.epochs", "ten: 10"], "config.gs.epochs must be a number, not 'ten: 10'."),
    ([*FOLDER, "--config.log.tensorboard=yes"], "config.log.tensorboard must be True or False, not 'yes'."),
    ([*FOLDER, "--processes=two"], "processes must be a whole number, not 'two'."),
    (
        [*FOLDER, "--config.data.path=/nowhere"],
        "config.data.path must be a folder of images, given with --config.data.path=FOLDER, and there is no /nowhere.",
    ),
    (
        [*FOLDER, "--config.gs.steps=3"],
        "config.gs.steps is not a key of the configuration; config.gs has the keys epochs, step.",
    ),
    (
        [*SEGMENT, "--config.finetune.epochs=3"],
        "config.finetune.epochs is not a key of the configuration; config.finetune has the key steps.",
    ),
    (
        [*FOLDER, "--noconfig.schedule.restrat"],
        "config.schedule.restrat is not a key of the configuration; did you mean config.schedule.restart?",
    ),
    (
        [*SEGMENT, "--config.model=runs/gs_x"],
        "config.model is a section of keys and must not be 'runs/gs_x': a pretraining run is given with "
        "--config.init=RUN.",
    ),
    (
        [*PREDICT, "--config.init=runs/gs_x"],
        "config.init is not a key of the configuration; the run to use is given with --config.model=RUN.",
    ),
    (["--config=configs/none.py:folder"], "There is no config configs/none.py: give one of configs/compare.py, "),
    (["--config=configs/labelled.py"], "configs/labelled.py is no config: it has no function get_config."),
    (["--config", "configs/gs:folder"], "There is no config configs/gs: give one of "),
    (["--config=configs/gs.py:huge"], "configs/gs.py has the presets sample, folder, "),
    ([*FOLDER, "--data.path=/tmp"], "--data.path is no flag: did you mean --config.data.path?"),
    ([*FOLDER, "--workdr=/tmp"], "Unknown command line flag 'workdr'. Did you mean: workdir ?"),
    ([*FOLDER, "config.batch_size=4"], "'config.batch_size=4' is no flag: settings are given as --config.KEY=VALUE."),
    ([*FOLDER, "--config.data.path=grass_jax", "--processes=2"], "--coordinator"),
    (
        [*SEGMENT, "--config.data.path=grass_jax", "--config.data.classes=field,forest"],
        "config.data.classes must name two classes or more, not 1: "
        "--config.data.classes=\"('field','forest','town')\".",
    ),
]


def test_a_mistake_is_answered_before_any_work(tmp_path):
    cases = [([*arguments, f"--workdir={tmp_path / 'run'}"], "") for arguments, _ in MISTAKES]
    for (_, words), (code, said) in zip(MISTAKES, answers(cases, tmp_path), strict=True):
        (line,) = said.strip().splitlines()
        assert line.startswith("grass_jax: ")
        assert words in line
        assert code == 1
    assert not (tmp_path / "run").exists()


def test_what_ends_a_run_is_told_by_its_code_and_one_sentence(tmp_path):
    """Others that are late ask for another start; too little memory for another batch; the rest keeps its traceback."""
    late = "main.sharding.initialize = fails(NotMetError('nobody came.'))"
    closed = "sys.stderr = SimpleNamespace(write=fails(OSError('Input/output error')), flush=lambda: None)"
    breaks = "main.TASKS[{!r}] = fails(jax.errors.JaxRuntimeError({!r}))"
    full = "RESOURCE_EXHAUSTED: Out of memory\nallocating 9 bytes."
    advice = "--dry_run says the largest config.batch_size that fits, and config.micro_batches=8 keeps"
    cases = [
        (["--config=configs/gs.py"], late),
        (["--config=configs/gs.py", "--config.micro_batches=2"], breaks.format("pretrain", full)),
        (["--config=configs/segment.py"], breaks.format("segment", full)),
        (["--config=configs/segment.py"], breaks.format("segment", "INTERNAL: a fault")),
        (["--config=configs/gs.py"], f"{closed}; main.TASKS['pretrain'] = fails(Stopped(7, 1))"),
    ]
    cases = [([*arguments, f"--workdir={tmp_path}"], broken) for arguments, broken in cases]
    codes, (nobody, micro, smaller, trace, _) = zip(*answers(cases, tmp_path), strict=True)
    assert codes == (134, 1, 1, 1, 75)
    assert nobody == "grass_jax: nobody came.\n"
    for said, words in ((micro, advice), (smaller, "lower batch_size")):
        (line,) = said.splitlines()
        assert line.startswith("grass_jax: the device's memory is too small")
        assert line.endswith("(RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.).")
        assert words in line
    assert trace.startswith("Traceback")
    assert "INTERNAL: a fault" in trace
