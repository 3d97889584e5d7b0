"""`layerwise_normalize` and `scale_to_radius`: lengths of perturbations."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from samo_jax._checks import check_like
from samo_jax._labels import SHARED
from samo_jax._tree import PyTree, group_norms, leaf_norm, safe_divide, scale_leaves


def layerwise_normalize(tree: PyTree, reference: PyTree) -> PyTree:
    """Give every leaf the norm of the reference's leaf.

    `t^d <- ||r^d|| t^d / ||t^d||` for each leaf d. A zero leaf stays zero (the official
    implementation of SAMO divides by zero there).

    Args:
        tree: leaves to rescale.
        reference: a pytree like `tree`.

    Returns:
        A pytree like `tree`, in float32 (float64 under x64).

    Raises:
        ValueError: if `reference` is not like `tree`.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> tree, reference = jnp.array([3.0, 4.0]), jnp.array([0.0, 10.0])
        >>> print(samo_jax.layerwise_normalize(tree, reference))
        [6. 8.]

    References:
        Ban, Subramani and Ji, `SAMO: A Lightweight Sharpness-Aware Approach for
        Multi-Task Optimization with Joint Global-Local Perturbation
        <https://arxiv.org/abs/2507.07883>`_, 2025
    """
    remedy = "Each of its leaves gives one of `tree` its norm."
    check_like("reference", reference, "tree", tree, remedy)
    return scale_leaves(
        tree,
        lambda leaf, other: safe_divide(leaf_norm(other), leaf_norm(leaf)),
        reference,
    )


def scale_to_radius(
    direction: PyTree,
    rho: ArrayLike | Callable[[jax.Array], ArrayLike],
    groups: PyTree = None,
) -> PyTree:
    """The step of length rho along a direction: `eps = rho p / ||p||`.

    Args:
        direction: ascent direction p.
        rho: radius, non-negative, or a function of `||p||`.
        groups: a pytree of labels like `direction`; leaves with one label share one
            norm and one radius. None: one norm over all leaves.

    Returns:
        eps, a pytree like `direction`, in float32 (float64 under x64). A zero direction
        gives a zero step, never NaN.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> print(samo_jax.scale_to_radius(jnp.array([3.0, 4.0]), 0.1))
        [0.06 0.08]
    """
    if groups is None:
        groups = jax.tree.map(lambda _: SHARED, direction)
    norms = group_norms(direction, groups)
    radius = rho if callable(rho) else lambda _norm: rho
    scales = {
        group: safe_divide(jnp.asarray(radius(norm), norm.dtype), norm)
        for group, norm in norms.items()
    }
    return scale_leaves(direction, lambda _, group: scales[group], groups)
