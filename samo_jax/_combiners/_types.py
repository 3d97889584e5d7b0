"""`Weighting` and `Aggregator`: the two types of combiners."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from samo_jax._absent_tasks import fill_in, names_present, share_out
from samo_jax._gramian import combine, gramian
from samo_jax._named import repr_of
from samo_jax._tasks import count_tasks, per_task
from samo_jax._tree import PyTree, cast_like, scale_leaves


class Weighting(NamedTuple):
    """A combiner that weighs the tasks: Gramian or losses in, K weights out.

    A user's own combiner is one of these; nothing has to be registered.

    Attributes:
        init: `init(num_tasks) -> state`, a pytree of fixed shapes and dtypes.
        update: `update(gramian, state, *, losses, present, **extra_args) -> (weights,
            state)` with a `(K, K)` Gramian, `(K,)` losses and `(K,)` weights, jittable.
            Unknown `extra_args` are to be ignored. `present`, shape (K,), bool (None:
            all), says which tasks take part: an absent one has zeros in the Gramian, a
            NaN for its loss, and gets the weight 0. An update that does not name
            `present` gets the mean of the other losses in its place, and what weight
            it gives to absent tasks goes to the others in proportion.
        needs_gramian: whether the weights depend on the Gramian. Where they do not, it
            is zero if the K gradients are not needed otherwise.
        degree: degree p of the direction in the gradients: if all are c times as long,
            `d` is `c^p` times as long. For weights that are kept (`weights_every`).
        name: the call that made it, which is its `repr`.
    """

    init: Callable[[int], Any]
    update: Callable[..., tuple[jax.Array, Any]]
    needs_gramian: bool = True
    degree: float = 1.0
    name: str = ""

    def __repr__(self) -> str:
        return repr_of(self)


class Aggregator(NamedTuple):
    """A combiner that needs the gradients themselves: K gradients in, direction out.

    Attributes:
        init: `init(params, num_tasks) -> state`, a pytree of fixed shapes and dtypes.
            `params` holds the shared leaves (None elsewhere).
        update: `update(task_grads, state, *, losses, present, **extra_args) ->
            (direction, weights, state)`, jittable: `task_grads` like `params` with a
            leading task axis, `direction` like `params` in the gradients' dtypes,
            `(K,)` losses and weights. Unknown `extra_args` are to be ignored.
            `present` is as in `Weighting`: an absent task has zero gradients. Of an
            update that does not name it, the direction grows with the others' weights.
        name: the call that made it, which is its `repr`.
    """

    init: Callable[[PyTree, int], Any]
    update: Callable[..., tuple[PyTree, jax.Array, Any]]
    name: str = ""

    def __repr__(self) -> str:
        return repr_of(self)


Combiner: TypeAlias = Weighting | Aggregator


def check_combiner(combiner: Any) -> None:
    """Raise unless it is a `Weighting` or `Aggregator`."""
    if not isinstance(combiner, Combiner):
        raise ValueError(
            "`combiner` must be a samo_jax.Weighting or Aggregator, got "
            f"{combiner!r}. Call the factory: `samo_jax.fairgrad()`, not "
            "`samo_jax.fairgrad`."
        )


def check_weighting(name: str, weighting: Any) -> None:
    """Raise unless it is a `Weighting`."""
    if not isinstance(weighting, Weighting):
        raise ValueError(
            f"`{name}` must be a samo_jax.Weighting, got {weighting!r}. Call the "
            "factory: `samo_jax.mgda()`."
        )


def init_combiner(combiner: Combiner, shared: PyTree, num_tasks: int) -> Any:
    """The combiner's first state, from the shared leaves of the parameters."""
    if isinstance(combiner, Weighting):
        return combiner.init(num_tasks)
    return combiner.init(shared, num_tasks)


def weighting_update(weighting: Weighting) -> Callable[..., tuple[jax.Array, Any]]:
    """`Weighting.update`, called with `present` whether the method names it or not."""
    if names_present(weighting.update):
        return weighting.update

    def update(gramian, state, *, present=None, **extra_args):
        weights, state = weighting.update(
            gramian, state, **_filled(extra_args, present)
        )
        if present is not None:
            weights = per_task("weights", weights, len(present), 0)
        return share_out(weights, present)[0], state

    return update


def combiner_update(
    combiner: Combiner,
) -> Callable[..., tuple[PyTree, jax.Array, Any]]:
    """`Aggregator.update`, for a weighting too: Gramian to weights to direction.

    It may be called with `present` whether the method names it or not.
    """
    if isinstance(combiner, Weighting):
        return _combining(weighting_update(combiner))
    if names_present(combiner.update):
        return combiner.update

    def update(task_grads, state, *, present=None, **extra_args):
        direction, weights, state = combiner.update(
            task_grads, state, **_filled(extra_args, present)
        )
        weights, growth = share_out(weights, present)
        grown = scale_leaves(direction, lambda _leaf: growth)
        return cast_like(grown, direction), weights, state

    return update


def shared_gramian(task_grads: PyTree, extra_args: dict[str, Any]) -> jax.Array:
    """The Gramian of a step's shared leaves, zero where there are none."""
    if jax.tree.leaves(task_grads):
        return gramian(task_grads)
    num_tasks = count_tasks(extra_args.get("losses"), extra_args.get("present"))
    return jnp.zeros((num_tasks, num_tasks))


def _combining(weigh: Callable[..., tuple[jax.Array, Any]]):
    def update(task_grads, state, **extra_args):
        weights, state = weigh(
            shared_gramian(task_grads, extra_args), state, **extra_args
        )
        return combine(weights, task_grads), weights, state

    return update


def _filled(extra_args: dict[str, Any], present: jax.Array | None) -> dict[str, Any]:
    """The arguments, with a loss for each task that is absent."""
    if present is None or extra_args.get("losses") is None:
        return extra_args
    return extra_args | {"losses": fill_in(extra_args["losses"], present)}
