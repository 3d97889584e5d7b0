"""`Method`: the settings of `multitask`, and what one step hands on."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from samo_jax._checks import check_count
from samo_jax._combiners._types import Aggregator, Combiner
from samo_jax._perturbations._base import Perturbation
from samo_jax._problem import Problem
from samo_jax._step._devices import Devices
from samo_jax._task_loop import Unroll
from samo_jax._tree import PyTree


class Method(NamedTuple):
    """Static settings of `multitask`, see there."""

    combiner: Combiner
    perturbation: Perturbation
    devices: Devices
    gramian_block: int | None
    tasks_per_step: int | None


class States(NamedTuple):
    """States of a method, from step to step.

    Attributes:
        combiner: state of the combiner.
        perturbation: state of the perturbation.
    """

    combiner: Any
    perturbation: Any


class Outcome(NamedTuple):
    """Result of one way of a step.

    Attributes:
        shared: direction of shared leaves (others: anything).
        heads: each head's own gradient (shared leaves: anything).
        weights: weights of the tasks, shape (K,).
        present: whether each task took part, shape (K,), bool.
        states: the method's new states.
    """

    shared: PyTree
    heads: PyTree
    weights: jax.Array
    present: jax.Array
    states: States


def check_tasks_per_step(method: Method, num_tasks: int) -> None:
    """Raise unless `tasks_per_step` is None or so many tasks can be drawn."""
    count = method.tasks_per_step
    if count is None:
        return
    check_count("tasks_per_step", count, "It is the number of tasks drawn at a step.")
    if count > num_tasks:
        raise ValueError(
            f"`tasks_per_step` must be at most `num_tasks`={num_tasks}, got {count}. "
            "None takes all."
        )
    if method.gramian_block is not None:
        raise ValueError(
            "`tasks_per_step` takes the gradients of the drawn tasks at once, got "
            f"`gramian_block`={method.gramian_block}. Leave out one."
        )


def draw_tasks(method: Method, problem: Problem) -> jax.Array | None:
    """The tasks of this step, in order, shape (k,), int; None: all."""
    if method.tasks_per_step is None:
        return None
    num_tasks = len(problem.tasks)
    # Perturbations fold in numbers up to K.
    key = jax.random.fold_in(cast(jax.Array, problem.key), num_tasks + 1)
    order = jax.random.permutation(key, num_tasks)
    return jnp.sort(order[: method.tasks_per_step])


def check_gramian_block(method: Method, unroll: Unroll) -> None:
    """Raise unless `gramian_block` is None or a step by blocks is possible."""
    block = method.gramian_block
    if block is None:
        return
    check_count("gramian_block", block, "It is the number of gradients held at once.")
    if unroll:
        raise ValueError(
            f"`gramian_block` loops over tasks, got `unroll`={unroll!r}. Leave out one."
        )
    if isinstance(method.combiner, Aggregator):
        raise ValueError(
            f"`gramian_block` is for a Weighting, got {method.combiner!r}, an "
            "Aggregator, which needs all gradients at once. Leave it out."
        )
    if method.perturbation.finish is not None:
        raise ValueError(
            "`gramian_block` is for perturbations that leave the gradients alone, got "
            f"{method.perturbation!r}, which does not. Leave it out."
        )
