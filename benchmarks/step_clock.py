"""The clock of step.py and price.py: compiled functions that are timed in turns."""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from step_methods import Method, make_step
from step_models import Model


@dataclass
class Timed:
    """A compiled function, its arguments, and what it took."""

    call: Callable[[], Any]
    seconds: list[float]
    compile_seconds: float = 0.0
    temporary_bytes: float = np.nan

    @property
    def milliseconds(self) -> float:
        """Median time of a call."""
        return 1e3 * statistics.median(self.seconds)

    def run(self) -> None:
        """One more call."""
        start = time.perf_counter()
        jax.block_until_ready(self.call())
        self.seconds.append(time.perf_counter() - start)


def compiled(function: Callable, *args: Any, warm_up: bool = False) -> Timed:
    """Compile for these arguments; to warm up, the results take their place."""
    start = time.perf_counter()
    executable = jax.jit(function).lower(*args).compile()
    seconds = time.perf_counter() - start
    memory = executable.memory_analysis()
    temporary = np.nan if memory is None else memory.temp_size_in_bytes
    if warm_up:
        results = executable(*args)
        args = (*results, *args[len(results) :])
    return Timed(partial(executable, *args), [], seconds, temporary)


def training_step(model: Model, method: Method, unroll: Any) -> Timed:
    """The method's whole step, compiled."""
    # The second step is timed: memory is then full.
    step, state = make_step(model, method, unroll)
    return compiled(step, model.params, state, model.data, warm_up=True)


def take_turns(everything: list[Timed], rounds: int) -> None:
    """Time all in every round, in another order each, after one that does not count.

    So none always runs after PyTorch, whose threads stay busy for a while.
    """
    order = random.Random(0)
    for timed in everything:
        timed.run()
        timed.seconds.clear()
    for _ in range(rounds):
        for timed in order.sample(everything, len(everything)):
            timed.run()
