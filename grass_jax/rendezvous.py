"""Processes started by hand meet before JAX does: what is wrong with one of them is then a sentence in all of them.

JAX's own service ends a process that finds no coordinator, or waits for one that never comes, with a stack trace and an
abort that no Python code can catch. Here process 0 listens at the coordinator's port until every number has come once.
"""

import os
import socket
import time

from grass_jax.config import ConfigError

GREETING = "grass_jax"
LATE = "grass_jax_late"  # begins what process 0 says where somebody has not come
GO = "go"
PAUSE = 0.2  # seconds between two tries to reach process 0
ANSWER = 2.0  # seconds that a stranger at the port is listened to


class NotMetError(ConfigError):
    """The processes of a job have not met in time: to be tried again, as a machine that takes a place may be late."""


def meet(coordinator: str, processes: int, process: int, *, seconds: float) -> None:
    """Returns in every process when all of them have come.

    Args:
        coordinator: host:port of process 0.
        processes: their number.
        process: number of this one.
        seconds: how long to wait for the others.

    Raises:
        NotMetError: in one sentence, the same in every process that has come: a number is missing, or the address
            cannot be reached.
        ConfigError: likewise: a number is doubled or out of range, counts differ, or the port is taken.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"--coordinator must be HOST:PORT of the first process, not {coordinator!r}.")
    if not 0 <= process < processes:
        raise ConfigError(f"--process must be from 0 to {processes - 1}, as --processes is {processes}, not {process}.")
    if processes == 1:
        return
    if process:
        _visit(host.strip("[]"), int(port), f"{GREETING} {processes} {process}", seconds)
    else:
        _receive(int(port), processes, seconds)


def _visit(host: str, port: int, greeting: str, seconds: float) -> None:
    end, why = time.monotonic() + seconds, "no answer"
    while (left := end - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=min(left, ANSWER)) as line:
                line.sendall(f"{greeting}\n".encode())
                line.settimeout(left + ANSWER)  # process 0 speaks at the end of its own time, which may be later
                answer = _read_line(line)
        except OSError as error:
            why, answer = error.strerror or str(error), ""
        word, _, text = answer.partition(" ")
        if word == GREETING and text == GO:
            return
        if word in (GREETING, LATE):
            raise (ConfigError if word == GREETING else NotMetError)(text)
        time.sleep(PAUSE)  # not there yet, or a job that is about to end still holds the port
    raise NotMetError(
        f"Process 0 has not been reached at {host}:{port} within {seconds:.0f} s ({why}): start it, give its address "
        "as --coordinator to every process, and let the network pass that port."
    )


def _receive(port: int, processes: int, seconds: float) -> None:
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        door = socket.create_server(("", port), family=family, backlog=processes, dualstack_ipv6=dual)
    except OSError as error:
        raise ConfigError(
            f"Port {port} of --coordinator cannot be opened here ({os.strerror(error.errno or 0)}): another process 0 "
            "or another job may hold it; give every process its own --process, or all of them another port."
        ) from error
    lines: dict[int, socket.socket] = {}
    end, fault = time.monotonic() + seconds, None
    with door:
        while not fault and len(lines) < processes - 1:
            door.settimeout(max(0.01, end - time.monotonic()))
            try:
                line, _ = door.accept()
            except TimeoutError:
                missing = ", ".join(str(number) for number in range(1, processes) if number not in lines)
                fault = NotMetError(
                    f"Of {processes} processes, --process={missing} had not come after {seconds:.0f} s: start each "
                    f"number from 0 to {processes - 1} once, with --processes={processes}."
                )
                break
            fault = _admit(line, lines, processes)
            if len(lines) == processes - 1:
                for gone in [number for number, line in lines.items() if _has_gone(line)]:
                    lines.pop(gone).close()
        for line in lines.values():
            _say(line, fault)
    if fault:
        raise fault


def _admit(line: socket.socket, lines: dict[int, socket.socket], processes: int) -> ConfigError | None:
    """Adds who has come to `lines`; returns what is wrong with it, if anything."""
    line.settimeout(ANSWER)
    try:
        word, count, number = _read_line(line).split(" ")
        count, number = int(count), int(number)
    except (OSError, ValueError):
        word, count, number = "", 0, 0
    if word != GREETING:  # something else that knocks at ports
        line.close()
        return None
    fault = ""
    if count != processes:
        fault = f"Process {number} was started with --processes={count} and process 0 with {processes}: give the same."
    elif number in lines and not _has_gone(lines[number]):
        fault = f"Two processes were started with --process={number}: give each number from 0 to {processes - 1} once."
    if fault:
        _say(line, ConfigError(fault))
        return ConfigError(fault)
    if number in lines:
        lines[number].close()
    lines[number] = line
    return None


def _has_gone(line: socket.socket) -> bool:
    """Says whether the other end was closed, as that of a process that was killed and started again."""
    line.settimeout(0.01)
    try:
        return not line.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return False
    except OSError:
        return True


def _say(line: socket.socket, fault: ConfigError | None) -> None:
    word = LATE if isinstance(fault, NotMetError) else GREETING
    with line:
        try:
            line.settimeout(ANSWER)
            line.sendall(f"{word} {fault or GO}\n".encode())
        except OSError:
            pass  # it has gone; JAX's own service finds that out


def _read_line(line: socket.socket) -> str:
    """Reads up to a line feed, the end or a thousand bytes; what is not text comes back without meaning."""
    read = b""
    while not read.endswith(b"\n") and len(read) < 1000 and (more := line.recv(1000)):
        read += more
    return read.decode(errors="replace").strip()
