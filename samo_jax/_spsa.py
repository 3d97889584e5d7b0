"""`directional_difference` and `spsa_gradient`: gradients by forward passes alone."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from samo_jax._checks import as_key, check_like, check_mu
from samo_jax._tasks import LossFn, LossTree
from samo_jax._tree import PyTree, accumulator_dtype, cast_like, displace, scale_leaves

Distribution: TypeAlias = Literal["normal", "rademacher"]


def random_direction(
    key: jax.Array, params: PyTree, distribution: Distribution = "normal"
) -> PyTree:
    """`z ~ N(0, I)`, or random signs, like `params`, in `accumulator_dtype`."""
    sampler: Any = jax.random.normal if distribution == "normal" else random_signs
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.key_data(jax.random.split(key, len(leaves)))
    places: dict[tuple[int, ...], list[int]] = {}
    for place, leaf in enumerate(leaves):
        places.setdefault(jnp.shape(leaf), []).append(place)
    # Leaves of one shape are drawn by one operation: each is slow to compile.
    drawn = {}
    for shape, alike in places.items():
        draw = partial(sampler, shape=shape, dtype=accumulator_dtype())
        own = jax.random.wrap_key_data(
            keys[jnp.array(alike)], impl=jax.random.key_impl(key)
        )
        drawn |= zip(alike, jax.vmap(draw)(own), strict=True)
    return structure.unflatten([drawn[place] for place in range(len(leaves))])


def random_signs(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """Random signs, drawn from one bit each instead of `jax.random.rademacher`'s 32."""
    *rest, last = shape or (1,)
    words = jax.random.bits(key, (*rest, -(-last // 32)))
    places = jnp.arange(32, dtype=words.dtype)
    bits = jnp.expand_dims(words, -1) >> places & 1
    bits = bits.reshape(*rest, -1)[..., :last].reshape(shape)
    return 1 - 2 * bits.astype(dtype)


def directional_difference(
    loss_fn: LossFn, params: PyTree, direction: PyTree, *, mu: ArrayLike
) -> LossTree:
    """Central difference of every loss along a direction.

    `c = (l(theta + mu z) - l(theta - mu z)) / (2 mu)`, from forward passes alone. Both
    sides must see the same randomness: close `loss_fn` over one dropout key.

    Args:
        loss_fn: params to a pytree of losses, of any shape.
        params: parameters theta.
        direction: direction z, a pytree like `params`.
        mu: step, positive. `mu ||z||` is the distance probed: for a standard normal z
            it grows as `mu sqrt(n)` with the number of parameters.

    Returns:
        c, a pytree like `loss_fn`'s output, in float32 (float64 under x64).

    Raises:
        ValueError: if `mu` is not positive, or `direction` not like `params`.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> loss_fn = lambda w: {"a": jnp.sum(w**2), "b": jnp.sum(w)}
        >>> w, z = jnp.array([1.0, 2.0]), jnp.array([0.0, 1.0])
        >>> c = samo_jax.directional_difference(loss_fn, w, z, mu=0.5)
        >>> print(c["a"], c["b"])
        4.0 1.0

    References:
        Spall, `Multivariate stochastic approximation using a simultaneous perturbation
        gradient approximation <https://doi.org/10.1109/9.119632>`_, 1992
    """
    check_mu(mu)
    remedy = "Each entry of z is one parameter's."
    check_like("direction", direction, "params", params, remedy)
    dtype = accumulator_dtype()
    step = scale_leaves(direction, lambda _: mu)
    plus = loss_fn(displace(params, step))
    minus = loss_fn(displace(params, jax.tree.map(jnp.negative, step)))
    return jax.tree.map(
        lambda a, b: (jnp.asarray(a, dtype) - jnp.asarray(b, dtype)) / (2 * mu),
        plus,
        minus,
    )


def spsa_gradient(
    key: jax.Array | int, loss_fn: LossFn, params: PyTree, *, mu: ArrayLike
) -> PyTree:
    """One-probe SPSA estimate of a gradient, `ghat = c z` with `z ~ N(0, I)`.

    Unbiased for a linear loss and exact along z for a quadratic one, but noisy: in n
    dimensions its cosine with the gradient is about `sqrt(2 / (pi n))` in magnitude.

    Args:
        key: a typed PRNG key or int.
        loss_fn: params to one scalar.
        params: parameters theta.
        mu: step of the central difference, positive.

    Returns:
        ghat, a pytree like `params`.

    Raises:
        ValueError: if `mu` is not positive or `loss_fn` returns more than one scalar.

    Examples:
        >>> import jax, jax.numpy as jnp, samo_jax
        >>> w = jnp.array([1.0])
        >>> grad_fn = lambda key: samo_jax.spsa_gradient(key, jnp.sum, w, mu=0.1)
        >>> estimates = jax.vmap(grad_fn)(jax.random.split(jax.random.key(0), 4096))
        >>> print(bool(abs(estimates.mean() - 1) < 0.1))
        True

    References:
        Spall, `Multivariate stochastic approximation using a simultaneous perturbation
        gradient approximation <https://doi.org/10.1109/9.119632>`_, 1992
    """
    z = random_direction(as_key(key), params)
    differences = jax.tree.leaves(directional_difference(loss_fn, params, z, mu=mu))
    shapes = [jnp.shape(difference) for difference in differences]
    if shapes != [()]:
        raise ValueError(
            f"`loss_fn` must return one scalar, got shapes {shapes}. Select one task, "
            "or use `samo_jax.directional_difference` for all."
        )
    return cast_like(estimate_along(differences, [z]), params)


def probe_differences(
    losses_at: Callable[[PyTree], jax.Array],
    params: PyTree,
    probes: Sequence[PyTree],
    *,
    mu: ArrayLike,
    antithetic: bool,
) -> jax.Array:
    """`c_k` of each probe along a last axis: `directional_difference`, or one-sided."""
    if antithetic:
        differences = [
            directional_difference(losses_at, params, z, mu=mu) for z in probes
        ]
    else:
        clean = losses_at(params)
        differences = [
            (losses_at(displace(params, scale_leaves(z, lambda _: mu))) - clean) / mu
            for z in probes
        ]
    return jnp.stack(differences, axis=-1)


def estimate_along(coefficients: Any, probes: Sequence[PyTree]) -> PyTree:
    """The estimate of a gradient, `ghat = sum_k c_k z_k`."""
    return jax.tree.map(
        lambda *z: sum(c * z for c, z in zip(coefficients, z, strict=True)), *probes
    )
