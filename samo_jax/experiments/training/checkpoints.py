"""Checkpoints: the state of training, saved as it goes on, to survive the process."""

import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from samo_jax.experiments.training.devices import is_chief
from samo_jax.experiments.training.folders import inside

CHECKPOINTS = "checkpoints"


class Checkpoint:
    """Checkpoint of one network in training: only the last complete one is kept."""

    def __init__(self, folder: Path, clock: "Clock", keeps_end: bool = False):
        """Prepare to write; nothing is written yet.

        Args:
            folder: folder of this network alone.
            clock: says when to save.
            keeps_end: whether to save at the end of training, whatever the clock says.
        """
        self._folder = folder.absolute()  # Orbax requires it
        self._clock, self._keeps_end = clock, keeps_end

    def due(self, ended: bool) -> bool:
        """Whether to save after this epoch."""
        return self._clock.due() or (ended and self._keeps_end)

    def save(self, epoch: int, arrays: Any, record: dict[str, Any]) -> None:
        """Write the state after an epoch in one piece, then drop that before it.

        Of several processes the first writes.

        Args:
            epoch: greater than the last.
            arrays: a pytree.
            record: record that JSON can hold.

        Raises:
            OSError: if it cannot be written; the one before it is still there.
        """
        if not is_chief():
            return
        named = {name: leaf for name, leaf in _named(arrays).items() if leaf.size}
        document = {"record": record, "digest": _digest(named, record)}
        items = ocp.args.Composite(
            arrays=ocp.args.StandardSave(named), document=ocp.args.JsonSave(document)
        )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with _quiet(), self._manager() as manager:
                manager.save(epoch, args=items)
        except ValueError as error:
            code = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's
            if code is None:
                raise
            number = int(code[1])
            raise OSError(number, os.strerror(number), str(self._folder)) from error
        self._clock.restart()

    def load(
        self,
        like: Callable[[], Any],
        read: Callable[[dict[str, Any]], Any] = lambda record: record,
    ) -> tuple[Any, Any] | None:
        """The last complete `(arrays, record)`, on the host; None if there is none.

        Args:
            like: gives a pytree of the structure, shapes and dtypes of what was saved.
            read: function that makes the result of the record, or raises.

        Raises:
            SystemExit: if it is damaged, or of another structure.
        """
        if not self._folder.is_dir():
            return None
        with _quiet(), self._manager() as manager:
            epoch = manager.latest_step()
            if epoch is None:
                return None
            items = ocp.args.Composite(
                arrays=ocp.args.StandardRestore(), document=ocp.args.JsonRestore()
            )
            try:
                saved = manager.restore(epoch, args=items)
                named, record = saved.arrays, saved.document["record"]
                if _digest(named, record) != saved.document["digest"]:
                    raise ValueError("its content is not what was saved")
                return _unnamed(named, like()), read(record)
            except Exception as error:  # of many kinds, as the damage
                raise SystemExit(
                    f"--resume: {self._folder / str(epoch)} cannot be read "
                    f"({error!r:.200}): delete it to train this network from scratch"
                ) from error

    def _manager(self) -> ocp.CheckpointManager:
        # Each process by itself.
        process = jax.process_index()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1,
            create=False,
            enable_async_checkpointing=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=process, active_processes={process}
            ),
        )
        return ocp.CheckpointManager(self._folder, options=options)


class Checkpoints:
    """Checkpoints of a run folder: of the runs in progress, and of finished ones."""

    def __init__(self, folder: Path, every: float, keeps_finished: bool = True):
        """Prepare to write; nothing is written yet.

        Args:
            folder: folder of the run.
            every: seconds between two.
            keeps_finished: whether those of finished runs stay, which can then be
                lengthened.
        """
        self._folder, self._clock = folder, Clock(every)
        self._keeps_finished = keeps_finished

    def of(self, method: str, seed: int, networks: int) -> list[Checkpoint]:
        """The checkpoints of a run's networks, which are trained one after another."""
        return [
            Checkpoint(
                self._run(method, seed) / str(network),
                self._clock,
                keeps_end=self._keeps_finished or network < networks - 1,
            )
            for network in range(networks)
        ]

    def exist(self, method: str, seed: int) -> bool:
        """Whether there are any of a run."""
        return self._run(method, seed).is_dir()

    def finished(self, method: str, seed: int) -> None:
        """Remove the checkpoints of a finished run, unless they stay."""
        folder = self._run(method, seed)
        if folder.exists() and not self._keeps_finished:
            shutil.rmtree(folder)
            for parent in (folder.parent, folder.parent.parent):
                if not any(parent.iterdir()):
                    parent.rmdir()

    def _run(self, method: str, seed: int) -> Path:
        return inside(self._folder, CHECKPOINTS, method, f"seed{seed}")


class Clock:
    """Clock that says when it is time."""

    def __init__(self, every: float):
        """Begin.

        Args:
            every: seconds.
        """
        self._every = every
        self.restart()

    def due(self) -> bool:
        """Whether the time is over, in all processes or in none."""
        due = np.array(time.monotonic() - self._start >= self._every)
        return bool(multihost_utils.broadcast_one_to_all(due))

    def restart(self) -> None:
        """Begin again."""
        self._start = time.monotonic()


def _named(arrays: Any) -> dict[str, np.ndarray]:
    """The leaves by their paths; of typed keys, their data."""
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(
            jax.random.key_data(leaf) if _is_key(leaf) else leaf
        )
        for path, leaf in leaves
    }


def _unnamed(saved: dict[str, np.ndarray], like: Any) -> Any:
    """The pytree of the leaves; empty ones are not saved."""
    expected = _named(like)
    saved = {name: leaf for name, leaf in expected.items() if not leaf.size} | saved
    if _types(saved) != _types(expected):
        raise ValueError("it is of another network or optimiser")
    return jax.tree.unflatten(
        jax.tree.structure(like),
        [
            jax.random.wrap_key_data(
                jnp.asarray(saved[name]), impl=jax.random.key_impl(leaf)
            )
            if _is_key(leaf)
            else saved[name]
            for name, leaf in zip(expected, jax.tree.leaves(like), strict=True)
        ],
    )


def _types(leaves: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: (leaf.shape, leaf.dtype) for name, leaf in leaves.items()}


def _digest(leaves: dict[str, np.ndarray], record: dict[str, Any]) -> str:
    """Digest of all content: not every damage makes a file unreadable."""
    digest = hashlib.sha256(json.dumps(record).encode())
    for name in sorted(leaves):
        digest.update(name.encode() + leaves[name].tobytes())
    return digest.hexdigest()


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Errors are raised: no logs of them by Orbax, no late answers of TensorStore."""
    logger, hook = logging.getLogger("absl"), sys.unraisablehook
    level = logger.level

    def heard(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = heard
    try:
        yield
        sys.unraisablehook = hook  # not after an error: the answers come later
    finally:
        logger.setLevel(level)
