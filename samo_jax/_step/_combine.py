"""`combine_task_grads` and `settle`: from K gradients to a direction."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from samo_jax._combiners._types import (
    Combiner,
    Weighting,
    combiner_update,
    shared_gramian,
    weighting_update,
)
from samo_jax._gramian import combine
from samo_jax._labels import SHARED
from samo_jax._step._method import Outcome, States
from samo_jax._tree import PyTree, all_finite, select, zero_unless


def combine_task_grads(
    combiner: Combiner,
    states: States,
    rows: PyTree,
    heads: PyTree,
    *,
    tasks: tuple[str, ...],
    present: jax.Array,
    losses: jax.Array | None,
    with_gramian: bool,
    **combiner_args: Any,
) -> Outcome:
    """The combiner's direction on shared leaves, beside the heads' own gradients.

    `rows` are gradients by shared leaves, as are `sample_grads` and `clean_grads` among
    the combiner's arguments. Those of absent tasks are zero, their losses NaN.
    """
    products = None
    args = combiner_args | {"tasks": tasks, "present": present}
    if losses is not None:
        args["losses"] = losses
    if isinstance(combiner, Weighting) or with_gramian:
        products = shared_gramian(rows, args)
    if isinstance(combiner, Weighting):
        weights, combiner_state = weighting_update(combiner)(
            products, states.combiner, **args
        )
        shared = combine(weights, rows)
    else:
        shared, weights, combiner_state = combiner_update(combiner)(
            rows, states.combiner, **args
        )
    states = states._replace(combiner=combiner_state)
    if losses is None:
        losses = jnp.full(present.shape, jnp.nan)
    return Outcome(shared, heads, weights, present, states, losses, products)


def settle(
    outcome: Outcome,
    states: States,
    labels: PyTree,
    like: PyTree,
    tasks: tuple[str, ...],
) -> tuple[PyTree, Outcome]:
    """The direction of a step, in the dtypes of `like`, and what it is made of.

    Heads of absent tasks get zero. Where the direction is not finite it is zero,
    without a task that took part; without one the states stay.
    """

    def pick(label, reference, shared, head):
        if label == SHARED:
            return shared.astype(reference.dtype)
        is_there = outcome.present[tasks.index(label)]
        return zero_unless(is_there, head).astype(reference.dtype)

    def unless_known(label, reference, head, leaf):
        # Of present tasks they are, before a cast.
        is_known = label != SHARED and head.dtype == reference.dtype
        return None if is_known else leaf

    direction = jax.tree.map(pick, labels, like, outcome.shared, outcome.heads)
    finite = all_finite(
        jax.tree.map(unless_known, labels, like, outcome.heads, direction)
    )
    present = outcome.present & finite
    return jax.tree.map(partial(zero_unless, finite), direction), outcome._replace(
        weights=zero_unless(finite, outcome.weights),
        present=present,
        states=select(jnp.any(present), outcome.states, states),
    )
