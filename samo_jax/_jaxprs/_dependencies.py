"""Which inputs of a program its outputs have a gradient by.

One pass over the equations. Each array carries sets of inputs, as the bits of Python
ints. It knows three things about a dependency (`Use`): that there is none, that there
may be one, and that there is one for generic values of the inputs.

What is generic: an array that the program closes over (the batch) may be a mask, but no
row of it is all zero. Where x depends on an input in every entry, so does `batch @ x`,
and `mask * x` in some, until they are summed up. What is cut out of an array depends on
the inputs that every entry does. Two masks may exclude each other: by
`mask * (mask * x)` nothing is certain.
"""

from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from functools import partial, reduce
from operator import and_, or_
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Bits of `Reach.certain` below those of the inputs: of the batch, and of numbers that
# are not zero.
_DATA, _NONZERO, _INPUTS = 1, 2, 2
_CONSTANT = _DATA | _NONZERO
_ROUNDS = 4


class Use(IntEnum):
    """How an output depends on an input."""

    NO = 0  # The gradient is zero.
    MAYBE = 1  # Through what cannot be looked into, such as a custom derivative.
    LIKELY = 2  # Through known equations, where a mask or a branch can make it zero.
    CERTAIN = 3  # The gradient is not zero, but for special values.


class Reach(NamedTuple):
    """The inputs that an array has a gradient by, as bits.

    Attributes:
        maybe: all of them.
        likely: those through known equations alone.
        some: those by which at least one entry certainly has a gradient.
        certain: those by which every entry has.
    """

    maybe: int = 0
    likely: int = 0
    some: int = 0
    certain: int = 0

    def use(self, i: int) -> Use:
        """How the array depends on the input i."""
        bit = 1 << (i + _INPUTS)
        return Use(
            (self.maybe & bit != 0)
            + (self.likely & bit != 0)
            + (self.certain & bit != 0)
        )

    def is_constant(self) -> bool:
        """Whether it has no gradient by any input."""
        return self.maybe >> _INPUTS == 0


class _Value(NamedTuple):
    """An array whose parts, of these sizes along an axis, have reaches of their own.

    Without sizes it is one part.
    """

    parts: tuple[Reach, ...]
    sizes: tuple[int, ...] = ()
    axis: int = 0


_NOTHING = Reach()
_ANYTHING = Reach(maybe=-1)

_NAMES = {
    # Those whose derivatives are zero.
    "flat": ("stop_gradient floor ceil round sign"),
    # Of which each entry depends on the same entry of each operand.
    "entrywise": (
        "abs acos acosh add asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt "
        "clamp convert_element_type copy copy_p cos cosh digamma erf erf_inv erfc exp "
        "exp2 expm1 integer_pow lgamma log log1p logistic max min name neg "
        "optimization_barrier reduce_precision rem rsqrt sharding_constraint sin sinh "
        "sqrt square sub tan tanh"
    ),
    # Which have all entries of the operands in other places, or sums of them.
    "moving": (
        "all_gather broadcast_in_dim cumsum device_put expand_dims pbroadcast "
        "ppermute psum psum2 psum_invariant pvary reduce_sum reshape reshard rev sort "
        "squeeze transpose"
    ),
    # Of which each entry depends on some entries of the operands.
    "choosing": (
        "cumlogsumexp cummax cummin cumprod dynamic_slice gather pmax pmin reduce_max "
        "reduce_min reduce_prod reduce_window_max reduce_window_min reduce_window_sum "
        "top_k"
    ),
    # Of which some entries do not depend on all operands.
    "pasting": (
        "dynamic_update_slice pad scatter scatter_add scatter_max scatter_min "
        "scatter_mul scatter_sub select_and_gather_add select_and_scatter_add"
    ),
    # Sums of products.
    "contracting": ("conv_general_dilated dot_general"),
}
_KINDS = {name: kind for kind, names in _NAMES.items() for name in names.split()}
_CALLS = {
    "call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "shard_map": "jaxpr",
}


def dependencies(program: Any) -> list[Reach]:
    """What each number depends on that the program returns, scalars or vectors.

    The time is that of one pass over the program with its calls written out.

    Args:
        program: a closed jaxpr.
    """
    inputs = _opened(program).invars
    bits = [1 << (i + _INPUTS) for i in range(len(inputs))]
    values = [_uniform(Reach(bit, bit, bit, bit)) for bit in bits]
    outputs = _Analysis().outputs(program, values)
    reaches = []
    for value, atom in zip(outputs, _opened(program).outvars, strict=True):
        for i in range(max(atom.aval.size, 1)):
            reaches.append(_whole(_cut(value, 0, i, i + 1)))
    return reaches


