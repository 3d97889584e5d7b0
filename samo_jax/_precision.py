"""`mixed_precision`: losses in half precision, of parameters kept in float32."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from samo_jax._by_task import map_params
from samo_jax._checks import check_params, check_positive, is_scalar
from samo_jax._tasks import losses_of
from samo_jax._tree import PyTree, accumulator_dtype


def mixed_precision(
    loss_fn: Callable[..., Any],
    dtype: DTypeLike,
    *,
    loss_scale: ArrayLike | None = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """`loss_fn` computed in `dtype`, as a function of float32 master parameters.

    `l(theta) = loss_fn(cast(theta))`, with losses and gradients in float32.

    A loss scale S multiplies what flows backwards inside `loss_fn` and is divided out
    where it leaves: `grad l(theta) = (1 / S) cast'(S grad loss_fn)`. Losses, gradients,
    norms and probes stay the true ones. (Scaling losses before the step, and gradients
    after it, would change the step: combiners and perturbations see the scale.)

    Batches are not cast: a float32 input makes the computation float32 again.

    Args:
        loss_fn: `loss_fn(params, *args, **kwargs)` returning losses (a pytree of
            scalars or an array), or `(losses, aux)` with `has_aux`.
        dtype: dtype of the parameters that `loss_fn` gets, such as `jnp.bfloat16`.
        loss_scale: S, a positive number or scalar, traced or not. float16 needs it: its
            smallest number is 6e-8. None: 1.
        has_aux: whether `loss_fn` also returns auxiliary data, handed on as they are.

    Returns:
        A function like `loss_fn`: pass it to `mean_value_and_grad` and as `loss_fn=`.
        With a `loss_scale` it has no forward-mode derivative (`jax.jvp`) of its own;
        its gradient has.

    Raises:
        ValueError: if `loss_fn` is no function, `dtype` no floating-point type, or
            `loss_scale` not positive; when called, if a parameter is not a
            floating-point array of 32 bits or more.

    Examples:
        >>> import jax, jax.numpy as jnp, samo_jax
        >>> loss_fn = lambda w: 1e-4 * jnp.sum(1e-4 * w)
        >>> params = jnp.array([100.0, 200.0])
        >>> half = samo_jax.mixed_precision(loss_fn, jnp.float16)
        >>> scaled = samo_jax.mixed_precision(loss_fn, jnp.float16, loss_scale=2.0**15)
        >>> print(jax.grad(half)(params), jax.grad(scaled)(params))
        [0. 0.] [1.0...e-08 1.0...e-08]

    References:
        Micikevicius, Narang, Alben, Diamos, Elsen, Garcia, Ginsburg, Houston, Kuchaiev,
        Venkatesh and Wu, `Mixed Precision Training <https://arxiv.org/abs/1710.03740>`_,
        2018
    """
    if not callable(loss_fn):
        raise ValueError(
            f"`loss_fn` must be a function, got {loss_fn!r}. Call what this returns: "
            "`mixed_precision(loss_fn, jnp.bfloat16)(params)`."
        )
    _check_dtype(dtype)
    if loss_scale is not None:
        _check_loss_scale(loss_scale)
        loss_scale = jnp.asarray(loss_scale, accumulator_dtype())

    def to_half(params):
        _check_masters(params)
        if loss_scale is not None:
            params = _scale_cotangents(params, 1 / loss_scale)
        return _cast(params, dtype)

    def to_masters(output):
        # In float32 before they are scaled: S itself may be more than `dtype` holds.
        losses = _cast(losses_of(output, has_aux), accumulator_dtype())
        if loss_scale is not None:
            losses = _scale_cotangents(losses, loss_scale)
        return (losses, output[1]) if has_aux else losses

    return map_params(loss_fn, to_half, to_masters)


def _cast(tree: PyTree, dtype: DTypeLike) -> PyTree:
    """Floating-point leaves in `dtype`."""

    def cast(leaf):
        is_float = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return jnp.asarray(leaf, dtype) if is_float else leaf

    return jax.tree.map(cast, tree)


def _scale_cotangents(tree: PyTree, scale: jax.Array) -> PyTree:
    """`tree` itself; what flows back through it is multiplied by `scale`."""
    # Leaf by leaf: nothing flows back through the losses of other tasks.
    return jax.tree.map(lambda leaf: _scale_cotangent(leaf, scale), tree)


# Its rule is made of plain operations, so that derivatives of gradients are right. (As
# a `custom_jvp` or `linear_call` it would scale Hessians.)
@jax.custom_vjp
def _scale_cotangent(leaf: jax.Array, scale: jax.Array) -> jax.Array:
    del scale
    return leaf


_scale_cotangent.defvjp(
    lambda leaf, scale: (leaf, scale),
    lambda scale, cotangent: (cotangent * scale.astype(cotangent.dtype), None),
)


def _check_dtype(dtype: Any) -> None:
    remedy = "Pass `jnp.bfloat16` or `jnp.float16`."
    try:
        is_float = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        is_float = False
    if not is_float:
        raise ValueError(
            f"`dtype` must be a floating-point type, got {dtype!r}. {remedy}"
        )


def _check_loss_scale(loss_scale: Any) -> None:
    remedy = "A power of two, such as 2.0**15, costs no digit."
    if not is_scalar(loss_scale):
        raise ValueError(
            f"`loss_scale` must be a number or a scalar array, got {loss_scale!r}. "
            f"{remedy}"
        )
    check_positive("loss_scale", loss_scale, remedy)


def _check_masters(params: PyTree) -> None:
    check_params(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jnp.finfo(leaf.dtype).bits < 32:
            raise ValueError(
                "`params` must be float32 masters, got leaf "
                f"'{jax.tree_util.keystr(path)}' of type {leaf.dtype}. Convert them "
                "once, before the optimiser's `init`; `loss_fn` gets them cast."
            )
