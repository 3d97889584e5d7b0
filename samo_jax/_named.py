"""`named`: results of factories that say how they were made."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import optax

P = ParamSpec("P")
T = TypeVar("T")


def named(factory: Callable[P, T]) -> Callable[P, T]:
    """A factory whose result has the call as its `repr`.

    `samo_jax.fairgrad(alpha=2.0)`: arguments that have their defaults are left out.
    """
    signature = inspect.signature(factory)

    @functools.wraps(factory)
    def make(*args: P.args, **kwargs: P.kwargs) -> T:
        result: Any = factory(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        shown = [
            f"{name}={value!r}"
            for name, value in given.items()
            if not _is_default(value, signature.parameters[name].default)
        ]
        call = f"samo_jax.{factory.__name__}({', '.join(shown)})"
        if isinstance(result, optax.GradientTransformationExtraArgs):
            result = NamedTransformation(*result)
            result.name = call
            return cast(T, result)
        return result._replace(name=call)

    return make


def repr_of(result: Any) -> str:
    """The call that made a `NamedTuple`, or its fields."""
    if result.name:
        return result.name
    fields = (f"{name}={value!r}" for name, value in result._asdict().items())
    return f"{type(result).__name__}({', '.join(fields)})"


class NamedTransformation(optax.GradientTransformationExtraArgs):
    """An Optax transformation with the call that made it."""

    name = ""

    def __repr__(self) -> str:
        """The call, or the fields."""
        return repr_of(self)


def _is_default(value: Any, default: Any) -> bool:
    """Whether it is the default itself, or a number or string like it."""
    plain = isinstance(value, bool | int | float | str)
    return value is default or (
        plain and type(value) is type(default) and value == default
    )
