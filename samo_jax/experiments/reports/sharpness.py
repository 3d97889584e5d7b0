"""Sharpness of a minimum: Hessian spectrum, slices of the loss, worst cases."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike
from scipy.sparse.linalg import LinearOperator, eigsh

import samo_jax

PyTree: TypeAlias = Any
Loss: TypeAlias = Callable[[PyTree], jax.Array]


class Sharpness(NamedTuple):
    """Sharpness: how much a loss increases at a distance.

    Attributes:
        ascent: `l(theta + rho g / ||g||) - l(theta)`, of the step that SAM takes.
        random: mean of `l(theta + rho u) - l(theta)` over random unit vectors u.
    """

    ascent: jax.Array
    random: jax.Array


def hessian_eigenvalues(
    loss_fn: Loss, params: PyTree, num: int = 5, *, seed: int = 0
) -> np.ndarray:
    """The largest eigenvalues of a loss's Hessian, by Lanczos's method.

    The Hessian is never formed: its product with a vector is the forward derivative of
    the gradient. SAMO's authors take the mean loss over tasks as a function of the
    shared parameters, and of the eigenvalues those of largest magnitude.

    Args:
        loss_fn: a scalar function of the parameters; of all data, or of a fixed batch.
        params: n numbers in all, of one dtype.
        num: number of eigenvalues, less than n.
        seed: seed of the vector to start from.

    Returns:
        Shape (num,), descending, to about four digits; NaN where the Hessian is not
        finite, as after training that diverged.

    Raises:
        ValueError: if `num` is not in [1, n - 1].

    Examples:
        >>> loss_fn = lambda w: jnp.sum(jnp.array([1.0, 2.0, 5.0]) * w**2 / 2)
        >>> print(hessian_eigenvalues(loss_fn, jnp.zeros(3), 2).round(3))
        [5. 2.]
    """
    flat, unravel = ravel_pytree(params)
    if not 1 <= num < flat.size:
        raise ValueError(
            "`num` must be at least 1 and less than the number of parameters, "
            f"{flat.size}, got {num}. Ask for fewer eigenvalues."
        )

    @jax.jit
    def product(flat, vector):
        gradient = jax.grad(lambda flat: loss_fn(unravel(flat)))
        return jax.jvp(gradient, (flat,), (vector,))[1]

    # Its stubs do not know the constructor's arguments.
    hessian = cast(Any, LinearOperator)(
        (flat.size, flat.size),
        matvec=lambda vector: np.asarray(product(flat, vector.ravel())),
        dtype=flat.dtype,
    )
    start = np.random.default_rng(seed).normal(size=flat.size).astype(flat.dtype)
    if not np.all(np.isfinite(product(flat, start))):
        return np.full(num, np.nan)
    # Rounding in float32 sets a limit to what can be asked for.
    values = eigsh(
        hessian, num, which="LA", v0=start, tol=1e-4, return_eigenvectors=False
    )
    return np.sort(values)[::-1]


def eigenvalue_ratio(eigenvalues: ArrayLike, index: int = 5) -> float:
    """The ratio by which the sharpest direction stands out: `lambda_1 / lambda_index`.

    Args:
        eigenvalues: descending, at least `index` of them.
        index: counted from one; SAMO's authors use 5.

    Examples:
        >>> eigenvalue_ratio([6.0, 4.0, 3.0, 2.5, 2.0])
        3.0
    """
    values = np.asarray(eigenvalues)
    return float(values[0] / values[index - 1])


def filter_normalized(direction: PyTree, params: PyTree) -> PyTree:
    """Give every filter the norm of the parameters' filter.

    A filter is the weights of one output, `leaf[..., i]` as Flax stores kernels.
    Vectors and scalars (biases, batch norm) become zero, as in the authors' code.

    Args:
        direction: direction, such as Gaussian noise.
        params: a pytree like it.

    Returns:
        A pytree like `direction`. A filter of zeros stays zero.

    Examples:
        >>> kernel = jnp.array([[3.0, 0.0], [4.0, 2.0]])
        >>> print(filter_normalized(jnp.ones((2, 2)), kernel))
        [[3.535534  1.4142135]
         [3.535534  1.4142135]]

    References:
        Li et al., `Visualizing the Loss Landscape of Neural Nets
        <https://arxiv.org/abs/1712.09913>`_, 2018
    """

    def normalize(d, p):
        if d.ndim <= 1:
            return jnp.zeros_like(d)
        d_norms, p_norms = (
            jnp.sqrt(jnp.sum(leaf**2, axis=range(leaf.ndim - 1))) for leaf in (d, p)
        )
        return d * p_norms / jnp.where(d_norms > 0, d_norms, 1)

    return jax.tree.map(normalize, direction, params)


def random_directions(key: jax.Array, params: PyTree) -> tuple[PyTree, PyTree]:
    """Two filter-normalised Gaussian directions, for `loss_slice`."""
    first, second = (_gaussian(key, params) for key in jax.random.split(key))
    return filter_normalized(first, params), filter_normalized(second, params)


def loss_slice(
    loss_fn: Loss,
    params: PyTree,
    directions: tuple[PyTree, PyTree],
    extent: float = 1.0,
    points: int = 25,
) -> np.ndarray:
    """The loss on a square of the plane through the parameters.

    `values[j, i] = l(theta + s_i d_1 + s_j d_2)`, s evenly from -extent to extent.

    Args:
        loss_fn: a scalar function of the parameters.
        params: theta, the centre.
        directions: d_1 and d_2, pytrees like `params`, see `random_directions`.
        extent: half of the side, in units of the directions.
        points: number of points along a side; an odd one has the centre.

    Returns:
        Shape (points, points), d_2 by rows.
    """

    def loss_at(step):
        moved = jax.tree.map(
            lambda p, d1, d2: p + (step[0] * d1 + step[1] * d2).astype(p.dtype),
            params,
            *directions,
        )
        return loss_fn(moved)

    steps = np.linspace(-extent, extent, points, dtype=np.float32)
    square = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    values = jax.jit(partial(jax.lax.map, loss_at))(square)
    return np.asarray(values).reshape(points, points)


def sharpness(
    loss_fn: Loss, params: PyTree, rho: float, *, key: jax.Array, draws: int = 16
) -> Sharpness:
    """Sharpness of a loss: how much it increases at a distance of rho.

    Args:
        loss_fn: l, a scalar function of the parameters.
        params: parameters theta.
        rho: radius, non-negative.
        key: key of the random vectors u.
        draws: number of the random vectors.

    Returns:
        A `Sharpness`. Neither is the worst case itself: the first is a lower bound of
        it, exact to first order in rho.
    """

    @jax.jit
    def estimate(params, key):
        loss, grads = jax.value_and_grad(loss_fn)(params)

        def increase(direction):
            step = samo_jax.scale_to_radius(direction, rho)
            moved = jax.tree.map(lambda p, e: p + e.astype(p.dtype), params, step)
            return loss_fn(moved) - loss

        def of_draw(key):
            return increase(_gaussian(key, params))

        increases = jax.lax.map(of_draw, jax.random.split(key, draws))
        return Sharpness(increase(grads), jnp.mean(increases))

    return estimate(params, key)


def _gaussian(key, params):
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noise = [
        jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, noise)
