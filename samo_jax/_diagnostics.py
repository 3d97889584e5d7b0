"""What a person looks at after training."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def delta_m(
    metrics: ArrayLike, baselines: ArrayLike, *, higher_is_better: ArrayLike = False
) -> jax.Array:
    """Average relative loss of performance against single-task baselines, in percent.

    `Delta m = 100 / M sum_j s_j (m_j - b_j) / b_j` with s_j = -1 where higher is better
    and +1 otherwise: lower is better, negative means better than single-task training.

    Args:
        metrics: m, shape (..., M), of the multi-task model.
        baselines: b, shape (M,), of the single-task models.
        higher_is_better: bool or shape (M,) of bools.

    Returns:
        Delta m in percent, shape (...).

    Examples:
        >>> import samo_jax
        >>> m, b = [0.9, 2.0], [1.0, 2.5]
        >>> value = samo_jax.delta_m(m, b, higher_is_better=[True, False])
        >>> print(round(float(value), 3))
        -5.0

    References:
        Maninis, Radosavovic and Kokkinos, `Attentive Single-Tasking of Multiple Tasks
        <https://arxiv.org/abs/1904.08918>`_, 2019
    """
    metrics, baselines = jnp.asarray(metrics), jnp.asarray(baselines)
    sign = jnp.where(jnp.asarray(higher_is_better), -1.0, 1.0)
    return 100 * jnp.mean(sign * (metrics - baselines) / baselines, axis=-1)
