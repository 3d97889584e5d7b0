"""Hyperparameters: numbers, tracers or schedules, checked where they are numbers."""

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, TypeAlias, TypeGuard

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from samo_jax._arguments import check_function

ScalarOrSchedule: TypeAlias = ArrayLike | Callable[[jax.Array], ArrayLike]

# By type, where these go that are taken for a radius.
_NO_RADIUS = {
    "Perturbation": "Use `samo_jax.multitask(solver, perturbation)`",
    "Direction": "Pass it as `direction` or `local`",
}


def is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` can be checked now: not a tracer, array or schedule."""
    return isinstance(value, Real)


def resolve(name: str, value: ScalarOrSchedule, step: jax.Array) -> ArrayLike:
    """The value of a float or a schedule at `step`."""
    if not callable(value):
        return value
    remedy = "Call the schedule's factory, such as `optax.linear_schedule(0, 1, 100)`."
    check_function(name, value, "the step", remedy)
    at_step = value(step)
    check_scalar(name, at_step, remedy)
    return at_step


def is_scalar(value: Any) -> bool:
    """Whether it is a number, or a real scalar array or tracer."""
    return is_number(value) or (
        getattr(value, "shape", None) == ()
        and (
            jnp.issubdtype(value.dtype, jnp.floating)
            or jnp.issubdtype(value.dtype, jnp.integer)
        )
    )


def check_scalar(name: str, value: Any, remedy: str) -> None:
    """Raise unless it is a number, a scalar array or tracer, or a schedule."""
    if not (is_scalar(value) or callable(value)):
        raise ValueError(
            f"`{name}` must be one real number or a schedule that returns one, got "
            f"{value!r}. {remedy}"
        )


def check_nonnegative(name: str, value: Any, remedy: str) -> None:
    """Raise unless a number is non-negative and finite."""
    check_scalar(name, value, remedy)
    if is_number(value) and not 0 <= value < float("inf"):
        raise ValueError(
            f"`{name}` must be non-negative and finite, got {value}. {remedy}"
        )


def check_positive(name: str, value: Any, remedy: str) -> None:
    """Raise unless a number is positive and finite."""
    check_scalar(name, value, remedy)
    if is_number(value) and not 0 < value < float("inf"):
        raise ValueError(f"`{name}` must be positive and finite, got {value}. {remedy}")


def check_share(name: str, value: Any, remedy: str) -> None:
    """Raise unless a number is in [0, 1]."""
    check_scalar(name, value, remedy)
    if is_number(value) and not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be in [0, 1], got {value}. {remedy}")


def check_count(name: str, value: Any, remedy: str, *, least: int = 1) -> None:
    """Raise unless it is a positive int, or one that is not negative."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least:
        sign = "positive" if least else "non-negative"
        raise ValueError(f"`{name}` must be a {sign} int, got {value!r}. {remedy}")


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise unless it is one of the choices."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}, got {value!r}.")


def check_rho(rho: Any) -> None:
    """The perturbation radius."""
    kind = type(rho).__name__
    if kind in _NO_RADIUS:
        raise ValueError(
            "`rho` must be one real number or a schedule that returns one, got a "
            f"{kind}. {_NO_RADIUS[kind]}."
        )
    check_nonnegative("rho", rho, "0 switches the perturbation off.")


def check_alpha(alpha: Any, otherwise: str = "") -> None:
    """The share of the global gradient."""
    check_share("alpha", alpha, f"It is the share of the global gradient{otherwise}.")


def check_mu(mu: Any) -> None:
    """The step of a central difference."""
    check_positive("mu", mu, "The paper uses 0.01.")
