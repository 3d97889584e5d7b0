"""Random gradient matrices of a prescribed rank and kind of stationarity.

With `v >= 0, v != 0, v'J = 0`, J is weakly Pareto-stationary; strongly so if `v > 0`.
A vector u of J's column space with `u >= 0, u != 0` rules out `v > 0` (v'u = 0), and
`u > 0` rules out any v.
"""

import numpy as np


def _orthonormal(rng, size, rank, first=()):
    """`rank` orthonormal columns, among them those of `first`, normalised."""
    columns = [np.reshape(column, (size, 1)) for column in first]
    noise = rng.normal(size=(size, rank - len(columns)))
    basis = np.linalg.qr(np.hstack([*columns, noise]))[0]
    return np.where(np.abs(basis) < 1e-14, 0, basis)


def _with_left_space(left, num_columns, rng):
    """A matrix whose column space `left` spans."""
    rank = left.shape[1]
    right = _orthonormal(rng, num_columns, rank)
    return (left * np.abs(rng.normal(size=rank))) @ right.T


def _positive(rng, size):
    return rng.uniform(0.1, 1, size)


def normal(num_rows, num_columns, rank, rng):
    """Random singular vectors, half-normal singular values."""
    return _with_left_space(_orthonormal(rng, num_rows, rank), num_columns, rng)


def strong(num_rows, num_columns, rank, rng):
    """Strongly stationary: `v'J = 0` for a v > 0."""
    v = _positive(rng, num_rows)
    left = _orthonormal(rng, num_rows, rank + 1, [v])
    return _with_left_space(left[:, 1:], num_columns, rng)


def strictly_weak(num_rows, num_columns, rank, rng):
    """Weakly stationary, not strongly: v on some of the rows, u on the others."""
    on_some = rng.permutation(num_rows) < rng.integers(1, num_rows)
    v = np.where(on_some, _positive(rng, num_rows), 0)
    u = np.where(on_some, 0, _positive(rng, num_rows))
    left = _orthonormal(rng, num_rows, rank + 1, [v, u])
    return _with_left_space(left[:, 1:], num_columns, rng)


def non_weak(num_rows, num_columns, rank, rng):
    """Not stationary: a left singular vector u > 0."""
    left = _orthonormal(rng, num_rows, rank, [_positive(rng, num_rows)])
    return _with_left_space(left, num_columns, rng)
