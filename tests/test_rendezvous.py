"""Processes started by hand find each other, or all say in one sentence what is wrong."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from grass_jax.config import ConfigError
from grass_jax.rendezvous import NotMetError, meet


@pytest.fixture
def address() -> str:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def outcomes(address: str, started: list[tuple[int, int]], *, seconds: float = 20.0) -> list[str]:
    """What becomes of processes started with these (--processes, --process); they are threads here."""

    def one(own: tuple[int, int]) -> str:
        try:
            meet(address, *own, seconds=seconds)
        except NotMetError as error:
            return f"late: {error}"
        except ConfigError as error:
            return str(error)
        return "met"

    with ThreadPoolExecutor(len(started)) as pool:
        return list(pool.map(one, started))


def test_all_numbers_meet_in_any_order(address):
    assert outcomes(address, [(4, 3), (4, 1), (4, 0), (4, 2)]) == ["met"] * 4
    assert outcomes(address, [(2, 0), (2, 1)]) == ["met"] * 2  # the port is free again


def test_what_is_missing_is_named_in_every_process(address):
    found = outcomes(address, [(4, 0), (4, 2)], seconds=1.0)
    assert found[0] == found[1]
    assert found[0].startswith("late: Of 4 processes, --process=1, 3 had not come after 1 s")


def test_a_number_given_twice_is_said_at_once(address):
    start = time.monotonic()
    found = outcomes(address, [(3, 0), (3, 1), (3, 1)], seconds=60.0)
    assert {text.split(":")[0] for text in found} == {"Two processes were started with --process=1"}
    assert time.monotonic() - start < 30


def test_two_first_processes_and_other_counts_are_refused(address):
    with socket.create_server(("", int(address.rpartition(":")[2]))):
        (found,) = outcomes(address, [(2, 0)])
        assert found.startswith("Port ")
        assert "another process 0" in found
    found = outcomes(address, [(2, 0), (3, 1)])
    assert found == ["Process 1 was started with --processes=3 and process 0 with 2: give the same."] * 2


@pytest.mark.parametrize("where", ["localhost", "no-such-host.invalid"])
def test_a_coordinator_that_is_not_there_is_named(address, where):
    port = address.rpartition(":")[2]
    (found,) = outcomes(f"{where}:{port}", [(2, 1)], seconds=0.5)
    assert found.startswith(f"late: Process 0 has not been reached at {where}:{port} within 0 s (")


def test_strangers_at_the_port_and_processes_that_were_restarted_do_no_harm(address):
    port = int(address.rpartition(":")[2])
    found: list[str] = []
    first = threading.Thread(target=lambda: found.extend(outcomes(address, [(3, 0)])))
    first.start()
    greetings = (b"GET / HTTP/1.1\r\n\r\n", b"\xff\xfe\n", b"grass_jax 3 1\n")  # the last one dies afterwards
    for greeting in greetings:
        while True:
            try:
                with socket.create_connection(("localhost", port), timeout=5) as line:
                    line.sendall(greeting)
                    time.sleep(0.2)
                break
            except ConnectionRefusedError:  # not yet open
                time.sleep(0.05)
    found += outcomes(address, [(3, 1), (3, 2)])
    first.join()
    assert found == ["met"] * 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("host", 2, 0), "--coordinator must be HOST:PORT"),
        (("host:port", 2, 0), "--coordinator must be HOST:PORT"),
        (("host:1234", 2, 2), "--process must be from 0 to 1"),
        (("host:1234", 2, -1), "--process must be from 0 to 1"),
        (("host:1234", 0, 0), "--process must be"),
    ],
)
def test_arguments_are_checked_first(arguments, words):
    with pytest.raises(ConfigError, match=words):
        meet(*arguments, seconds=60.0)
