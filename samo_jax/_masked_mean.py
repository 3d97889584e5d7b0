"""`masked_mean`: losses of examples of which some have no label."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def masked_mean(
    values: ArrayLike, mask: ArrayLike, axis: int | Sequence[int] | None = None
) -> jax.Array:
    """The mean over the examples that have a label, `sum_n m_n v_n / sum_n m_n`.

    Without any it is NaN, with a gradient of zero: as a loss it makes its task absent
    from the step (see `multitask`), and leaves the gradient of the mean loss finite.

    What the loss of an example without a label is does not matter, but its derivative
    must be finite: give it some valid label first, `jnp.where(mask, labels, 0)`.

    Args:
        values: values such as the loss of each example or pixel, shape (N, ...).
        mask: booleans that say which ones have a label, in the shape of `values` or of
            its first axes, such as (N,).
        axis: the axis, or axes, to take the mean over. None: all.

    Returns:
        The mean, summed in float32 (float64 for such `values`): a scalar, or the shape
        of `values` without the axes.

    Raises:
        ValueError: if `mask` is not of booleans, or not in the shape of `values`.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> errors, labelled = jnp.array([1.0, 5.0, 3.0]), jnp.array([1, 0, 1]) == 1
        >>> print(samo_jax.masked_mean(errors, labelled))
        2.0
        >>> print(samo_jax.masked_mean(errors, jnp.zeros(3, bool)))
        nan
    """
    values, mask = jnp.asarray(values), jnp.asarray(mask)
    if mask.dtype != bool:
        raise ValueError(
            f"`mask` must be booleans, got dtype {mask.dtype}. Compare: `labels >= 0`."
        )
    if mask.shape != values.shape[: mask.ndim]:
        raise ValueError(
            f"`mask` must have the shape of `values`, {values.shape}, or of its first "
            f"axes, got {mask.shape}. Say of each example whether it has a label."
        )
    mask = jnp.expand_dims(mask, tuple(range(mask.ndim, values.ndim)))
    mask = jnp.broadcast_to(mask, values.shape)
    dtype = jnp.promote_types(values.dtype, jnp.float32)
    total = jnp.sum(jnp.where(mask, values, 0), axis, dtype)
    count = jnp.sum(mask, axis, jnp.int32)
    mean = total / jnp.maximum(count, 1).astype(dtype)
    return jnp.where(count > 0, mean, jnp.nan)