class _Analysis:
    """Values of the outputs of programs, each computed once for the same inputs."""

    def __init__(self) -> None:
        self._known: dict[Any, list[_Value]] = {}

    def outputs(self, program: Any, values: Sequence[_Value]) -> list[_Value]:
        """The values of a program's outputs."""
        key = id(program), *values
        if key not in self._known:
            self._known[key] = self._outputs(_opened(program), values)
        return self._known[key]

    def _outputs(self, program, values):
        found = dict.fromkeys(program.constvars, _uniform(Reach(certain=_DATA)))
        found |= zip(program.invars, values, strict=True)

        def read(atom):
            if hasattr(atom, "val"):
                return _uniform(Reach(certain=_NONZERO * _is_nonzero(atom.val)))
            return found[atom]

        for eqn in program.eqns:
            outs = self._equation(eqn, [read(atom) for atom in eqn.invars])
            for var, value in zip(eqn.outvars, outs, strict=True):
                found[var] = _of_dtype(value, var.aval)
        return [read(atom) for atom in program.outvars]

    def _equation(self, eqn: Any, values: list[_Value]) -> Iterable[_Value]:
        """The values of an equation's outputs."""
        name = eqn.primitive.name.replace("-", "_")
        if name in _CALLS:
            return self.outputs(eqn.params[_CALLS[name]], values)
        if name == "custom_jvp_call" and _is_of_jax(eqn.params["call_jaxpr"]):
            return self.outputs(eqn.params["call_jaxpr"], values)
        if name == "cond":
            branches = eqn.params["branches"]
            cases = [self.outputs(branch, values[1:]) for branch in branches]
            return [_one_of(outs) for outs in zip(*cases, strict=True)]
        if name == "scan":
            return self._scan(eqn, values)
        if name == "while":
            return self._while(eqn.params, values)
        if name in _PARTED:
            return _PARTED[name](eqn, values)
        if name == "select_n":
            return [_one_of(values[1:])]
        if name in _PRODUCTS:
            is_scalar = eqn.outvars[0].aval.size == 1
            return [_entrywise(partial(_PRODUCTS[name], is_scalar=is_scalar), values)]
        return _first_order(_KINDS.get(name), eqn, values)

    def _scan(self, eqn, values):
        """Those of a loop with a length, whose first turn is taken by itself."""
        # By their ranks: JAX's versions do not agree on what tells how many there are.
        params, body = eqn.params, _opened(eqn.params["jaxpr"])
        first_x = len(values) - _count_rows(eqn.invars, body.invars)
        first_y = len(eqn.outvars) - _count_rows(eqn.outvars, body.outvars)
        values = [_uniform(_whole(value)) for value in values]
        consts, xs = values[: first_x - first_y], values[first_x:]
        first = values[first_x - first_y : first_x]

        def turn(carry):
            outs = self.outputs(params["jaxpr"], [*consts, *carry, *xs])
            outs = [_uniform(_whole(value)) for value in outs]
            return outs[: len(carry)], outs[len(carry) :]

        carry, ys = turn(first)
        if params["length"] == 0:
            return [*first, *([_uniform(_NOTHING)] * len(ys))]
        if params["length"] > 1:
            carry, later = turn(_invariant(lambda carry: turn(carry)[0], carry))
            ys = [_one_of(pair) for pair in zip(ys, later, strict=True)]
        return [*carry, *ys]

    def _while(self, params, values):
        """Those of a loop of any length, of which nothing is certain."""
        consts = params["cond_nconsts"], params["body_nconsts"]
        body = values[consts[0] : sum(consts)]
        first = [_uniform(_whole(value)) for value in values[sum(consts) :]]

        def turn(carry):
            outs = self.outputs(params["body_jaxpr"], [*body, *carry])
            return [_uniform(_whole(value)) for value in outs]

        reaches = map(_whole, _invariant(turn, first))
        return [_uniform(reach._replace(some=0, certain=0)) for reach in reaches]


def _first_order(kind: str | None, eqn: Any, values: Sequence[_Value]) -> list[_Value]:
    """The outputs of an equation that holds no program."""
    if kind != "entrywise":
        values = [_uniform(_whole(value)) for value in values]
    match kind:
        case "flat":
            rule = _flat
        case "entrywise":
            rule = _any
        case "moving":
            rule = _total if _is_total(eqn) else _any
        case "choosing":
            rule = _chosen
        case "pasting":
            rule = _pasted
        case "contracting":
            rule = partial(_product, is_sum=_is_contraction(eqn))
        case _:
            rule = partial(_unknown, eqn)
    if kind in ("entrywise", "moving", "choosing") and len(values) == len(eqn.outvars):
        return [_entrywise(rule, [value]) for value in values]
    return [_entrywise(rule, values)] * len(eqn.outvars)


