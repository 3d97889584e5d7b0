"""`shapley_values`: what each modality contributes to a value of the whole."""

from collections.abc import Callable
from itertools import product
from math import comb

import jax
import jax.numpy as jnp
from jax import lax

from samo_jax._checks import as_key, check_count
from samo_jax._tree import PyTree, accumulator_dtype

MAX_EXACT = 6
_CHUNK = 2**MAX_EXACT


def shapley_values(
    value_fn: Callable[[jax.Array], PyTree],
    num_modalities: int,
    *,
    key: jax.Array | int | None = None,
    num_permutations: int = 16,
    subtract_empty: bool = True,
) -> PyTree:
    """Shares of the modalities in a value, averaged over the orders of joining.

    `phi_m = sum_{S not with m} |S|! (M - |S| - 1)! / M! (V(S + m) - V(S))`

    Up to 6 modalities it is exact, from all 2^M coalitions S, each evaluated once.
    Beyond, `num_permutations` random orders are averaged, in which each modality adds
    `V(those before and m) - V(those before)`: an unbiased estimate whose sum over the
    modalities is exact, from `num_permutations (M - 1) + 2` coalitions. Coalitions run
    under `jax.vmap`, 64 at a time.

    Args:
        value_fn: `value_fn(present)` gives V, the higher the better, where `present` is
            shape (M,), bool: a scalar such as the accuracy on a batch or minus its
            loss, or any pytree of arrays such as logits or one value an example.
            Replace absent inputs, say `jnp.where(present[0], image, 0)`, inside a model
            in evaluation mode, so that coalitions differ in their modalities alone.
        num_modalities: number M of modalities.
        key: typed PRNG key or int, of the orders, required beyond 6 modalities.
        num_permutations: number of orders beyond 6 modalities.
        subtract_empty: whether the values sum to V(all) - V(none). False: V(none)
            counts as 0, as in AGM, and is not evaluated; they sum to V(all).

    Returns:
        phi, a pytree like the value, whose leaves have a leading modality axis, shape
        (M, ...), in float32 (float64 under x64). It is differentiable.

    Raises:
        ValueError: if `num_modalities` or `num_permutations` is not a positive int, or
            a `key` is missing.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> def accuracy(present):
        ...     image, sound = present
        ...     return 0.1 + 0.5 * image + 0.2 * sound + 0.1 * (image & sound)
        >>> print(samo_jax.shapley_values(accuracy, 2))
        [0.55 0.25]

    References:
        Shapley, `A Value for n-Person Games <https://doi.org/10.7249/P0295>`_, 1952

        Li, Li, Hu, Lei, Li and Zhou, `Boosting Multi-modal Model Performance with
        Adaptive Gradient Modulation <https://arxiv.org/abs/2308.07686>`_, 2023
    """
    check_count("num_modalities", num_modalities, "It is M of `value_fn`.")
    check_count("num_permutations", num_permutations, "16 is the default.")
    if num_modalities <= MAX_EXACT:
        coalitions, weights = _all_coalitions(num_modalities)
    else:
        coalitions, weights = _sampled_coalitions(
            as_key(key), num_modalities, num_permutations
        )
    first = 0 if subtract_empty else 1
    values = lax.map(value_fn, coalitions[first:], batch_size=_CHUNK)
    return jax.tree.map(
        lambda value: jnp.tensordot(
            weights[first:], value.astype(weights.dtype), (0, 0), precision="highest"
        ),
        values,
    )


def _all_coalitions(num_modalities: int) -> tuple[jax.Array, jax.Array]:
    """All masks, none present first, and their weights in phi, shape (2^M, M)."""
    masks = list(product((False, True), repeat=num_modalities))

    def weight(present: bool, size: int) -> float:
        orders = num_modalities * comb(num_modalities - 1, size - present)
        return (1 if present else -1) / orders

    weights = [[weight(present, sum(mask)) for present in mask] for mask in masks]
    return jnp.array(masks), jnp.array(weights, accumulator_dtype())


def _sampled_coalitions(
    key: jax.Array, num_modalities: int, num_permutations: int
) -> tuple[jax.Array, jax.Array]:
    """Masks and weights of random orders, which have the first and last in common."""
    ranks = jax.vmap(lambda key: jax.random.permutation(key, num_modalities))(
        jax.random.split(key, num_permutations)
    )[:, None, :]
    size = jnp.arange(num_modalities + 1)[None, :, None]
    masks = ranks < size
    signs = (ranks == size - 1).astype(int) - (ranks == size).astype(int)
    weights = signs.astype(accumulator_dtype()) / num_permutations

    def merge(tree, reduce_orders):
        ends = [reduce_orders(tree[:, end], axis=0)[None] for end in (0, -1)]
        between = tree[:, 1:-1].reshape(-1, num_modalities)
        return jnp.concatenate([*ends, between])

    return merge(masks, jnp.all), merge(weights, jnp.sum)
