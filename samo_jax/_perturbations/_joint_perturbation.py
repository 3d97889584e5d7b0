"""`joint_perturbation`: a global gradient and a local one, in one direction."""

import jax
from jax.typing import ArrayLike

from samo_jax._checks import check_alpha, check_rho
from samo_jax._perturbations._radius import layerwise_normalize, scale_to_radius
from samo_jax._tree import PyTree


def joint_perturbation(
    mean_grad: PyTree,
    local_grad: PyTree,
    *,
    rho: ArrayLike,
    alpha: ArrayLike,
    groups: PyTree = None,
) -> PyTree:
    """SAMO's joint global-local perturbation of one task.

    `p = alpha g0 + (1 - alpha) lhat`, `eps = rho p / ||p||`, where lhat is the local
    gradient with every leaf rescaled to the norm of g0's leaf (`layerwise_normalize`).

    Args:
        mean_grad: g0, gradient of the mean loss.
        local_grad: the task's own gradient or an estimate of it, like `mean_grad`. Its
            leaves' lengths do not matter.
        rho: radius, non-negative.
        alpha: share of the global gradient, in [0, 1].
        groups: a pytree of labels, see `scale_to_radius`.

    Returns:
        eps, a pytree like `mean_grad`, in float32 (float64 under x64).

    Raises:
        ValueError: if `rho` is negative or `alpha` outside [0, 1].

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> g0, local = jnp.array([2.0, 0.0]), jnp.array([0.0, 0.5])
        >>> print(samo_jax.joint_perturbation(g0, local, rho=1.0, alpha=0.5))
        [0.70710677 0.70710677]

    References:
        Ban, Subramani and Ji, `SAMO: A Lightweight Sharpness-Aware Approach for
        Multi-Task Optimization with Joint Global-Local Perturbation
        <https://arxiv.org/abs/2507.07883>`_, 2025
    """
    check_rho(rho)
    check_alpha(alpha)
    local_grad = layerwise_normalize(local_grad, mean_grad)
    p = mix_directions(alpha, mean_grad, 1 - alpha, local_grad)
    return scale_to_radius(p, rho, groups)


def mix_directions(
    a: ArrayLike, mean_grad: PyTree, b: ArrayLike, local_grad: PyTree
) -> PyTree:
    """`a g0 + b lhat`, with a lhat in `accumulator_dtype`."""
    return jax.tree.map(
        lambda g, local: a * g.astype(local.dtype) + b * local, mean_grad, local_grad
    )
