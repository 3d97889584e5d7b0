"""`map_tasks`: the loop over tasks, unrolled, one by one or in chunks."""

from collections.abc import Callable
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
    batch_size = unroll if is_chunked(unroll) else None
    loop = canonicalize_convolutions(
        lambda index: lax.map(fn, index, batch_size=batch_size)
    )
    return loop(jnp.arange(num_tasks))


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
