"""Hyperparameters: numbers, tracers or schedules, checked where they are numbers."""

from collections.abc import Callable
from numbers import Real
from typing import Any, TypeAlias, TypeGuard

import jax
from jax.typing import ArrayLike

ScalarOrSchedule: TypeAlias = ArrayLike | Callable[[jax.Array], ArrayLike]


def is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` can be checked now: not a tracer, array or schedule."""
    return isinstance(value, Real)


def resolve(value: ScalarOrSchedule, step: jax.Array) -> ArrayLike:
    """The value of a float or a schedule at `step`."""
    return value(step) if callable(value) else value


def check_rho(rho: Any) -> None:
    """The perturbation radius."""
    if is_number(rho) and not 0 <= rho < float("inf"):
        raise ValueError(
            f"`rho` must be non-negative and finite, got {rho}. 0 switches the "
            "perturbation off."
        )


def check_alpha(alpha: Any) -> None:
    """The share of the global gradient."""
    if is_number(alpha) and not 0 <= alpha <= 1:
        raise ValueError(
            f"`alpha` must be in [0, 1], the share of the global gradient, got {alpha}."
        )


def check_mu(mu: Any) -> None:
    """The step of a central difference."""
    if is_number(mu) and not 0 < mu < float("inf"):
        raise ValueError(
            f"`mu` must be positive and finite, got {mu}. The paper uses 0.01."
        )
