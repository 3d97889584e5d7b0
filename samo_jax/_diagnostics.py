"""`delta_m`, `gradient_cosines`, `conflict_rate`: numbers to look at after training."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from samo_jax._tree import safe_divide


def delta_m(
    metrics: ArrayLike, baselines: ArrayLike, *, higher_is_better: ArrayLike = False
) -> jax.Array:
    """Average relative loss of performance against single-task baselines, in percent.

    `Delta m = 100 / M sum_j s_j (m_j - b_j) / b_j` with s_j = -1 where higher is better
    and +1 otherwise: lower is better, negative means better than single-task training.

    Metrics whose baseline is zero, NaN or infinite have no relative change: the sum
    leaves them out, and M counts the others. Another metric that is NaN or infinite, as
    after training that diverged, makes Delta m so.

    Args:
        metrics: metrics m of the multi-task model, shape (..., M).
        baselines: metrics b of the single-task models, shape (M,).
        higher_is_better: one bool for all metrics, or shape (M,).

    Returns:
        Delta m in percent, shape (...); NaN if no baseline is left.

    Raises:
        ValueError: if `baselines` or `higher_is_better` is not one per metric.

    Examples:
        >>> import samo_jax
        >>> m, b = [0.9, 2.0], [1.0, 2.5]
        >>> value = samo_jax.delta_m(m, b, higher_is_better=[True, False])
        >>> print(round(float(value), 3))
        -5.0
        >>> print(samo_jax.delta_m([0.3, 1.2], [0.0, 1.0]).round(3))
        20.0

    References:
        Maninis, Radosavovic and Kokkinos, `Attentive Single-Tasking of Multiple Tasks
        <https://arxiv.org/abs/1904.08918>`_, 2019
    """
    metrics, baselines = jnp.asarray(metrics), jnp.asarray(baselines)
    higher_is_better = jnp.asarray(higher_is_better)
    wanted = metrics.shape[-1:]
    for name, found, allowed in (
        ("baselines", baselines.shape, (wanted,)),
        ("higher_is_better", higher_is_better.shape, (wanted, ())),
    ):
        if found not in allowed:
            raise ValueError(
                f"`{name}` must be one number per metric, shape {wanted}, got shape "
                f"{found}. Give its entries in the order of the metrics."
            )
    sign = jnp.where(higher_is_better, -1.0, 1.0)
    known = jnp.isfinite(baselines) & (baselines != 0)
    change = sign * (metrics - baselines) / jnp.where(known, baselines, 1)
    return 100 * jnp.mean(change, axis=-1, where=known)


def gradient_cosines(gramian: ArrayLike) -> jax.Array:
    """Cosines between the tasks' gradients, `C_ij = G_ij / sqrt(G_ii G_jj)`.

    Args:
        gramian: the Gramian G, shape (..., K, K), as `gramian` returns it.

    Returns:
        C, shape (..., K, K), with zeros for a task whose gradient is zero.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> task_grads = {"w": jnp.array([[1.0, 0.0], [-3.0, 4.0]])}
        >>> print(samo_jax.gradient_cosines(samo_jax.gramian(task_grads)))
        [[ 1.  -0.6]
         [-0.6  1. ]]
    """
    gramian = jnp.asarray(gramian)
    norms = jnp.sqrt(jnp.diagonal(gramian, axis1=-2, axis2=-1))
    return safe_divide(gramian, norms[..., :, None] * norms[..., None, :])


def conflict_rate(gramian: ArrayLike) -> jax.Array:
    """The share of task pairs whose gradients conflict, `G_ij < 0`.

    Args:
        gramian: the Gramian G, shape (..., K, K), as `gramian` returns it.

    Returns:
        The share in [0, 1], shape (...); 0 for one task.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> task_grads = {"w": jnp.array([[1.0, 0.0], [-3.0, 4.0], [1.0, 1.0]])}
        >>> rate = samo_jax.conflict_rate(samo_jax.gramian(task_grads))
        >>> print(f"{rate:.3f}")
        0.333

    References:
        Yu et al., `Gradient Surgery for Multi-Task Learning
        <https://arxiv.org/abs/2001.06782>`_, 2020
    """
    gramian = jnp.asarray(gramian)
    num_tasks = gramian.shape[-1]
    conflicts = jnp.sum(gramian < 0, axis=(-2, -1))
    return conflicts / max(num_tasks * (num_tasks - 1), 1)
