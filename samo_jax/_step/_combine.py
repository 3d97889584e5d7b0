"""`combine_task_grads` and `settle`: from K gradients to a direction."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from samo_jax._combiners._types import Combiner, combiner_update
from samo_jax._labels import SHARED, only_shared
from samo_jax._step._method import Outcome, States
from samo_jax._tree import PyTree, all_finite, select, zero_unless


def combine_task_grads(
    combiner: Combiner,
    states: States,
    task_grads: PyTree,
    labels: PyTree,
    tasks: tuple[str, ...],
    *,
    present: jax.Array,
    **combiner_args: Any,
) -> Outcome:
    """The combiner's direction on shared leaves, row i on the head of task i.

    Rows of absent tasks are zero. The combiner's arguments are trees of task gradients
    (`sample_grads`, `clean_grads`) on shared leaves alone.
    """
    shared, weights, combiner_state = combiner_update(combiner)(
        only_shared(task_grads, labels),
        states.combiner,
        present=present,
        **combiner_args,
    )
    heads = jax.tree.map(
        lambda label, rows: None if label == SHARED else rows[tasks.index(label)],
        labels,
        task_grads,
    )
    states = states._replace(combiner=combiner_state)
    return Outcome(shared, heads, weights, present, states)


def settle(
    outcome: Outcome, states: States, labels: PyTree, like: PyTree
) -> tuple[PyTree, Outcome]:
    """The direction of a step, in the dtypes of `like`, and what it is made of.

    Where it is not finite it is zero, without a task that took part; without one the
    states stay.
    """

    def pick(label, reference, shared, head):
        return (shared if label == SHARED else head).astype(reference.dtype)

    direction = jax.tree.map(pick, labels, like, outcome.shared, outcome.heads)
    finite = all_finite(direction)
    present = outcome.present & finite
    return jax.tree.map(partial(zero_unless, finite), direction), outcome._replace(
        weights=zero_unless(finite, outcome.weights),
        present=present,
        states=select(jnp.any(present), outcome.states, states),
    )