def _invariant(turn: Callable[..., Any], carry: list[_Value]) -> list[_Value]:
    """What holds for the carry after any number of turns of a loop."""
    for _ in range(_ROUNDS):
        later = [_one_of(pair) for pair in zip(carry, turn(carry), strict=True)]
        if later == carry:
            return carry
        carry = later
    maybe = reduce(or_, (_whole(value).maybe for value in carry), 0)
    # Inputs on the way from one carried value to the next, in every later turn.
    maybe = reduce(or_, (_whole(value).maybe for value in turn(carry)), maybe)
    return [_uniform(Reach(maybe, _whole(value).likely)) for value in carry]


def _opened(program: Any) -> Any:
    """The jaxpr of a closed one, which newer JAX does not tell apart."""
    return getattr(program, "jaxpr", program)


def _count_rows(atoms: Sequence[Any], rows: Sequence[Any]) -> int:
    """How many arrays a loop cuts into rows, or makes of rows."""
    pairs = zip(atoms, rows, strict=True)
    return sum(len(atom.aval.shape) > len(row.aval.shape) for atom, row in pairs)


def _uniform(reach: Reach) -> _Value:
    """An array of one part."""
    return _Value((reach,))


def _whole(value: _Value) -> Reach:
    """What some entry depends on, and (certain) what every entry does."""
    return value.parts[0] if len(value.parts) == 1 else _joined(value.parts)


def _joined(reaches: Sequence[Reach]) -> Reach:
    """Of all entries of these arrays together."""
    maybe, likely, some, certain = zip(*reaches, strict=True)
    return Reach(
        reduce(or_, maybe),
        reduce(or_, likely),
        reduce(or_, some),
        reduce(and_, certain),
    )


def _one_of(values: Iterable[_Value]) -> _Value:
    """One of several values, it is not known which."""
    found = _joined([_whole(value) for value in values])
    return _uniform(found._replace(some=found.certain))


def _any(reaches: Sequence[Reach]) -> Reach:
    """A sum, or what else has a gradient by each operand, whatever the others are."""
    if len(reaches) == 1:
        return reaches[0]
    found = Reach(*(reduce(or_, bits) for bits in zip(*reaches, strict=True)))
    return found._replace(certain=found.certain & ~_NONZERO)


def _flat(reaches: Sequence[Reach]) -> Reach:
    """A derivative that is zero."""
    del reaches
    return _NOTHING


def _total(reaches: Sequence[Reach]) -> Reach:
    """The sum of all entries."""
    return reaches[0]._replace(certain=reaches[0].certain | reaches[0].some)


def _chosen(reaches: Sequence[Reach]) -> Reach:
    """Some entries, it is not known which."""
    found = _any(reaches)
    return found._replace(some=found.certain)


def _pasted(reaches: Sequence[Reach]) -> Reach:
    """Some entries of each operand, or none."""
    return _any([_NOTHING, *reaches])._replace(some=0, certain=0)


def _product(
    reaches: Sequence[Reach], is_scalar: bool = False, is_sum: bool = False
) -> Reach:
    """It has a gradient by a factor where the other one is not zero.

    A batch is somewhere not zero, or as a scalar it may be; sums are of all its rows.
    """
    some = certain = 0
    for one, other in (reaches, reversed(reaches)):
        if other.certain & ~_DATA:
            some |= one.some
            certain |= one.certain
        elif other.certain and not is_scalar:
            some |= one.certain
            certain |= one.certain * is_sum
    certain = certain & ~_CONSTANT | _constant_product(reaches, is_sum)
    return _any(reaches)._replace(some=some, certain=certain)


def _constant_product(reaches: Sequence[Reach], is_sum: bool) -> int:
    """What is known of a product without inputs."""
    one, other = (reach.certain & _CONSTANT for reach in reaches)
    if not (one and other):
        return 0
    if one & other & _NONZERO:
        return _NONZERO
    return _DATA * (is_sum or (one | other) & _NONZERO != 0)


def _quotient(reaches: Sequence[Reach], is_scalar: bool) -> Reach:
    by_divisor, found = _product(reaches, is_scalar), _any(reaches)
    some = reaches[0].some | by_divisor.some
    certain = reaches[0].certain | by_divisor.certain
    return found._replace(some=some, certain=certain & found.certain)


_PRODUCTS = {"mul": _product, "pow": _product, "div": _quotient}


def _is_total(eqn: Any) -> bool:
    """Whether it sums up all entries."""
    return eqn.primitive.name == "reduce_sum" and not eqn.outvars[0].aval.shape


