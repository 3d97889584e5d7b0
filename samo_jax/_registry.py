"""`CombinerEntry` and `PerturbationEntry`: entries of the three registries."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import jax

Family: TypeAlias = Literal["losses", "gramian", "gradients"]


class CombinerEntry(NamedTuple):
    """One combiner that the library has.

    Attributes:
        factory: function that makes it.
        family: source of its weights or directions: losses, Gramian or gradients.
        about: description, and when to choose it, in Markdown.
        cost: work beyond the K gradients.
        promises: condition of each promise ("" for always): "N", no conflict; "S", the
            line of d does not change with the losses' scales; "L", d is linear in
            them; "+", no weight is negative.
        needs: data that a step has to give it.
        call: text of the call in tables.
        arguments: arguments that have no default, from the number of tasks and a key.
    """

    factory: Callable[..., Any]
    family: Family
    about: str
    cost: str
    promises: Mapping[str, str]
    needs: tuple[str, ...]
    call: str
    arguments: Callable[[int, jax.Array], dict[str, Any]] = lambda _num_tasks, _key: {}

    def make(self, num_tasks: int, key: jax.Array, **arguments: Any) -> Any:
        """The combiner of K tasks, with other arguments than its defaults."""
        return self.factory(**self.arguments(num_tasks, key) | arguments)


class PerturbationEntry(NamedTuple):
    """One sharpness method that the library has.

    Attributes:
        factory: function that makes it.
        about: direction of its perturbations, in Markdown.
        choose: situation in which to choose it.
        call: text of the call in tables.
        passes: passes beyond a forward and a backward pass per task and the clean pass.
        copies: further copies of the parameters.
        remembers: content of its state.
        needs: extra arguments that `update` must be given.
        variants: other ways to call it that cost something else.
    """

    factory: Callable[..., Any]
    about: str
    choose: str
    call: str
    passes: str = ""
    copies: str = ""
    remembers: str = ""
    needs: tuple[str, ...] = ()
    variants: tuple["PerturbationEntry", ...] = ()
