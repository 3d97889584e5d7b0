"""Training on several processes is training on one."""

import json
import os
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from samo_jax.experiments.benchmarks.checkpoints import CHECKPOINTS
from samo_jax.experiments.benchmarks.devices import everywhere, join, split

import small_runs

METHOD = "famo+samo"
RUN = ["--methods", METHOD, "--epochs", 4, "--seeds", 1, "--checkpoint-every", 0]


@pytest.fixture
def quick():
    """Little time for compiling."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def start(count, devices, args):
    """So many processes with so many devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = os.environ | {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_NUM_CPU_DEVICES": str(devices),
    }
    command = [sys.executable, small_runs.__file__, "digits", "--distributed"]
    return [
        subprocess.Popen(
            [*command, *map(str, args)],
            env=variables | {"JAX_PROCESS_ID": str(process)},
            stdout=subprocess.PIPE,
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


@pytest.mark.usefixtures("quick")
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
    spread = split(benchmark, devices)
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
        split(small_runs.small_digits("test"), everywhere())


def test_processes_have_numbers(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(SystemExit, match="JAX_NUM_PROCESSES: must be a non-negative"):
        join()
