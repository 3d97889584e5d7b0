"""`Reach`: an array's dependence on inputs, and the rules for operations on it.

What is generic: an array that the program closes over (the batch) may be a mask, but no
row of it is all zero. Where x depends on an input in every entry, so does `batch @ x`,
and `mask * x` in some, until they are summed up. What is cut out of an array depends on
the inputs that every entry does. Two masks may exclude each other: by
`mask * (mask * x)` nothing is certain.
"""

from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from functools import reduce
from operator import and_, or_
from typing import Any, NamedTuple

import jax.numpy as jnp

# Bits of `Reach.certain` below those of the inputs: of the batch, and of numbers that
# are not zero.
DATA, NONZERO, INPUTS = 1, 2, 2
CONSTANT = DATA | NONZERO


class Use(IntEnum):
    """The way in which an output depends on an input."""

    NO = 0  # The gradient is zero.
    MAYBE = 1  # Through what cannot be looked into, such as a custom derivative.
    LIKELY = 2  # Through known equations, where a mask or a branch can make it zero.
    CERTAIN = 3  # The gradient is not zero, but for special values.


class Reach(NamedTuple):
    """The inputs that an array has a gradient by, as bits.

    Attributes:
        maybe: all inputs that it may have a gradient by.
        likely: inputs through known equations alone.
        some: inputs by which at least one entry certainly has a gradient.
        certain: inputs by which every entry certainly has one.
    """

    maybe: int = 0
    likely: int = 0
    some: int = 0
    certain: int = 0

    def use(self, i: int) -> Use:
        """The way in which the array depends on the input i."""
        bit = 1 << (i + INPUTS)
        return Use(
            (self.maybe & bit != 0)
            + (self.likely & bit != 0)
            + (self.certain & bit != 0)
        )

    def is_constant(self) -> bool:
        """Whether it has no gradient by any input."""
        return self.maybe >> INPUTS == 0


class Value(NamedTuple):
    """An array whose parts, of these sizes along an axis, have reaches of their own.

    Without sizes it is one part.
    """

    parts: tuple[Reach, ...]
    sizes: tuple[int, ...] = ()
    axis: int = 0


NOTHING = Reach()


ANYTHING = Reach(maybe=-1)


def uniform(reach: Reach) -> Value:
    """An array of one part."""
    return Value((reach,))


def whole(value: Value) -> Reach:
    """The reach of a whole array: of some entry, and (certain) of every entry."""
    return value.parts[0] if len(value.parts) == 1 else joined(value.parts)


def joined(reaches: Sequence[Reach]) -> Reach:
    """The reach of all entries of these arrays together."""
    maybe, likely, some, certain = zip(*reaches, strict=True)
    return Reach(
        reduce(or_, maybe),
        reduce(or_, likely),
        reduce(or_, some),
        reduce(and_, certain),
    )


def one_of(values: Iterable[Value]) -> Value:
    """One of several values, it is not known which."""
    found = joined([whole(value) for value in values])
    return uniform(found._replace(some=found.certain))


def any_of(reaches: Sequence[Reach]) -> Reach:
    """A sum, or what else has a gradient by each operand, whatever the others are."""
    if len(reaches) == 1:
        return reaches[0]
    found = Reach(*(reduce(or_, bits) for bits in zip(*reaches, strict=True)))
    return found._replace(certain=found.certain & ~NONZERO)


def flat(reaches: Sequence[Reach]) -> Reach:
    """A derivative that is zero."""
    del reaches
    return NOTHING


def total(reaches: Sequence[Reach]) -> Reach:
    """The sum of all entries."""
    return reaches[0]._replace(certain=reaches[0].certain | reaches[0].some)


def chosen(reaches: Sequence[Reach]) -> Reach:
    """Some entries, it is not known which."""
    found = any_of(reaches)
    return found._replace(some=found.certain)


def pasted(reaches: Sequence[Reach]) -> Reach:
    """Some entries of each operand, or none."""
    return any_of([NOTHING, *reaches])._replace(some=0, certain=0)


def product(
    reaches: Sequence[Reach], is_scalar: bool = False, is_sum: bool = False
) -> Reach:
    """A product: it has a gradient by a factor where the other one is not zero.

    A batch is somewhere not zero, or as a scalar it may be; sums are of all its rows.
    """
    some = certain = 0
    for one, other in (reaches, reversed(reaches)):
        if other.certain & ~DATA:
            some |= one.some
            certain |= one.certain
        elif other.certain and not is_scalar:
            some |= one.certain
            certain |= one.certain * is_sum
    certain = certain & ~CONSTANT | _constant_product(reaches, is_sum)
    return any_of(reaches)._replace(some=some, certain=certain)


def _constant_product(reaches: Sequence[Reach], is_sum: bool) -> int:
    """The bits of `CONSTANT` that are certain of a product."""
    one, other = (reach.certain & CONSTANT for reach in reaches)
    if not (one and other):
        return 0
    if one & other & NONZERO:
        return NONZERO
    return DATA * (is_sum or (one | other) & NONZERO != 0)


def quotient(reaches: Sequence[Reach], is_scalar: bool) -> Reach:
    by_divisor, found = product(reaches, is_scalar), any_of(reaches)
    some = reaches[0].some | by_divisor.some
    certain = reaches[0].certain | by_divisor.certain
    return found._replace(some=some, certain=certain & found.certain)


def entrywise(rule: Callable, values: Sequence[Value]) -> Value:
    """The rule for each part by itself, where the operands have the same parts."""
    parted = [value for value in values if value.sizes]
    if not parted or any(value[1:] != parted[0][1:] for value in parted):
        return uniform(rule([whole(value) for value in values]))
    count = len(parted[0].sizes)
    columns = (v.parts if v.sizes else v.parts * count for v in values)
    parts = tuple(rule(operands) for operands in zip(*columns, strict=True))
    return parted[0]._replace(parts=parts)


def cut(value: Value, axis: int, start: int, stop: int) -> Value:
    """The entries from start to stop along an axis."""
    if not value.sizes or value.axis != axis:
        return uniform(chosen([whole(value)]))
    parts, sizes, offset = [], [], 0
    for part, size in zip(value.parts, value.sizes, strict=True):
        overlap = min(stop, offset + size) - max(start, offset)
        if overlap > 0:
            parts.append(part if overlap == size else chosen([part]))
            sizes.append(overlap)
        offset += size
    if len(parts) > 1:
        return Value(tuple(parts), tuple(sizes), axis)
    return uniform(parts[0] if parts else NOTHING)


def is_nonzero(value: Any) -> bool:
    return jnp.ndim(value) == 0 and bool(value != 0)


def of_dtype(value: Value, aval: Any) -> Value:
    """The value without gradients where its dtype has none."""
    dtype = getattr(aval, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jnp.inexact):
        return value
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
        return uniform(NOTHING)
    return uniform(Reach(certain=whole(value).certain & CONSTANT))
