"""Training on several processes is training on one."""

import json
import os
import socket
import subprocess
import sys
import time
from threading import Event, Thread

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from samo_jax.experiments.training.checkpoints import CHECKPOINTS
from samo_jax.experiments.training.devices import everywhere, join, shard
from samo_jax.experiments.training.rendezvous import at_most, meet

import small_runs

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
METHOD = "famo+samo"
RUN = ["--methods", METHOD, "--epochs", 4, "--seeds", 1, "--checkpoint-every", 0]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(count, devices, args, errors=None):
    """So many processes with so many devices each."""
    variables = os.environ | {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_NUM_CPU_DEVICES": str(devices),
    }
    command = [sys.executable, small_runs.__file__, "digits", "--distributed"]
    return [
        subprocess.Popen(
            [*command, *map(str, args)],
            env=variables | {"JAX_PROCESS_ID": str(process)},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        for process in range(count)
    ]


def stop(processes):
    for process in processes:
        process.kill()
        process.communicate()


def close(one, other):
    """Equal but for the order of sums."""
    jax.tree.map(
        lambda a, b: (
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
            if isinstance(a, float)
            else np.testing.assert_equal(a, b)
        ),
        one,
        other,
    )


def outcome(folder):
    [run] = json.loads((folder / "results.json").read_text())["runs"]
    del run["seconds_per_step"]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return run, list(map(json.loads, lines))


@pytest.mark.slow
def test_killed_on_four_processes_resumed_on_two(tmp_path):
    """The results are those of one process that nobody has killed."""
    one, many = tmp_path / "one", tmp_path / "many"
    four = start(4, 1, [*RUN, "--out", many])
    try:
        deadline = time.monotonic() + 300
        while not (many / CHECKPOINTS / METHOD / "seed0/0/1").exists():
            assert all(process.poll() is None for process in four)
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert not (many / "results.json").exists()
    finally:
        stop(four)
    two = start(2, 2, ["--resume", many])
    try:
        printed = [process.communicate(timeout=300)[0] for process in two]
    finally:
        stop(two)
    assert [process.returncode for process in two] == [0, 0]
    assert [METHOD in text for text in printed] == [True, False]
    assert small_runs.main("digits", *RUN, "--out", one) == 0
    assert {path.name for path in many.iterdir()} == (
        {path.name for path in one.iterdir()}
    )
    close(outcome(many), outcome(one))


def test_batches_are_split_by_examples():
    """And those that cannot be are on every device."""
    benchmark = small_runs.small_digits("test")._replace(batch_size=96)
    devices = everywhere()
    spread = shard(benchmark, devices)
    [*batches], [*expected] = (
        of.train.batches(96, np.random.default_rng(0)) for of in (spread, benchmark)
    )
    for batch, whole in zip(batches, expected, strict=True):
        assert batch.inputs.sharding.spec == P("examples")
        assert batch.inputs.addressable_shards[0].data.shape[0] == 12
        jax.tree.map(np.testing.assert_array_equal, batch, whole)
    assert spread.evaluation_batch_size == 504
    [*_, last] = spread.only(["left"]).evaluation.batches(96)
    assert last.num_examples == 4
    assert last.inputs.sharding.is_fully_replicated


def test_devices_share_equally():
    with pytest.raises(SystemExit, match="8 devices cannot share batches of 100 exam"):
        shard(small_runs.small_digits("test"), everywhere())


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("JAX_NUM_PROCESSES", "two", "JAX_NUM_PROCESSES: must be a non-negative"),
        ("JAX_PROCESS_ID", "9" * 5000, "JAX_PROCESS_ID: must be a non-negative"),
        ("JAX_COORDINATOR_ADDRESS", "here", "JAX_COORDINATOR_ADDRESS: must be HOST:"),
        ("JAX_COORDINATOR_ADDRESS", "a:99999", "JAX_COORDINATOR_ADDRESS: must be HOST"),
    ],
)
def test_variables_are_checked(monkeypatch, variable, value, message):
    for name, of in zip(VARIABLES, ("127.0.0.1:1", "2", "1"), strict=True):
        monkeypatch.setenv(name, of)
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit, match=message):
        join(0.1)


def meeting(count, present, timeout=0.5, before=lambda _port: None):
    """What each of the present processes comes to: None, or its last line."""
    address = f"127.0.0.1:{free_port()}"
    ends = {}

    def process(number):
        try:
            ends[number] = meet(address, count, number, timeout)
        except SystemExit as end:
            ends[number] = str(end)

    threads = [Thread(target=process, args=(number,)) for number in present]
    for thread in threads:
        thread.start()
    before(int(address.rpartition(":")[2]))
    for thread in threads:
        thread.join()
    return address, ends


@pytest.mark.slow
def test_processes_meet():
    """In any order, and whoever else calls at the port."""

    def others(port):
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"process 0", b"process 7", b""):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(said)
        for said in (b"process 2", b"process 2"):  # these two have come, and gone
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(said)

    _, ends = meeting(4, [3, 1, 2, 0], timeout=30)
    assert ends == dict.fromkeys(range(4))
    _, ends = meeting(4, [0, 1], before=lambda port: [time.sleep(0.1), others(port)])
    assert "for processes 2, 3." in ends[0]


def test_each_process_says_who_is_missing():
    _, ends = meeting(20, [0, 2, 5])
    missing = "processes 1, 3, 4, 6, 7, 8, 9, 10, 11, 12 and 7 more"
    for number in (0, 2, 5):
        assert ends[number] == (
            f"--distributed: process {number} of 20 has waited 0.5 seconds for "
            f"{missing}. Start it, or wait longer: --join-timeout SECONDS"
        )
    address, ends = meeting(2, [1], timeout=0.2)
    assert f"for process 0 at {address} (" in ends[1]
    assert "refused" in ends[1]


@pytest.mark.slow
def test_what_answers_in_place_of_process_0_is_not_repeated():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            with server.accept()[0] as connection:
                connection.sendall(b"\x1b[2Jprocess 1")

        thread = Thread(target=answer)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(SystemExit) as end:
            meet(address, 2, 1, 0.2)
        thread.join()
    assert f"for process 0 at {address} (" in str(end.value)
    assert str(end.value).isprintable()


def test_a_port_in_use_gets_one_line():
    with socket.create_server(("", free_port())) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(SystemExit, match="process 0 cannot listen on port"):
            meet(address, 2, 0, 0.1)


def test_no_code_waits_longer(monkeypatch, capfd):
    ended = Event()
    monkeypatch.setattr(os, "_exit", lambda status: [ended.set(), status])
    with at_most(0.01, "too long"):
        assert ended.wait(30)
    assert capfd.readouterr().err == "too long\n"
    with at_most(1000, "never"):
        pass


@pytest.mark.slow
def test_one_line_where_a_process_is_missing(tmp_path):
    """No stack of other code, and no folder."""
    args = [*RUN, "--out", tmp_path / "out", "--join-timeout", 1]
    first, second = start(2, 1, args, subprocess.PIPE)
    second.kill()
    try:
        printed, error = first.communicate(timeout=300)
    finally:
        stop([first, second])
    assert (first.returncode, printed) == (1, "")
    assert error == (
        "--distributed: process 0 of 2 has waited 1 seconds for process 1. Start it, "
        "or wait longer: --join-timeout SECONDS\n"
    )
    assert not (tmp_path / "out").exists()
