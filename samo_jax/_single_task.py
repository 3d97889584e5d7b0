"""`single_task`: sharpness-aware training on one loss."""

import jax
import optax

from samo_jax._combiners.losses._mean import mean
from samo_jax._labels import ParamLabels
from samo_jax._multitask import multitask
from samo_jax._named import named
from samo_jax._perturbations._base import Perturbation
from samo_jax._step._devices import AxisName


@named
def single_task(
    perturbation: Perturbation,
    *,
    key: jax.Array | int | None = None,
    param_labels: ParamLabels = None,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    """Any sharpness method for one loss, first in an `optax.chain`.

    `multitask(mean(), perturbation, num_tasks=1)`: takes the clean gradient as incoming
    updates, and returns the gradient at the perturbed point. It never stores perturbed
    parameters, and one update is one step of the optimiser that follows.

    Args:
        perturbation: the sharpness method, such as `sam()`.
        key: typed PRNG key or int, required if `perturbation` draws random numbers.
        param_labels: see `multitask`; for leaves that are "frozen".
        axis_name: see `multitask`; for m-sharpness.

    Returns:
        A `GradientTransformationExtraArgs`, see `multitask`; `loss_fn` maps params to
        one scalar. Close over one dropout key, the clean pass's, and over the batch
        statistics, which only the clean pass updates.

    Raises:
        ValueError: see `multitask`.

    Examples:
        >>> import jax, jax.numpy as jnp, optax, samo_jax
        >>> tx = optax.chain(samo_jax.single_task(samo_jax.sam(0.1)), optax.sgd(0.1))
        >>> loss_fn = lambda w: jnp.sum((w - 1) ** 2)
        >>> params = jnp.array([3.0, -2.0])
        >>> state = tx.init(params)
        >>> for _ in range(50):
        ...     grads = jax.grad(loss_fn)(params)
        ...     updates, state = tx.update(grads, state, params, loss_fn=loss_fn)
        ...     params = optax.apply_updates(params, updates)
        >>> print(bool(jnp.all(jnp.abs(params - 1) < 0.05)))
        True
    """
    return multitask(
        mean(),
        perturbation,
        num_tasks=1,
        key=key,
        param_labels=param_labels,
        axis_name=axis_name,
    )
