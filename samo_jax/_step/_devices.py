"""`Devices`: what a step does across the devices of a mesh axis."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from samo_jax._tree import PyTree, accumulator_dtype

AxisName: TypeAlias = Hashable | Sequence[Hashable] | None


class Devices(NamedTuple):
    """The devices of a mesh axis inside `jax.shard_map`, or one program for all.

    Attributes:
        axis_name: the axis, or axes. None: under `jax.jit` alone everything is global.
    """

    axis_name: AxisName

    def mean(self, tree: PyTree) -> PyTree:
        """The mean over the devices."""
        return tree if self.axis_name is None else lax.pmean(tree, self.axis_name)

    def mean_of_floats(self, state: PyTree) -> PyTree:
        """The mean over the devices, other numbers than floats left alone."""

        def mean(leaf):
            floats = jnp.issubdtype(leaf.dtype, jnp.floating)
            return self.mean(leaf) if floats else leaf

        return jax.tree.map(mean, state)

    def all(self, present: jax.Array) -> jax.Array:
        """Whether it is so on every device."""
        return self.mean(present.astype(accumulator_dtype())) == 1

    def number(self) -> jax.Array | int:
        """The number of devices."""
        return 1 if self.axis_name is None else lax.psum(1, self.axis_name)

    def varying(self, params: PyTree) -> PyTree:
        """Each device's own copy: gradients by a common one are summed over devices."""
        if self.axis_name is None:
            return params
        try:
            index = lax.axis_index(self.axis_name)
        except NameError:
            raise ValueError(
                "`axis_name` must be a mesh axis of the jax.shard_map around the "
                f"update, got {self.axis_name!r}. Leave it out under jax.jit alone."
            ) from None
        # A product, for functions that make values varying refuse what varies already.
        one = 0 * index + 1
        return jax.tree.map(lambda leaf: leaf * one.astype(leaf.dtype), params)
