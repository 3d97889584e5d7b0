"""`random_weights` (RLW): new random weights at every update."""

import jax

from samo_jax._combiners._keyed import keyed_weighting
from samo_jax._combiners._types import Weighting
from samo_jax._named import named
from samo_jax._tree import accumulator_dtype


@named
def random_weights(key: jax.Array | int) -> Weighting:
    """New random weights at every update: `w = softmax(z)`, z ~ N(0, I).

    Random loss weighting, a baseline that costs nothing; the weights sum to one.

    Args:
        key: typed PRNG key or int. It stays constant in the state; draws fold in the
            number of the update.

    Returns:
        A `Weighting`.

    Raises:
        ValueError: if `key` is None.

    Examples:
        >>> import jax, jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.random_weights(jax.random.key(0))
        >>> weights, _ = weighting.update(jnp.eye(3), weighting.init(3))
        >>> print(weights.shape, weights.sum().round(3))
        (3,) 1.0

    References:
        Lin, Ye, Zhang and Tsang, `Reasonable Effectiveness of Random Weighting: A
        Litmus Test for Multi-Task Learning <https://arxiv.org/abs/2111.10603>`_, 2022
    """

    def update(key, gramian, memory, present):
        normals = jax.random.normal(key, gramian.shape[:1], accumulator_dtype())
        return jax.nn.softmax(normals, where=present), memory

    return keyed_weighting(key, lambda _num_tasks: (), update)._replace(
        needs_gramian=False
    )
