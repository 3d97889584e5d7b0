"""`one_by_one_on_cpu`: what a batch of solves does on a CPU."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

P = ParamSpec("P")
T = TypeVar("T")


def one_by_one_on_cpu(solve: Callable[P, T]) -> Callable[P, T]:
    """`solve(*arrays)`, whose batches under `jax.vmap` a CPU solves one by one.

    A batch would wait for its slowest row. And jaxlib 0.10 deadlocks where as many
    batched calls of LAPACK run at once as its pool has threads: each of them holds one,
    and waits for others. Elsewhere it is `jax.vmap(solve)`.
    """
    single = custom_vmap(solve)

    @single.def_vmap
    def solve_batch(size, batched, *args):
        rows = jax.tree.map(
            lambda x, is_batched: (
                x if is_batched else jnp.broadcast_to(x, (size, *jnp.shape(x)))
            ),
            args,
            tuple(batched),
        )
        results = lax.platform_dependent(
            *rows,
            cpu=lambda *rows: lax.map(lambda row: single(*row), rows),
            default=jax.vmap(solve),
        )
        return results, jax.tree.map(lambda _: True, results)

    @functools.wraps(solve)
    def solve_one(*args: P.args, **kwargs: P.kwargs) -> T:
        return single(*args, **kwargs)

    return solve_one
