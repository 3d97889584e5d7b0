"""`pbi`: penalty-based boundary intersection."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from samo_jax._checks import TaskValues, Vector, check_nonnegative, check_preference
from samo_jax._combiners._by_name import by_name
from samo_jax._combiners._types import Weighting
from samo_jax._combiners.losses._loss_weighting import safe_norm, scalarization
from samo_jax._named import named
from samo_jax._tasks import LossTree, per_task, present_tasks, stack_losses
from samo_jax._tree import zero_unless


def pbi_loss(
    losses: LossTree,
    *,
    theta: ArrayLike,
    preference: Vector,
    ideal: Vector | None = None,
) -> jax.Array:
    """Distance along a ray plus theta times the distance from it, `d1 + theta d2`.

    With `p` the preference at unit norm: `d1 = p'(L - z)`, `d2 = ||L - z - d1 p||`.

    Args:
        losses: L, K losses, a pytree of scalars or a (K,) array.
        theta: penalty, non-negative. 5 is usual.
        preference: the ray's direction, shape (K,), non-negative, of any length.
        ideal: start z of the ray, shape (K,). None: zeros.

    Returns:
        A scalar, whose gradient on the ray takes `d2` as flat.

    Raises:
        ValueError: if `theta` or `preference` is negative, or a shape is wrong.

    Examples:
        >>> import samo_jax
        >>> print(samo_jax.pbi_loss([3.0, 4.0], theta=2.0, preference=[1.0, 0.0]))
        11.0

    References:
        Zhang and Li, `MOEA/D: A Multiobjective Evolutionary Algorithm Based on
        Decomposition <https://doi.org/10.1109/TEVC.2007.892759>`_, 2007
    """
    _check(theta, preference)
    losses = stack_losses(losses)
    return _pbi(losses, theta=theta, preference=preference, ideal=ideal)


def _pbi(losses, present=None, *, theta, preference, ideal):
    present = present_tasks(present, len(losses))
    direction = zero_unless(present, per_task("preference", preference, len(losses), 1))
    direction = direction / safe_norm(direction)
    offset = zero_unless(present, losses - per_task("ideal", ideal, len(losses), 0))
    along = jnp.sum(direction * offset)
    theta = jnp.asarray(theta, losses.dtype)
    return along + theta * safe_norm(offset - along * direction)


def _check(theta, preference):
    check_nonnegative("theta", theta, "5 is usual; 0 ignores the distance.")
    check_preference(preference)


@named
@by_name("preference", "ideal")
def pbi(
    theta: ArrayLike, preference: TaskValues, ideal: TaskValues | None = None
) -> Weighting:
    """PBI: the weights that `pbi_loss` gives, `w = p + theta (L - z - d1 p) / d2`.

    Weights of tasks ahead of the ray can be negative. p has unit norm, as published:
    with equal preferences the weights sum to sqrt(K).

    Args:
        theta: penalty, non-negative. 5 is usual.
        preference: the ray's direction, shape (K,) or by name, non-negative, of any
            length.
        ideal: start z of the ray, shape (K,) or by name. None: zeros.

    Returns:
        A `Weighting` that ignores the Gramian. While a loss is not finite it keeps its
        last weights (at first: uniform).

    Raises:
        ValueError: if `theta` or `preference` is negative; in `update`, if a shape is
            wrong.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.pbi(theta=2.0, preference=[1.0, 0.0])
        >>> losses = jnp.array([3.0, 4.0])
        >>> weights, _ = weighting.update(jnp.eye(2), weighting.init(2), losses=losses)
        >>> print(weights)
        [1. 2.]

    References:
        Zhang and Li, `MOEA/D: A Multiobjective Evolutionary Algorithm Based on
        Decomposition <https://doi.org/10.1109/TEVC.2007.892759>`_, 2007
    """
    _check(theta, preference)
    return scalarization(partial(_pbi, theta=theta, preference=preference, ideal=ideal))
