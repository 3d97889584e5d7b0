"""`gramian` and `combine`: task gradients to Gramian, weights to a direction."""

import math
from functools import reduce

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from samo_jax._tree import PyTree, accumulator_dtype

_BLOCK = 1 << 14  # columns


def gramian(task_grads: PyTree, others: PyTree = None) -> jax.Array:
    """Inner products of the task gradients, `G_ij = <g_i, g_j>`.

    With `others` it is the cross Gramian `<g_i, h_j>` of two samples of the gradients.

    Summed leaf by leaf in float32 (float64 under x64) at the highest matmul precision,
    whatever the gradients' dtype; nothing is ravelled, so shardings survive.

    Args:
        task_grads: a pytree whose leaves have a leading task axis, shape (K, ...), as
            `task_gradients` returns.
        others: gradients h like `task_grads`. None: the same gradients.

    Returns:
        G, shape (K, K), symmetric without `others`.

    Raises:
        ValueError: if there is no leaf, or the leading axes differ.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> print(samo_jax.gramian({"a": jnp.array([[1.0, 2.0], [0.0, 3.0]])}))
        [[5. 6.]
         [6. 9.]]
    """
    leaves = jax.tree.leaves(task_grads)
    sizes = {jnp.shape(leaf)[:1] for leaf in leaves}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(
            "`task_grads` must have leaves with one common leading task axis, got "
            f"shapes {[jnp.shape(leaf) for leaf in leaves]}. Compute them with "
            "`samo_jax.task_gradients`."
        )
    other_leaves = leaves if others is None else jax.tree.leaves(others)
    return reduce(jnp.add, map(_inner_products, leaves, other_leaves))


def _inner_products(leaf: jax.Array, other: jax.Array) -> jax.Array:
    if jax.device_count() > 1:
        return _contract(leaf, other)
    # Of more axes XLA transposes a copy; of sharded ones a reshape might gather.
    leaf, other = (x.reshape(len(x), math.prod(x.shape[1:])) for x in (leaf, other))
    if leaf.shape[1] < 2 * _BLOCK:
        return _contract(leaf, other)
    return lax.platform_dependent(leaf, other, cpu=_by_blocks, default=_contract)


def _by_blocks(leaf: jax.Array, other: jax.Array) -> jax.Array:
    """A sum over blocks of columns that the cache of a CPU holds."""
    num_blocks = leaf.shape[1] // _BLOCK

    def add(block, total):
        start = block * _BLOCK
        parts = (
            lax.dynamic_slice_in_dim(x, start, _BLOCK, axis=1) for x in (leaf, other)
        )
        return total + _contract(*parts)

    rest = (x[:, num_blocks * _BLOCK :] for x in (leaf, other))
    return lax.fori_loop(0, num_blocks, add, _contract(*rest))


def _contract(leaf: jax.Array, other: jax.Array) -> jax.Array:
    axes = tuple(range(1, leaf.ndim))
    return lax.dot_general(
        leaf.astype(accumulator_dtype()),
        other.astype(accumulator_dtype()),
        dimension_numbers=((axes, axes), ((), ())),
        precision="highest",
        # Explicit sharding wants the result's sharding where a sharded axis contracts.
        out_sharding=NamedSharding(jax.typeof(leaf).sharding.mesh, PartitionSpec()),
    )


def combine(weights: jax.Array, task_grads: PyTree) -> PyTree:
    """The direction `d = sum_i w_i g_i`.

    Args:
        weights: weights w, shape (K,).
        task_grads: a pytree whose leaves have a leading task axis, shape (K, ...).

    Returns:
        A pytree without the task axis, in the gradients' dtypes, summed in float32
        (float64 under x64).

    Raises:
        ValueError: if there is not one weight per task.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> task_grads = {"a": jnp.array([[1.0, 2.0], [0.0, 3.0]])}
        >>> print(samo_jax.combine(jnp.array([1.0, 0.5]), task_grads)["a"])
        [1.  3.5]
    """
    dtype = accumulator_dtype()
    weights = jnp.asarray(weights, dtype)

    def weighted_sum(leaf):
        if weights.shape != jnp.shape(leaf)[:1]:
            raise ValueError(
                f"`weights` must be one number per task, got shape {weights.shape} for "
                f"a leaf of shape {jnp.shape(leaf)}. Its leading axis is the tasks'."
            )
        total = jnp.tensordot(weights, leaf.astype(dtype), axes=1, precision="highest")
        return total.astype(leaf.dtype)

    return jax.tree.map(weighted_sum, task_grads)
