"""`cosmos`: linear scalarisation that keeps the losses near a preference ray."""

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
from samo_jax._tree import safe_divide, zero_unless


def cosmos_loss(losses: LossTree, *, preference: Vector, lam: ArrayLike) -> jax.Array:
    """Linear scalarisation minus a cosine, `r'L - lam r'L / (||r|| ||L||)`.

    Args:
        losses: L, K losses, a pytree of scalars or a (K,) array.
        preference: r, shape (K,), non-negative; mean-like if it sums to one.
        lam: weight of the cosine, non-negative.

    Returns:
        A scalar. At zero losses the cosine counts as 0.

    Raises:
        ValueError: if `lam` or `preference` is negative, or a shape is wrong.

    Examples:
        >>> import samo_jax
        >>> print(samo_jax.cosmos_loss([3.0, 4.0], preference=[1.0, 0.0], lam=2.0))
        1.8

    References:
        Ruchte and Grabocka, `Scalable Pareto Front Approximation for Deep
        Multi-Objective Learning <https://arxiv.org/abs/2103.13392>`_, 2021
    """
    _check(preference, lam)
    return _cosmos(stack_losses(losses), preference=preference, lam=lam)


def _cosmos(losses, present=None, *, preference, lam):
    present = present_tasks(present, len(losses))
    preference = per_task("preference", preference, len(losses), 1)
    preference, losses = zero_unless(present, preference), zero_unless(present, losses)
    linear = jnp.sum(preference * losses)
    cosine = safe_divide(linear, safe_norm(preference) * safe_norm(losses))
    return linear - jnp.asarray(lam, losses.dtype) * cosine


def _check(preference, lam):
    check_nonnegative("lam", lam, "0 is plain linear scalarisation.")
    check_preference(preference)


@named
@by_name("preference")
def cosmos(preference: TaskValues, lam: ArrayLike) -> Weighting:
    """COSMOS: the weights that `cosmos_loss` gives, `w = r - lam d cos(r, L) / dL`.

    The cosine does not change when all losses are scaled, so its share of the weights
    falls as the losses grow. Weights can be negative. (The method's network, which
    takes the preference as an input, is the user's.)

    Args:
        preference: r, shape (K,) or by name, non-negative; mean-like if it sums to one.
        lam: weight of the cosine, non-negative.

    Returns:
        A `Weighting` that ignores the Gramian. While a loss is not finite it keeps its
        last weights (at first: uniform).

    Raises:
        ValueError: if `lam` or `preference` is negative; in `update`, if a shape is
            wrong.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.cosmos(preference=[0.5, 0.5], lam=0.0)
        >>> losses = jnp.array([3.0, 4.0])
        >>> weights, _ = weighting.update(jnp.eye(2), weighting.init(2), losses=losses)
        >>> print(weights)
        [0.5 0.5]

    References:
        Ruchte and Grabocka, `Scalable Pareto Front Approximation for Deep
        Multi-Objective Learning <https://arxiv.org/abs/2103.13392>`_, 2021
    """
    _check(preference, lam)
    return scalarization(partial(_cosmos, preference=preference, lam=lam))
