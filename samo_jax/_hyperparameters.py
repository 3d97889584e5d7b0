"""Hyperparameters: numbers, tracers or schedules, checked where they are numbers."""

from collections.abc import Callable
from numbers import Integral, Real
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


def check_nonnegative(name: str, value: Any, remedy: str) -> None:
    """Raise unless a number is non-negative and finite."""
    if is_number(value) and not 0 <= value < float("inf"):
        raise ValueError(
            f"`{name}` must be non-negative and finite, got {value}. {remedy}"
        )


def check_positive(name: str, value: Any, remedy: str) -> None:
    """Raise unless a number is positive and finite."""
    if is_number(value) and not 0 < value < float("inf"):
        raise ValueError(f"`{name}` must be positive and finite, got {value}. {remedy}")


def check_share(name: str, value: Any, remedy: str) -> None:
    """Raise unless a number is in [0, 1]."""
    if is_number(value) and not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be in [0, 1], got {value}. {remedy}")


def check_count(name: str, value: Any) -> None:
    """Raise unless it is a positive int."""
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"`{name}` must be a positive int, got {value!r}.")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise unless it is one of the choices."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}, got {value!r}.")


def check_rho(rho: Any) -> None:
    """The perturbation radius."""
    check_nonnegative("rho", rho, "0 switches the perturbation off.")


def check_alpha(alpha: Any) -> None:
    """The share of the global gradient."""
    check_share("alpha", alpha, "It is the share of the global gradient.")


def check_mu(mu: Any) -> None:
    """The step of a central difference."""
    check_positive("mu", mu, "The paper uses 0.01.")
