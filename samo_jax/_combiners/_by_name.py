"""`by_name`: combiners that take one number per task also by the tasks' names."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from samo_jax._tasks import in_task_order, values_by_name

P = ParamSpec("P")
T = TypeVar("T")


def by_name(*names: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A factory of which these arguments may be a pytree in the losses' structure.

    The factory itself gets a sequence. It is in the order of the pytree's leaves until
    an update says what the tasks are (`tasks`); these must have the same names, and
    their order counts from there on.
    """

    def decorate(factory: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(factory)

        @functools.wraps(factory)
        def make(*args: P.args, **kwargs: P.kwargs) -> T:
            given = signature.bind(*args, **kwargs).arguments
            found = {
                name: values
                for name in names
                if (values := values_by_name(name, given.get(name))) is not None
            }
            return (
                _checked(factory, given, found) if found else factory(*args, **kwargs)
            )

        return make

    return decorate


def _checked(
    factory: Callable[..., Any], given: dict[str, Any], found: dict[str, dict[str, Any]]
) -> Any:
    def made(tasks: tuple[str, ...] | None) -> Any:
        ordered = {
            name: in_task_order(name, values, tuple(values) if tasks is None else tasks)
            for name, values in found.items()
        }
        return factory(**given | ordered)

    combiner = made(None)

    def init(*args: Any) -> Any:
        for name, values in found.items():
            if len(values) != args[-1]:
                raise ValueError(
                    f"`{name}` must name each of the {args[-1]} tasks, got "
                    f"{', '.join(values) or 'none'}. Name them like the losses."
                )
        return combiner.init(*args)

    @functools.wraps(combiner.update)
    def update(*args: Any, tasks: tuple[str, ...] | None = None, **kwargs: Any) -> Any:
        return made(tasks).update(*args, tasks=tasks, **kwargs)

    return combiner._replace(init=init, update=update)
