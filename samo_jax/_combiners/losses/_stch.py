"""`stch`: smooth Tchebycheff scalarisation."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from samo_jax._checks import TaskValues, Vector, check_positive, check_preference
from samo_jax._combiners._by_name import by_name
from samo_jax._combiners._types import Weighting
from samo_jax._combiners.losses._loss_weighting import scalarization
from samo_jax._named import named
from samo_jax._tasks import LossTree, per_task, present_tasks, stack_losses


def stch_loss(
    losses: LossTree,
    *,
    mu: ArrayLike,
    preference: Vector | None = None,
    reference: Vector | None = None,
) -> jax.Array:
    """The smooth maximum `mu log sum_i exp(p_i (L_i - z_i) / mu)`.

    It lies between the (weighted) maximum of the losses and that plus `mu log K`. With
    equal preferences of 1 its gradient is a softmax, which sums to one. Papers write
    preferences that sum to one: multiply them, and mu, by K for the same proportions;
    the value and gradient are then K times theirs.

    Args:
        losses: L, K losses, a pytree of scalars or a (K,) array.
        mu: smoothing, positive, in the unit of the losses. 0 is the maximum.
        preference: p, shape (K,), non-negative. None: ones.
        reference: z, shape (K,), the ideal point. None: zeros.

    Returns:
        A scalar.

    Raises:
        ValueError: if `mu` is not positive, `preference` is negative, or a shape is
            wrong.

    Examples:
        >>> import samo_jax
        >>> print(f"{samo_jax.stch_loss([1.0, 2.0], mu=0.1):.4f}")
        2.0000

    References:
        Lin et al., `Smooth Tchebycheff Scalarization for Multi-Objective Optimization
        <https://arxiv.org/abs/2402.19078>`_, 2024
    """
    _check(mu, preference)
    return _stch(
        stack_losses(losses), mu=mu, preference=preference, reference=reference
    )


def _stch(losses, present=None, *, mu, preference, reference):
    preference = per_task("preference", preference, len(losses), 1)
    reference = per_task("reference", reference, len(losses), 0)
    mu = jnp.asarray(mu, losses.dtype)
    exponents = preference * (losses - reference) / mu
    present = present_tasks(present, len(losses))
    return mu * jax.nn.logsumexp(jnp.where(present, exponents, -jnp.inf))


def _check(mu, preference):
    check_positive("mu", mu, "A tenth of a typical loss is a start.")
    check_preference(preference)


@named
@by_name("preference", "reference")
def stch(
    mu: ArrayLike,
    preference: TaskValues | None = None,
    reference: TaskValues | None = None,
) -> Weighting:
    """STCH: the weights that `stch_loss` gives, `w = p * softmax(p (L - z) / mu)`.

    TorchJD's preferences of 1/K are mu K here, and its weights 1/K of these. LibMTL
    takes logarithms first: there `log_losses(stch(mu))` comes closest, without its
    warm-up and times K.

    Args:
        mu: smoothing, positive, in the unit of the losses.
        preference: p, shape (K,) or by name, non-negative. None: ones, and the weights
            sum to one.
        reference: z, shape (K,) or by name, the ideal point. None: zeros.

    Returns:
        A `Weighting` that ignores the Gramian. While a loss is not finite it keeps its
        last weights (at first: uniform).

    Raises:
        ValueError: if `mu` is not positive or `preference` is negative; in `update`, if
            a shape is wrong.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.stch(mu=1.0)
        >>> losses = jnp.log(jnp.array([1.0, 3.0]))
        >>> weights, _ = weighting.update(jnp.eye(2), weighting.init(2), losses=losses)
        >>> print(weights.round(2))
        [0.25 0.75]

    References:
        Lin et al., `Smooth Tchebycheff Scalarization for Multi-Objective Optimization
        <https://arxiv.org/abs/2402.19078>`_, 2024
    """
    _check(mu, preference)
    return scalarization(
        partial(_stch, mu=mu, preference=preference, reference=reference)
    )
