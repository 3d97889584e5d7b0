"""`keyed_weighting`: combiners that draw random numbers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from samo_jax._checks import check_key
from samo_jax._combiners._types import Weighting
from samo_jax._keys import raw_key, typed_key
from samo_jax._tasks import present_tasks


class KeyedState(NamedTuple):
    """State of a combiner that draws random numbers.

    Attributes:
        draw_key: the data of the PRNG key as given, uint32; draws fold in `draws`.
        draws: shape (), int32, updates done so far.
        memory: the method's own state.
    """

    draw_key: jax.Array
    draws: jax.Array
    memory: Any


def keyed_weighting(
    key: jax.Array | int,
    init: Callable[[int], Any],
    update: Callable[..., tuple[jax.Array, Any]],
) -> Weighting:
    """A `Weighting` that draws anew at each update.

    It is made of `init(num_tasks)` and `update(key, gramian, memory, present)`.
    """
    check_key(key)

    def init_keyed(num_tasks: int) -> KeyedState:
        return KeyedState(raw_key(key), jnp.zeros((), jnp.int32), init(num_tasks))

    def update_keyed(gramian, state, *, present=None, **extra_args):
        del extra_args
        drawn = jax.random.fold_in(typed_key(state.draw_key, key), state.draws)
        present = present_tasks(present, gramian.shape[0])
        weights, memory = update(drawn, gramian, state.memory, present)
        draws = jnp.asarray(optax.safe_increment(state.draws))
        return weights, KeyedState(state.draw_key, draws, memory)

    return Weighting(init_keyed, update_keyed)
