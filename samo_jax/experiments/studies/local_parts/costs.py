"""Costs of one training step: passes, memory and time."""

import time
from typing import Any, NamedTuple

import jax

from samo_jax.experiments.studies.local_parts.methods import KNOWN
from samo_jax.experiments.training.trainer import Trainer


class Cost(NamedTuple):
    """Cost of one step.

    Attributes:
        units: cost in forward passes; a backward pass is two. None: not known.
        temporary_bytes: peak, as XLA reports it.
        milliseconds: median, all methods taking turns.
    """

    units: int | None
    temporary_bytes: int
    milliseconds: float


class TimedStep:
    """Step of a trainer, compiled for itself."""

    def __init__(self, text: str, trainer: Trainer):
        """Compile it.

        Args:
            text: text of the method.
            trainer: trainer that trains with it.
        """
        self._text, self._num_tasks = text, len(trainer.benchmark.tasks)
        self._arguments = trainer.step_arguments()
        self._step = trainer.train_step.lower(*self._arguments).compile()

    def seconds(self) -> float:
        """The time of one step."""
        start = time.perf_counter()
        jax.block_until_ready(self._step(*self._arguments))
        return time.perf_counter() - start

    def cost(self, milliseconds: float) -> Cost:
        """The cost, with the median time of a step."""
        memory: Any = self._step.memory_analysis()
        units = None
        if self._text in KNOWN:
            forward, backward = KNOWN[self._text].passes(self._num_tasks)
            units = forward + 2 * backward
        return Cost(units, memory.temp_size_in_bytes, milliseconds)
