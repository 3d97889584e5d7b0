"""`map_tasks`, `map_and_sum`: loops over tasks, unrolled, one by one or in chunks."""

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
        return _stack([fn(i) for i in range(num_tasks)])
    batch_size = unroll if is_chunked(unroll) else None
    loop = canonicalize_convolutions(partial(lax.map, fn, batch_size=batch_size))
    return loop(jnp.arange(num_tasks))


def map_and_sum(
    fn: Callable[[Any], tuple[Any, Any]],
    start: PyTree,
    num_tasks: int,
    unroll: Unroll,
    drawn: jax.Array | None = None,
    *,
    branches: bool = True,
) -> tuple[PyTree, PyTree]:
    """`map_tasks` of the first of two results, and `start` plus the second ones' sum.

    Of the drawn tasks alone, shape (k,), if there are: the others are zero. Where tasks
    are unrolled, each of these is a branch of its own, with a Python index (`branches`
    False: they are looped over, with traced ones).
    """
    if is_unrolled(unroll, num_tasks) and (drawn is None or branches):
        call = fn if drawn is None else partial(_if_drawn, fn, drawn)
        mapped, parts = zip(*map(call, range(num_tasks)), strict=True)
        return _stack(mapped), jax.tree.map(lambda *leaves: sum(leaves), start, *parts)
    index = jnp.arange(num_tasks) if drawn is None else drawn
    loop = partial(_map_and_sum, fn, start, unroll)
    mapped, total = canonicalize_convolutions(loop)(index)
    if drawn is None:
        return mapped, total

    def spread(leaf):
        return jnp.zeros((num_tasks, *leaf.shape[1:]), leaf.dtype).at[drawn].set(leaf)

    return jax.tree.map(spread, mapped), total


def _map_and_sum(fn, start, unroll, index):
    """Loop task by task or by chunks; the rest is a chunk of its own."""

    def one(total, i):
        mapped, part = fn(i)
        return jax.tree.map(_add, total, part), mapped

    def chunk(total, index):
        mapped, parts = jax.vmap(fn)(index)
        part = jax.tree.map(partial(jnp.sum, axis=0), parts)
        return jax.tree.map(_add, total, part), mapped

    if not is_chunked(unroll):
        return lax.scan(one, start, index)[::-1]
    whole, rest = jnp.split(index, [len(index) // unroll * unroll])
    total, mapped = lax.scan(chunk, start, whole.reshape(-1, unroll))
    mapped = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), mapped)
    if len(rest):
        total, last = chunk(total, rest)
        mapped = jax.tree.map(lambda *parts: jnp.concatenate(parts), mapped, last)
    return mapped, total


def _add(total, part):
    return total + part.astype(total.dtype)


def _if_drawn(fn: Callable[[int], Any], drawn: jax.Array, i: int) -> Any:
    """`fn(i)`, or zeros if the task is not drawn."""
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(lambda: fn(i))
    )
    return lax.cond(jnp.any(drawn == i), partial(fn, i), lambda: zeros)


def _stack(cases):
    return jax.tree.map(lambda *parts: jnp.stack(parts), *cases)


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
