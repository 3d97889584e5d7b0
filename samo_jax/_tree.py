"""Pytree arithmetic in float32 (float64 under x64) that `optax.tree` lacks."""

from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

PyTree: TypeAlias = Any


def accumulator_dtype() -> jnp.dtype:
    """The dtype of sums: float64 under x64, else float32, whatever the parameters'."""
    return jnp.result_type(float)


def safe_divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """`numerator / denominator`, and 0 where the denominator is not positive."""
    positive = denominator > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1), 0)


def total(parts: Iterable[jax.Array]) -> jax.Array:
    """The sum of arrays of one shape, such as a scalar of every leaf.

    XLA repeats a sum of scalars in whatever reads it: with 100 leaves, 100 times in
    each of 100 operations. A running sum it computes once.
    """
    return jnp.cumsum(jnp.stack([*parts]), axis=0)[-1]


def each(function: Callable[..., jax.Array], *vectors: jax.Array) -> jax.Array:
    """`function` of the vectors' entries, one by one.

    XLA compiles what reads a place of a vector once for each place, and what reads one
    of these scalars once for all.
    """
    return jnp.stack([function(*entries) for entries in zip(*vectors, strict=True)])


def sum_of_squares(leaf: jax.Array) -> jax.Array:
    """Sum of the squares of one array, in `accumulator_dtype`."""
    return jnp.sum(jnp.square(leaf.astype(accumulator_dtype())))


def leaf_norm(leaf: jax.Array) -> jax.Array:
    """Euclidean norm of one array, in `accumulator_dtype`."""
    return jnp.sqrt(sum_of_squares(leaf))


def group_norms(tree: PyTree, groups: PyTree) -> dict[Hashable, jax.Array]:
    """One Euclidean norm per distinct label of `groups` (a pytree like `tree`)."""
    squares = group_products(tree, tree, groups)
    return {group: jnp.sqrt(square) for group, square in squares.items()}


def tree_norm(tree: PyTree) -> jax.Array:
    """The Euclidean norm of all leaves, in `accumulator_dtype`."""
    squares = [*map(sum_of_squares, jax.tree.leaves(tree))]
    return jnp.sqrt(total(squares)) if squares else jnp.zeros(())


def group_products(tree: PyTree, other: PyTree, groups: PyTree) -> dict[Hashable, Any]:
    """One inner product per distinct label of `groups` (a pytree like `tree`)."""
    dtype = accumulator_dtype()
    products: dict[Hashable, list[jax.Array]] = {}
    leaves = (jax.tree.leaves(x) for x in (tree, other, groups))
    for leaf, other_leaf, group in zip(*leaves, strict=True):
        product = jnp.sum(leaf.astype(dtype) * other_leaf.astype(dtype))
        products.setdefault(group, []).append(product)
    return {group: total(parts) for group, parts in products.items()}


def scale_leaves(tree: PyTree, factor: Callable[..., ArrayLike], *rest: Any) -> PyTree:
    """Multiply each leaf, in `accumulator_dtype`, by `factor(leaf, *rest leaves)`."""
    dtype = accumulator_dtype()
    return jax.tree.map(
        lambda leaf, *others: leaf.astype(dtype) * factor(leaf, *others), tree, *rest
    )


def zero_unless(condition: Any, leaf: jax.Array) -> jax.Array:
    """`leaf` where the condition holds, else zero."""
    return jnp.where(condition, leaf, 0)


def select(condition: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """`new` where the scalar `condition` holds, else `old`, leaf by leaf."""
    return jax.tree.map(partial(jnp.where, condition), new, old)


def all_finite(tree: PyTree) -> jax.Array:
    """Whether every entry of every leaf is finite."""
    faults = [jnp.any(~jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return total(faults) == 0 if faults else jnp.ones((), bool)


def scale_tasks(leaf: jax.Array, scales: jax.Array) -> jax.Array:
    """`scales_i * leaf_i` along the leading task axis, in `accumulator_dtype`."""
    leaf = leaf.astype(accumulator_dtype())
    return leaf * jnp.expand_dims(scales, tuple(range(1, leaf.ndim)))


def as_floats(tree: PyTree) -> PyTree:
    """`tree` in `accumulator_dtype`."""
    return jax.tree.map(lambda leaf: leaf.astype(accumulator_dtype()), tree)


def cast_like(tree: PyTree, reference: PyTree) -> PyTree:
    """`tree` in the dtypes of the reference's leaves."""
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, reference)


def displace(params: PyTree, displacement: PyTree) -> PyTree:
    """`params + displacement`, formed in `accumulator_dtype`, in the params' dtypes."""
    dtype = accumulator_dtype()
    return jax.tree.map(
        lambda p, d: (p.astype(dtype) + d.astype(dtype)).astype(p.dtype),
        params,
        displacement,
    )


def zeros_like_params(params: PyTree) -> PyTree:
    """Zeros like `params`, in `accumulator_dtype`, with their shardings."""
    return jax.tree.map(
        lambda leaf: jnp.zeros_like(leaf, dtype=accumulator_dtype()), params
    )


def zeros_per_task(
    params: PyTree, num_tasks: int, dtype: DTypeLike | None = None
) -> PyTree:
    """Zeros like `params` with a leading task axis. `dtype` None: the parameters'."""
    # Broadcasting keeps the leaf's sharding.
    return jax.tree.map(
        lambda leaf: jnp.broadcast_to(
            jnp.zeros_like(leaf, dtype=dtype), (num_tasks, *leaf.shape)
        ),
        params,
    )
