"""`map_tasks`: the loop over tasks, unrolled, one by one or in chunks."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from samo_jax._jaxprs import canonicalize_convolutions
from samo_jax._tree import PyTree

_FEW_TASKS = 8


Unroll: TypeAlias = bool | int | None


def map_tasks(fn: Callable[[Any], Any], num_tasks: int, unroll: Unroll) -> PyTree:
    """Stack `fn(0), ..., fn(K-1)` along a new leading axis.

    `unroll` True traces every call with a Python index, False is one `lax.map`, an int
    a `lax.map` over chunks of that many tasks. None is True for few tasks, else False.
    """
    if is_unrolled(unroll, num_tasks):
        return jax.tree.map(
            lambda *parts: jnp.stack(parts), *(fn(i) for i in range(num_tasks))
        )
    return _loop(fn, unroll)(jnp.arange(num_tasks))


def map_drawn(
    fn: Callable[[Any], Any],
    num_tasks: int,
    unroll: Unroll,
    drawn: jax.Array,
    *,
    branches: bool = True,
) -> PyTree:
    """`map_tasks` of the drawn tasks alone, shape (k,); zeros for the others.

    Where tasks are unrolled, each is a branch of its own, with a Python index
    (`branches` False: they are looped over, with traced ones).
    """
    if branches and is_unrolled(unroll, num_tasks):
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(lambda: fn(0)),
        )
        cases = [
            lax.cond(jnp.any(drawn == i), partial(fn, i), lambda: zeros)
            for i in range(num_tasks)
        ]
        return jax.tree.map(lambda *parts: jnp.stack(parts), *cases)
    found = _loop(fn, unroll)(drawn)

    def spread(leaf):
        return jnp.zeros((num_tasks, *leaf.shape[1:]), leaf.dtype).at[drawn].set(leaf)

    return jax.tree.map(spread, found)


def _loop(fn: Callable[[Any], Any], unroll: Unroll) -> Callable[[jax.Array], PyTree]:
    batch_size = unroll if is_chunked(unroll) else None
    return canonicalize_convolutions(
        lambda index: lax.map(fn, index, batch_size=batch_size)
    )


def is_unrolled(unroll: Unroll, num_tasks: int) -> bool:
    """Whether every task is traced for itself."""
    return num_tasks <= _FEW_TASKS if unroll is None else unroll is True


def is_chunked(unroll: Unroll) -> bool:
    """Whether a loop takes several tasks at once, under `jax.vmap`."""
    return unroll is not None and not isinstance(unroll, bool)


def check_unroll(unroll: Unroll) -> None:
    """Raise unless `unroll` is None, a bool or a positive int."""
    if unroll is not None and (
        not isinstance(unroll, int)
        or unroll < 0
        or (unroll == 0 and unroll is not False)
    ):
        raise ValueError(
            "`unroll` must be None, True, False or a positive number of tasks per "
            f"chunk, got {unroll!r}. None chooses by the number of tasks."
        )
