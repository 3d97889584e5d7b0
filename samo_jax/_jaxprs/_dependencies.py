"""`dependencies`: the inputs that the outputs of a program have a gradient by.

One pass over the equations. Each array carries sets of inputs (`_reach`), as the bits
of Python ints. Three things can be known of a dependency (`Use`): that there is none,
that there may be one, and that there is one for generic values of the inputs.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce
from operator import or_
from pathlib import Path
from typing import Any

import jax

from samo_jax._jaxprs._reach import (
    ANYTHING,
    DATA,
    INPUTS,
    NONZERO,
    NOTHING,
    Reach,
    Value,
    any_of,
    chosen,
    cut,
    entrywise,
    flat,
    is_nonzero,
    of_dtype,
    one_of,
    pasted,
    product,
    quotient,
    total,
    uniform,
    whole,
)

_ROUNDS = 4
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
# Functions with a derivative of the user's own.
_CUSTOM = {
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}


def dependencies(program: Any) -> list[Reach]:
    """The inputs that each number of a program's outputs depends on.

    The time is that of one pass over the program with its calls written out.

    Args:
        program: a closed jaxpr that returns scalars or vectors.
    """
    inputs = _opened(program).invars
    bits = [1 << (i + INPUTS) for i in range(len(inputs))]
    values = [
        of_dtype(uniform(Reach(bit, bit, bit, bit)), variable.aval)
        for bit, variable in zip(bits, inputs, strict=True)
    ]
    outputs = _Analysis().outputs(program, values)
    reaches = []
    for value, atom in zip(outputs, _opened(program).outvars, strict=True):
        for i in range(max(atom.aval.size, 1)):
            reaches.append(whole(cut(value, 0, i, i + 1)))
    return reaches


class _Analysis:
    """Values of the outputs of programs, each computed once for the same inputs."""

    def __init__(self) -> None:
        self._known: dict[Any, list[Value]] = {}

    def outputs(self, program: Any, values: Sequence[Value]) -> list[Value]:
        """The values of a program's outputs."""
        key = id(program), *values
        if key not in self._known:
            self._known[key] = self._outputs(_opened(program), values)
        return self._known[key]

    def _outputs(self, program, values):
        found = dict.fromkeys(program.constvars, uniform(Reach(certain=DATA)))
        found |= zip(program.invars, values, strict=True)

        def read(atom):
            if hasattr(atom, "val"):
                return uniform(Reach(certain=NONZERO * is_nonzero(atom.val)))
            return found[atom]

        for eqn in program.eqns:
            outs = self._equation(eqn, [read(atom) for atom in eqn.invars])
            for var, value in zip(eqn.outvars, outs, strict=True):
                found[var] = of_dtype(value, var.aval)
        return [read(atom) for atom in program.outvars]

    def _equation(self, eqn: Any, values: list[Value]) -> Iterable[Value]:
        """The values of an equation's outputs."""
        name = eqn.primitive.name.replace("-", "_")
        if name in _CALLS:
            return self.outputs(eqn.params[_CALLS[name]], values)
        if name == "custom_jvp_call" and _is_of_jax(eqn.params["call_jaxpr"]):
            return self.outputs(eqn.params["call_jaxpr"], values)
        if name in _CUSTOM:
            return _custom(eqn.params[_CUSTOM[name]], values)
        if name == "cond":
            branches = eqn.params["branches"]
            cases = [self.outputs(branch, values[1:]) for branch in branches]
            return [one_of(outs) for outs in zip(*cases, strict=True)]
        if name == "scan":
            return self._scan(eqn, values)
        if name == "while":
            return self._while(eqn.params, values)
        if name in _PARTED:
            return _PARTED[name](eqn, values)
        if name == "select_n":
            return [one_of(values[1:])]
        if name in _PRODUCTS:
            is_scalar = eqn.outvars[0].aval.size == 1
            return [entrywise(partial(_PRODUCTS[name], is_scalar=is_scalar), values)]
        return _first_order(_KINDS.get(name), eqn, values)

    def _scan(self, eqn, values):
        """The outputs of a loop with a length, whose first turn is taken by itself."""
        # By their ranks: JAX's versions do not agree on what tells how many there are.
        params, body = eqn.params, _opened(eqn.params["jaxpr"])
        first_x = len(values) - _count_rows(eqn.invars, body.invars)
        first_y = len(eqn.outvars) - _count_rows(eqn.outvars, body.outvars)
        values = [uniform(whole(value)) for value in values]
        consts, xs = values[: first_x - first_y], values[first_x:]
        first = values[first_x - first_y : first_x]

        def turn(carry):
            outs = self.outputs(params["jaxpr"], [*consts, *carry, *xs])
            outs = [uniform(whole(value)) for value in outs]
            return outs[: len(carry)], outs[len(carry) :]

        carry, ys = turn(first)
        if params["length"] == 0:
            return [*first, *([uniform(NOTHING)] * len(ys))]
        if params["length"] > 1:
            carry, later = turn(_invariant(lambda carry: turn(carry)[0], carry))
            ys = [one_of(pair) for pair in zip(ys, later, strict=True)]
        return [*carry, *ys]

    def _while(self, params, values):
        """The outputs of a loop of any length, of which nothing is certain."""
        consts = params["cond_nconsts"], params["body_nconsts"]
        body = values[consts[0] : sum(consts)]
        first = [uniform(whole(value)) for value in values[sum(consts) :]]

        def turn(carry):
            outs = self.outputs(params["body_jaxpr"], [*body, *carry])
            return [uniform(whole(value)) for value in outs]

        reaches = map(whole, _invariant(turn, first))
        return [uniform(reach._replace(some=0, certain=0)) for reach in reaches]