def _is_contraction(eqn: Any) -> bool:
    """Whether products are summed over a dimension."""
    if eqn.primitive.name != "dot_general":
        return True
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return bool(contracted)


def _unknown(eqn: Any, reaches: Sequence[Reach]) -> Reach:
    """What an equation may depend on that has no rule here."""
    is_ref = any("Ref" in type(atom.aval).__name__ for atom in eqn.invars)
    effects = {type(effect).__name__ for effect in eqn.effects} - {"NamedAxisEffect"}
    if is_ref or effects:
        return _ANYTHING
    found = _any([_NOTHING, *reaches])
    likely = 0 if any(map(_is_function, eqn.params.values())) else found.likely
    return Reach(found.maybe, likely)


def _is_function(param: Any) -> bool:
    """Whether a parameter of an equation holds a program or a function."""
    if isinstance(param, tuple | list):
        return any(map(_is_function, param))
    return hasattr(param, "eqns") or (callable(param) and not isinstance(param, type))


def _is_of_jax(program: Any) -> bool:
    """Whether it is a function such as `jax.nn.relu`, with its true derivative."""
    info = getattr(_opened(program), "debug_info", None)
    source = getattr(info, "func_src_info", None) or ""
    folder = Path(jax.__file__).parent / "_src"
    return any(
        str(folder / name) in source
        for name in ("nn", "numpy", "scipy", "lax/other.py")
    )


def _is_nonzero(value: Any) -> bool:
    return jnp.ndim(value) == 0 and bool(value != 0)


def _of_dtype(value: _Value, aval: Any) -> _Value:
    """The value without gradients where its dtype has none."""
    dtype = getattr(aval, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jnp.inexact):
        return value
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
        return _uniform(_NOTHING)
    return _uniform(Reach(certain=_whole(value).certain & _CONSTANT))


def _entrywise(rule: Callable, values: Sequence[_Value]) -> _Value:
    """The rule for each part by itself, where the operands have the same parts."""
    parted = [value for value in values if value.sizes]
    if not parted or any(value[1:] != parted[0][1:] for value in parted):
        return _uniform(rule([_whole(value) for value in values]))
    count = len(parted[0].sizes)
    columns = (v.parts if v.sizes else v.parts * count for v in values)
    parts = tuple(rule(operands) for operands in zip(*columns, strict=True))
    return parted[0]._replace(parts=parts)


def _cut(value: _Value, axis: int, start: int, stop: int) -> _Value:
    """The entries from start to stop along an axis."""
    if not value.sizes or value.axis != axis:
        return _uniform(_chosen([_whole(value)]))
    parts, sizes, offset = [], [], 0
    for part, size in zip(value.parts, value.sizes, strict=True):
        overlap = min(stop, offset + size) - max(start, offset)
        if overlap > 0:
            parts.append(part if overlap == size else _chosen([part]))
            sizes.append(overlap)
        offset += size
    if len(parts) > 1:
        return _Value(tuple(parts), tuple(sizes), axis)
    return _uniform(parts[0] if parts else _NOTHING)


def _slice(eqn, values):
    value, params = values[0], eqn.params
    strides = params["strides"] or [1]
    bounds = zip(params["start_indices"], params["limit_indices"], strict=True)
    start, stop = list(bounds)[value.axis]
    cut = _cut(value, value.axis, start, stop)
    return [cut if set(strides) == {1} else _uniform(_chosen([_whole(cut)]))]


def _split(eqn, values, sizes=None):
    stops, stop = [], 0
    for size in eqn.params["sizes"] if sizes is None else sizes:
        stops.append((stop, stop := stop + size))
    return [_cut(values[0], eqn.params["axis"], *ends) for ends in stops]


def _unstack(eqn, values):
    pieces = _split(eqn, values, [1] * len(eqn.outvars))
    return [_uniform(_whole(piece)) for piece in pieces]


def _concatenate(eqn, values):
    axis = eqn.params["dimension"]
    parts, sizes = [], []
    for value, atom in zip(values, eqn.invars, strict=True):
        if value.sizes and value.axis == axis:
            parts += value.parts
            sizes += value.sizes
        else:
            parts.append(_whole(value))
            sizes.append(atom.aval.shape[axis])
    return [_Value(tuple(parts), tuple(sizes), axis)]


def _stack(eqn, values):
    parts = tuple(map(_whole, values))
    return [_Value(parts, (1,) * len(parts), eqn.params["axis"])]


_PARTED = {
    "slice": _slice,
    "split": _split,
    "unstack": _unstack,
    "concatenate": _concatenate,
    "stack": _stack,
}
