"""`step_with_kept_weights`: a step that takes the weights anew now and then."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import lax

from samo_jax._absent_tasks import among_present
from samo_jax._combiners._types import Weighting, weighting_update
from samo_jax._jaxprs import canonicalize_convolutions
from samo_jax._labels import only_shared
from samo_jax._problem import Problem
from samo_jax._step._combine import settle
from samo_jax._step._method import Method, Outcome, States
from samo_jax._step._weights_first import step_by_weights_first
from samo_jax._tree import (
    PyTree,
    accumulator_dtype,
    safe_divide,
    scale_leaves,
    tree_norm,
)

T = TypeVar("T")


class KeptWeights(NamedTuple):
    """Weights of one step, for the steps that follow.

    Of `f_mtl` the last three have a leading axis of 2, for loss parts and flat parts,
    and lengths are those by the Gramian.

    Attributes:
        age: shape (), int32, number of steps since the weights were taken.
        kept_tasks: shape (K,), bool, the tasks that took part; none before the first.
        kept_weights: shape (K,), the weights then.
        kept_gramian: shape (K, K), the Gramian then.
        kept_length: shape (), Euclidean norm of the direction's shared leaves then.
    """

    age: jax.Array
    kept_tasks: jax.Array
    kept_weights: jax.Array
    kept_gramian: jax.Array
    kept_length: jax.Array


def no_weights(num_tasks: int, *parts: int) -> KeptWeights:
    """Kept weights before the first step, of one direction or of several parts."""
    dtype = accumulator_dtype()
    return KeptWeights(
        age=jnp.zeros((), jnp.int32),
        kept_tasks=jnp.zeros(num_tasks, bool),
        kept_weights=jnp.zeros((*parts, num_tasks), dtype),
        kept_gramian=jnp.zeros((*parts, num_tasks, num_tasks), dtype),
        kept_length=jnp.zeros(parts, dtype),
    )


def step_with_kept_weights(
    way: Callable[..., Outcome],
    method: Method,
    problem: Problem,
    states: States,
    task_mask: jax.Array,
    kept: KeptWeights,
) -> tuple[PyTree, Outcome, KeptWeights]:
    """A step by `way` every so often, or once a new task comes; else by kept weights.

    A step in between makes one backward pass per point: `d = s^(p - 1) J'w` with the
    kept w, where s is the length of `J'w` relative to what it was when w was taken, and
    p the combiner's `degree`. So d grows with the gradients as the combiner's own does.
    If a task is absent now, w is solved anew for the others from the kept Gramian.
    """
    labels, like = problem.labels, problem.mean_grad

    def renew():
        outcome = way(method, problem, states, task_mask)
        direction, outcome = settle(outcome, states, labels, like)
        return (
            direction,
            without_gradients(outcome),
            KeptWeights(
                age=jnp.zeros_like(kept.age),
                kept_tasks=outcome.present,
                kept_weights=outcome.weights,
                kept_gramian=cast(jax.Array, outcome.gramian),
                kept_length=tree_norm(only_shared(direction, labels)),
            ),
        )

    def go_on():
        fixed = method._replace(combiner=kept_weighting(combiner, kept))
        outcome = step_by_weights_first(fixed, problem, states, task_mask)
        shared = only_shared(outcome.shared, labels)
        factor = growth_factor(combiner, shared, kept.kept_length)
        outcome = outcome._replace(
            shared=scale_leaves(outcome.shared, lambda _: factor),
            weights=factor * outcome.weights,
            gramian=kept.kept_gramian,
        )
        direction, outcome = settle(outcome, states, labels, like)
        return direction, without_gradients(outcome), kept._replace(age=kept.age + 1)

    combiner = cast(Weighting, method.combiner)
    return renew_or_go_on(renew, go_on, method, task_mask, kept)


def renew_or_go_on(
    renew: Callable[[], T],
    go_on: Callable[[], T],
    method: Method,
    task_mask: jax.Array,
    kept: KeptWeights,
) -> T:
    """A step that takes the weights anew, if they are old or a task is new."""
    is_new = jnp.any(method.devices.all(task_mask) & ~kept.kept_tasks)
    is_old = kept.age + 1 >= cast(int, method.weights_every)
    branches = map(canonicalize_convolutions, (renew, go_on))
    return lax.cond(is_new | is_old, *branches)


def kept_weighting(combiner: Weighting, kept: KeptWeights) -> Weighting:
    """A weighting that gives the kept weights, solved anew where a task is absent."""

    def update(_gramian, state, *, present, **extra_args):
        def solve():
            solved, _ = weighting_update(combiner)(
                among_present(kept.kept_gramian, present),
                state,
                present=present,
                **extra_args,
            )
            return solved.astype(kept.kept_weights.dtype)

        is_same = jnp.all(present == kept.kept_tasks)
        return lax.cond(is_same, lambda: kept.kept_weights, solve), state

    return Weighting(combiner.init, update, needs_gramian=False)


def growth_factor(combiner: Weighting, shared: PyTree, length: jax.Array) -> jax.Array:
    """Factor of a direction by kept weights: `s^(p - 1)`, s by what it has grown."""
    growth = safe_divide(tree_norm(shared), length)
    return jnp.where(growth > 0, growth, 1) ** (combiner.degree - 1)


def without_gradients(outcome: Outcome) -> Outcome:
    """An outcome without what the direction has in it."""
    return outcome._replace(shared=None, heads=None)