def _first_order(kind: str | None, eqn: Any, values: Sequence[Value]) -> list[Value]:
    """The outputs of an equation that holds no program."""
    if kind != "entrywise":
        values = [uniform(whole(value)) for value in values]
    match kind:
        case "flat":
            rule = flat
        case "entrywise":
            rule = any_of
        case "moving":
            rule = total if _is_total(eqn) else any_of
        case "choosing":
            rule = chosen
        case "pasting":
            rule = pasted
        case "contracting":
            rule = partial(product, is_sum=_is_contraction(eqn))
        case _:
            rule = partial(_unknown, eqn)
    if kind in ("entrywise", "moving", "choosing") and len(values) == len(eqn.outvars):
        return [entrywise(rule, [value]) for value in values]
    return [entrywise(rule, values)] * len(eqn.outvars)


def _invariant(turn: Callable[..., Any], carry: list[Value]) -> list[Value]:
    """The value of the carry that holds after any number of turns of a loop."""
    for _ in range(_ROUNDS):
        later = [one_of(pair) for pair in zip(carry, turn(carry), strict=True)]
        if later == carry:
            return carry
        carry = later
    maybe = reduce(or_, (whole(value).maybe for value in carry), 0)
    # Inputs on the way from one carried value to the next, in every later turn.
    maybe = reduce(or_, (whole(value).maybe for value in turn(carry)), maybe)
    return [uniform(Reach(maybe, whole(value).likely)) for value in carry]


def _custom(program: Any, values: Sequence[Value]) -> list[Value]:
    """The outputs of a function with a derivative of its own, by what they depend on.

    An input that no output depends on is there for the derivative alone.
    """
    reaches, by_output = list(map(whole, values)), _value_inputs(program)
    used = reduce(or_, by_output, 0)

    def joint(inputs):
        needed = [reach for i, reach in enumerate(reaches) if inputs >> i & 1]
        return any_of([NOTHING, *needed])

    maybe = joint(~used).maybe
    found = map(joint, by_output)
    return [uniform(Reach(maybe | one.maybe, one.likely)) for one in found]


def _value_inputs(program: Any) -> list[int]:
    """The inputs that the value of each output depends on, as bits."""
    program = _opened(program)
    found = {var: 1 << i for i, var in enumerate(program.invars)}
    for eqn in program.eqns:
        reads = [0 if hasattr(a, "val") else found.get(a, 0) for a in eqn.invars]
        inner = eqn.params.get((_CALLS | _CUSTOM).get(eqn.primitive.name))
        if inner is None:
            outs = [reduce(or_, reads, 0)] * len(eqn.outvars)
        else:
            outs = [
                reduce(
                    or_, (read for i, read in enumerate(reads) if inputs >> i & 1), 0
                )
                for inputs in _value_inputs(inner)
            ]
        found |= zip(eqn.outvars, outs, strict=True)
    return [0 if hasattr(a, "val") else found.get(a, 0) for a in program.outvars]


def _opened(program: Any) -> Any:
    """The jaxpr of a closed one, which newer JAX does not tell apart."""
    return getattr(program, "jaxpr", program)


def _count_rows(atoms: Sequence[Any], rows: Sequence[Any]) -> int:
    """The number of arrays that a loop cuts into rows, or makes of rows."""
    pairs = zip(atoms, rows, strict=True)
    return sum(len(atom.aval.shape) > len(row.aval.shape) for atom, row in pairs)


_PRODUCTS = {"mul": product, "pow": product, "div": quotient}


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
    """The reach of an equation that has no rule here: all that it may depend on."""
    is_ref = any("Ref" in type(atom.aval).__name__ for atom in eqn.invars)
    effects = {type(effect).__name__ for effect in eqn.effects} - {"NamedAxisEffect"}
    if is_ref or effects:
        return ANYTHING
    found = any_of([NOTHING, *reaches])
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


def _slice(eqn, values):
    value, params = values[0], eqn.params
    strides = params["strides"] or [1]
    bounds = zip(params["start_indices"], params["limit_indices"], strict=True)
    start, stop = list(bounds)[value.axis]
    found = cut(value, value.axis, start, stop)
    return [found if set(strides) == {1} else uniform(chosen([whole(found)]))]


def _split(eqn, values, sizes=None):
    stops, stop = [], 0
    for size in eqn.params["sizes"] if sizes is None else sizes:
        stops.append((stop, stop := stop + size))
    return [cut(values[0], eqn.params["axis"], *ends) for ends in stops]


def _unstack(eqn, values):
    pieces = _split(eqn, values, [1] * len(eqn.outvars))
    return [uniform(whole(piece)) for piece in pieces]


def _concatenate(eqn, values):
    axis = eqn.params["dimension"]
    parts, sizes = [], []
    for value, atom in zip(values, eqn.invars, strict=True):
        if value.sizes and value.axis == axis:
            parts += value.parts
            sizes += value.sizes
        else:
            parts.append(whole(value))
            sizes.append(atom.aval.shape[axis])
    return [Value(tuple(parts), tuple(sizes), axis)]


def _stack(eqn, values):
    parts = tuple(map(whole, values))
    return [Value(parts, (1,) * len(parts), eqn.params["axis"])]


_PARTED = {
    "slice": _slice,
    "split": _split,
    "unstack": _unstack,
    "concatenate": _concatenate,
    "stack": _stack,
}
