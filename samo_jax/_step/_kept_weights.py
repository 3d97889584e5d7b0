"""`KeptWeights`: the weights of one step, for the steps that follow."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import lax

from samo_jax._absent_tasks import among_present
from samo_jax._combiners._types import Weighting, weighting_update
from samo_jax._jaxprs import canonicalize_convolutions
from samo_jax._step._method import Method
from samo_jax._tree import accumulator_dtype, safe_divide, select, zero_unless

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


def take_or_go_on(
    take: Callable[[], T],
    go_on: Callable[[KeptWeights], T],
    method: Method,
    task_mask: jax.Array,
    kept: KeptWeights | None,
) -> tuple[Any, T]:
    """Whether weights are new, and the results with them or with kept ones.

    They are if they are old, or a task is new, or none are kept.
    """
    if kept is None:
        return True, take()
    new_task = jnp.any(method.devices.all(task_mask) & ~kept.kept_tasks)
    is_new = new_task | (kept.age + 1 >= cast(int, method.weights_every))
    return is_new, lax.cond(
        is_new, canonicalize_convolutions(take), lambda: go_on(kept)
    )


def known_weights(
    combiner: Weighting, kept: KeptWeights, state: Any, args: dict[str, Any]
) -> jax.Array:
    """The kept weights, solved anew from the kept Gramian where a task is absent."""
    present = args["present"]

    def solve():
        products = among_present(kept.kept_gramian, present)
        solved, _ = weighting_update(combiner)(products, state, **args)
        return solved.astype(kept.kept_weights.dtype)

    is_same = jnp.all(present == kept.kept_tasks)
    return lax.cond(is_same, lambda: kept.kept_weights, solve)


def kept_after(
    kept: KeptWeights | None,
    is_new: Any,
    present: jax.Array,
    weights: jax.Array,
    gramian: jax.Array,
    length: jax.Array,
) -> KeptWeights | None:
    """The kept weights after a step: those of this step if new, else a step older."""
    if kept is None:
        return None
    renewed = KeptWeights(
        age=jnp.zeros_like(kept.age),
        kept_tasks=present,
        kept_weights=zero_unless(jnp.any(present), weights),
        kept_gramian=gramian,
        kept_length=length,
    )
    return select(is_new, renewed, kept._replace(age=kept.age + 1))


def growth_factor(combiner: Weighting, length: jax.Array, old: jax.Array) -> jax.Array:
    """Factor of a direction by kept weights: `s^(p - 1)`, s by what it has grown."""
    growth = safe_divide(length, old)
    return jnp.where(growth > 0, growth, 1) ** (combiner.degree - 1)
