"""Two losses of two parameters, whose Pareto fronts are found by brute force."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Losses = dict[str, jax.Array]


class Landscape(NamedTuple):
    """A two-task problem that can be drawn.

    Attributes:
        losses: losses of tasks "a" and "b", a function of params of shape (2,).
        low: lower left corner of the domain.
        high: upper right corner of the domain.
        starts: shape (N, 2), params to start from.
        noise: standard deviation of the shift of the params at which a step sees the
            losses, as minibatches shift a loss.
        is_flat: tells which params, of shape (..., 2), are in a flat valley; None where
            there is no such thing.
    """

    losses: Callable[[jax.Array], Losses]
    low: tuple[float, float]
    high: tuple[float, float]
    starts: np.ndarray
    noise: float
    is_flat: Callable[[np.ndarray], np.ndarray] | None


class Front(NamedTuple):
    """The non-dominated points of a grid.

    Attributes:
        params: parameters, shape (M, 2).
        losses: shape (M, 2), ascending in the first.
    """

    params: np.ndarray
    losses: np.ndarray


def cagrad_losses(params: ArrayLike) -> Losses:
    """CAGrad's toy problem, from its authors' code.

    `l_i = c f_i + d q_i` with `c = max(tanh(y / 2), 0)`, `d = max(-tanh(y / 2), 0)`:
    for y > 0 two curved valleys of logarithmic depth, one per task and in conflict,
    `f_a = log |(x + 7) / 2 - tanh y| + 6`, `f_b = log |(x - 3) / 2 + tanh y - 2| + 6`
    (absolute values at least 5e-6); below them two bowls,
    `q_i = ((x -+ 7)^2 + (y + 8)^2 / 10) / 10 - 20`.

    Args:
        params: x and y.

    Returns:
        l_a and l_b.

    References:
        Liu et al., `Conflict-Averse Gradient Descent for Multi-task Learning
        <https://arxiv.org/abs/2110.14048>`_, 2021
    """
    x, y = jnp.asarray(params)
    c, d = jnp.maximum(jnp.tanh(y / 2), 0), jnp.maximum(-jnp.tanh(y / 2), 0)

    def valley(height):
        return jnp.log(jnp.maximum(jnp.abs(height), 5e-6)) + 6

    def bowl(center):
        return ((x - center) ** 2 + (y + 8) ** 2 / 10) / 10 - 20

    return {
        "a": c * valley((x + 7) / 2 - jnp.tanh(y)) + d * bowl(7),
        "b": c * valley((x - 3) / 2 + jnp.tanh(y) - 2) + d * bowl(-7),
    }


def valleys_losses(params: ArrayLike) -> Losses:
    """Two valleys of equal depth, common to both tasks, which want other places there.

    `l_i = h(x) + (y -+ 1)^2 / 2`, where h is the smooth minimum (temperature 0.1) of
    `10 (x + 1)^2`, the sharp valley, and `(x - 1.5)^2 / 2`, the flat one. The Pareto
    set has a branch in either, `-1 <= y <= 1`; in losses the two are the same.

    Args:
        params: x and y.

    Returns:
        l_a and l_b.

    Examples:
        >>> losses = valleys_losses((1.5, 1.0))
        >>> print(losses["a"], losses["b"])
        0.0 2.0
    """
    x, y = jnp.asarray(params)
    walls = jnp.stack([10 * (x + 1) ** 2, (x - 1.5) ** 2 / 2])
    h = -0.1 * jax.nn.logsumexp(-walls / 0.1)
    return {"a": h + (y - 1) ** 2 / 2, "b": h + (y + 1) ** 2 / 2}


LANDSCAPES = {
    "cagrad": Landscape(
        cagrad_losses,
        low=(-11, -11),
        high=(11, 11),
        # Those of Nash-MTL's code, of which CAGrad's has the first and the third.
        starts=np.array([[-8.5, 7.5], [0, 0], [9, 9], [-7.5, -0.5], [9, -1]], "f4"),
        noise=0.0,
        is_flat=None,
    ),
    "valleys": Landscape(
        valleys_losses,
        low=(-3.5, -2.5),
        high=(2.75, 2.5),
        # The sharp valley is on the way to the flat one.
        starts=np.array(
            [(x, y) for x in np.linspace(-3, -0.75, 8) for y in np.linspace(-2, 2, 8)],
            "f4",
        ),
        noise=0.1,
        is_flat=lambda params: params[..., 0] > -0.3,
    ),
}


def stacked_losses(landscape: Landscape, params: ArrayLike) -> np.ndarray:
    """Losses of many points.

    Args:
        landscape: landscape of the losses.
        params: parameters, shape (..., 2).

    Returns:
        Shape (..., 2), "a" first.
    """
    return np.asarray(_stacked_losses(landscape.losses, params))


@partial(jax.jit, static_argnums=0)
def _stacked_losses(losses, params):
    def stacked(point):
        return jnp.stack(list(losses(point).values()))

    return jnp.vectorize(stacked, signature="(p)->(k)")(params)


def grid(landscape: Landscape, points: int) -> np.ndarray:
    """A regular grid over the domain, shape (points, points, 2), y by rows."""
    x, y = np.linspace(landscape.low, landscape.high, points, dtype=np.float32).T
    return np.stack(np.meshgrid(x, y), axis=-1)


def non_dominated(losses: ArrayLike, decimals: int = 5) -> np.ndarray:
    """The points that no other betters in one loss and equals in the other.

    Args:
        losses: losses of N points, shape (N, 2).
        decimals: decimals of rounded losses: rounding errors break no ties.

    Returns:
        Shape (N,), bools. All of several equal points are in or out.

    Examples:
        >>> print(non_dominated([[0, 2], [1, 1], [1, 2], [2, 0], [1, 1]]))
        [ True  True False  True  True]
    """
    a, b = np.asarray(losses, float).round(decimals).T
    # Complex numbers sort by real, then imaginary part: the earlier may dominate the
    # later, never the other way round.
    unique, inverse = np.unique(a + 1j * b, return_inverse=True)
    least = np.minimum.accumulate(unique.imag)
    return np.append(True, unique.imag[1:] < least[:-1])[inverse]


def pareto_front(landscape: Landscape, points: int = 701) -> Front:
    """The Pareto front, by comparing all points of a grid."""
    params = grid(landscape, points).reshape(-1, 2)
    losses = stacked_losses(landscape, params)
    best = np.flatnonzero(non_dominated(losses))
    best = best[np.argsort(losses[best, 0], kind="stable")]
    return Front(params[best], losses[best])


def distance_to_front(losses: ArrayLike, front: Front) -> np.ndarray:
    """Euclidean distance in losses to the nearest point of the front.

    Args:
        losses: losses of points, shape (..., 2).
        front: front from `pareto_front`.

    Returns:
        Shape (...).
    """
    offsets = np.asarray(losses)[..., None, :] - front.losses
    return np.linalg.norm(offsets, axis=-1).min(axis=-1)
