"""Processes meet before JAX connects them.

XLA ends a process that waits for another in vain with the stack of its C++ code, and
does not say for whom it waited.
"""

import os
import re
import selectors
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from threading import Timer
from typing import cast

_ALL = b"all"
_MOST_NAMED = 10
_SLACK = 5.0  # seconds, for the answer of process 0


def meet(address: str, count: int, process: int, timeout: float) -> None:
    """Return when all processes are there.

    Process 0 listens at the address that JAX's coordinator will have; the others tell
    it their numbers, and wait for its answer.

    Args:
        address: HOST:PORT of process 0.
        count: number of processes.
        process: the number of this one.
        timeout: timeout in seconds.

    Raises:
        SystemExit: in one line that says who was missing, in each process.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise SystemExit(
            f"JAX_COORDINATOR_ADDRESS: must be HOST:PORT of process 0, got {address!r}"
        )
    deadline = time.monotonic() + timeout
    if process:
        missing = _ask(host.strip("[]"), int(port), process, deadline, timeout)
    else:
        missing = _gather(int(port), count, deadline)
    if missing:
        raise SystemExit(
            f"--distributed: process {process} of {count} has waited {timeout:g} "
            f"seconds for {missing}. Start it, or wait longer: --join-timeout SECONDS"
        )


def _gather(port: int, count: int, deadline: float) -> str:
    """The processes that have not come to process 0."""
    arrived: dict[socket.socket, int] = {}
    missing = set(range(1, count))
    with ExitStack() as connections:
        with _listening(port) as server, selectors.DefaultSelector() as selector:
            selector.register(server, selectors.EVENT_READ)
            while missing and (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    if key.fileobj is server:
                        connection = connections.enter_context(server.accept()[0])
                        selector.register(connection, selectors.EVENT_READ)
                        continue
                    connection = cast(socket.socket, key.fileobj)
                    number = _number(connection)
                    if number in range(1, count):
                        arrived[connection] = number
                    else:  # it has ended, or is none of us
                        selector.unregister(connection)
                        arrived.pop(connection, None)
                        connection.close()
                missing = set(range(1, count)) - set(arrived.values())
        # The port is JAX's from here.
        text = _named(sorted(missing))
        for connection in arrived:
            with suppress(OSError):
                connection.sendall(text.encode() or _ALL)
    return text


def _ask(host: str, port: int, process: int, deadline: float, timeout: float) -> str:
    """The processes that were waited for in vain, process 0 included."""
    reason: Exception | str = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), left) as connection:
                connection.sendall(f"process {process}".encode())
                connection.settimeout(timeout + _SLACK)
                answer = connection.recv(1000)
        except OSError as error:
            reason = error
        else:
            if answer == _ALL:
                return ""
            if re.fullmatch(rb"process(es)? [\d, ]+( and \d+ more)?", answer):
                return answer.decode()
            reason = "something else answers there" if answer else "it has ended"
        time.sleep(min(0.1, left))
    return f"process 0 at {host}:{port} ({reason})"


def _listening(port: int) -> socket.socket:
    """A socket on all addresses of this machine."""
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", port),
            family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both,
        )
    except OSError as error:
        raise SystemExit(
            f"--distributed: process 0 cannot listen on port {port}: {error}. Give "
            "JAX_COORDINATOR_ADDRESS another one"
        ) from None


def _number(connection: socket.socket) -> int:
    """The process at the other end; 0 if it has ended, or says something else."""
    try:
        said = re.fullmatch(rb"process (\d{1,9})", connection.recv(1000))
    except OSError:
        return 0
    return int(said[1]) if said else 0


def _named(processes: list[int]) -> str:
    """The processes of a list in words, the first few of many.

    >>> _named([]), _named([3]), _named([1, 2])
    ('', 'process 3', 'processes 1, 2')
    """
    if not processes:
        return ""
    names = ", ".join(map(str, processes[:_MOST_NAMED]))
    more = len(processes) - _MOST_NAMED
    plural = "es" if len(processes) > 1 else ""
    return f"process{plural} {names}" + (f" and {more} more" if more > 0 else "")


@contextmanager
def at_most(timeout: float, message: str) -> Iterator[None]:
    """End this process with a line if this takes longer, in whatever code it is."""

    def end():
        print(message, file=sys.stderr, flush=True)
        os._exit(1)

    timer = Timer(timeout, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
