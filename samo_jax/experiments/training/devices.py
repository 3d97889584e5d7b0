"""Devices: where arrays are in training, on one or on all of several processes."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from samo_jax.experiments.problems.benchmark import Benchmark, Data, Examples
from samo_jax.experiments.training.rendezvous import at_most, meet

T = TypeVar("T")

_AXIS = "examples"


class Devices(NamedTuple):
    """Devices, as a trainer must know them.

    Attributes:
        replicated: sharding of what all devices have; None: one device's.
        replicate: a pytree's arrays, the same in all processes, to all devices.
        shard: a batch, the same in all processes, over the devices by examples.
        gather: a pytree, of whatever sharding, to all devices.
    """

    replicated: NamedSharding | None
    replicate: Callable[[Any], Any]
    shard: Callable[[Examples], Examples]
    gather: Callable[[Any], Any]


ONE = Devices(None, jax.device_put, lambda batch: batch, lambda tree: tree)


def join(timeout: float) -> None:
    """Make this process one of several.

    JAX itself reads `JAX_COORDINATOR_ADDRESS`, and the rest from clusters it knows
    (SLURM, Open MPI, TPU pods, Kubernetes).

    Args:
        timeout: seconds in which all must have come.

    Raises:
        SystemExit: if it is not said which, or if another does not come.
    """
    count, process = _number("JAX_NUM_PROCESSES"), _number("JAX_PROCESS_ID")
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address and count and process is not None and process < count:
        meet(address, count, process, timeout)
    late = (
        f"--distributed: JAX has not connected the processes in {timeout:g} seconds: "
        f"one is missing, or the coordinator, {address or 'which the cluster names'}"
    )
    try:
        # Before XLA ends the process.
        with at_most(timeout, late):
            jax.distributed.initialize(
                num_processes=count,
                process_id=process,
                initialization_timeout=int(timeout) + 60,
            )
    except (ValueError, TypeError) as error:
        raise SystemExit(
            f"--distributed: {error} Set JAX_COORDINATOR_ADDRESS (HOST:PORT of process "
            "0), JAX_NUM_PROCESSES and JAX_PROCESS_ID, or start the processes in a "
            "cluster that JAX knows, such as SLURM"
        ) from None


def together(prepare: Callable[[], T]) -> T:
    """Value that each process prepares by itself; if one cannot, none goes on.

    Raises:
        SystemExit: in all processes if it is raised in one, so that none waits for it.
    """
    error = value = None
    try:
        value = prepare()
    except SystemExit as ended:
        error = ended
    except OSError as failure:
        error = SystemExit(f"{failure}")
    failed = np.array(error is not None)
    if jax.process_count() > 1:
        failed = np.asarray(multihost_utils.process_allgather(failed))
    if error is not None:
        raise error
    if failed.any():
        raise SystemExit(
            f"--distributed: process {np.flatnonzero(failed)[0]} has ended: it says why"
        )
    return cast(T, value)


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 9:
        raise SystemExit(f"{variable}: must be a non-negative integer, got {text!r}")
    return int(text)


def is_chief() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def everywhere() -> Devices:
    """All devices of all processes, on one axis."""
    mesh = Mesh(np.array(jax.devices()), (_AXIS,))
    replicated, by_example = NamedSharding(mesh, P()), NamedSharding(mesh, P(_AXIS))
    gather = jax.jit(lambda tree: tree, out_shardings=replicated)

    def placed(leaf: np.ndarray) -> jax.Array:
        whole = len(leaf) % mesh.size  # what is left at the end of an evaluation
        return jax.make_array_from_callback(
            leaf.shape, replicated if whole else by_example, lambda index: leaf[index]
        )

    return Devices(replicated, gather, partial(jax.tree.map, placed), gather)


class ShardedData(NamedTuple):
    """Data whose batches are shared out over devices.

    Attributes:
        data: data in every process.
        devices: devices of all processes.
    """

    data: Data
    devices: Devices

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return self.data.num_examples

    def only(self, tasks: Any) -> "ShardedData":
        """The data of these tasks alone."""
        return ShardedData(self.data.only(tasks), self.devices)

    def batches(
        self, batch_size: int, rng: np.random.Generator | None = None
    ) -> Iterator[Examples]:
        """The batches of one epoch."""
        return map(self.devices.shard, self.data.batches(batch_size, rng))

    def uniform(self) -> "ShardedData":
        """Data with batches of one shape."""
        return ShardedData(self.data.uniform(), self.devices)


def shard(benchmark: Benchmark, devices: Devices) -> Benchmark:
    """The benchmark with data that are shared out, in batches that can be.

    Raises:
        SystemExit: if those of training cannot.
    """
    count, size = jax.device_count(), benchmark.batch_size
    if size % count:
        raise SystemExit(
            f"--distributed: {count} devices cannot share batches of {size} examples "
            f"equally: take a number of devices that divides {size}"
        )
    return benchmark._replace(
        train=ShardedData(benchmark.train, devices),
        evaluation=ShardedData(benchmark.evaluation, devices),
        evaluation_batch_size=-(-benchmark.evaluation_batch_size // count) * count,
    )
