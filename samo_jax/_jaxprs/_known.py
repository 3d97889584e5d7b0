"""`is_known`: whether a program may be taken apart and run again."""

import functools
import gc
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

# Pure operations without a program of their own that would have to be looked into.
_NAMES = """
abs acos acosh add add_any and approx_top_k argmax argmin asin asinh atan atan2
atanh bessel_i0e bessel_i1e bitcast_convert_type broadcast_in_dim cbrt ceil cholesky
clamp clz complex concatenate conj conv_general_dilated convert_element_type copy
copy_p cos cosh cumlogsumexp cummax cummin cumprod cumsum digamma div dot_general
dynamic_slice dynamic_update_slice eig eigh eq eq_to erf erf_inv erfc exp exp2 expm1
fft floor gather ge gt householder_product igamma igamma_grad_a igammac imag
integer_pow iota is_finite le le_to lgamma log log1p log2 logistic lt lt_to lu
lu_pivots_to_permutation max min mul name ne neg nextafter not one_minus_square
optimization_barrier or pad pcast platform_index pmax pmin polygamma
population_count pow psum psum2 psum_invariant pvary qr random_bits random_clone
random_fold_in random_gamma random_seed random_split random_unwrap random_wrap real
reduce reduce_and reduce_max reduce_min reduce_or reduce_precision reduce_prod
reduce_sum reduce_window reduce_window_max reduce_window_min reduce_window_sum
reduce_xor regularized_incomplete_beta rem reshape rev rng_bit_generator rng_uniform
round rsqrt scatter scatter-add scatter-max scatter-min scatter-mul scatter-sub
select_and_gather_add select_and_scatter select_and_scatter_add select_n
sharding_constraint shift_left shift_right_arithmetic shift_right_logical sign sin
sinh slice sort split sqrt square squeeze stack stop_gradient sub svd tan tanh
threefry2x32 tile top_k transpose triangular_solve tridiagonal_solve unstack xor
zeta
"""
_OPERATIONS = frozenset(_NAMES.split())
# Operations made of programs that can be looked into, and rearranged.
_CONTAINERS = frozenset(
    {"closed_call", "cond", "jit", "pjit", "remat2", "scan", "while"}
)
_CUSTOM = {"custom_jvp_call", "custom_vjp_call", "custom_vmap_call"}
# What refers to no tracer of its own, or, through globals and unfinished programs, to
# everything.
_OPAQUE = (
    *(ClosedJaxpr, Jaxpr, jax.core.Trace),
    *(BuiltinFunctionType, CodeType, ModuleType, type),
)
_MOST_REFERENTS = 10_000


def is_known(closed: ClosedJaxpr) -> bool:
    """Whether running the program again, in parts, is running it.

    It has no effects, all its operations are listed here, and its custom derivatives
    close over nothing that was computed in it.
    """
    return not unknown(closed)


def unknown(closed: ClosedJaxpr) -> list[str]:
    """Names of operations and effects that keep a program from being known."""
    found = {
        eqn.primitive.name
        for eqn in equations(closed.jaxpr)
        if eqn.primitive.name not in _OPERATIONS | _CONTAINERS
        and (eqn.primitive.name not in _CUSTOM or _closes_over_tracers(eqn.params))
    }
    return sorted(found | {*map(str, closed.effects)})


def contains(program: Jaxpr, name: str) -> bool:
    """Whether an operation of that name is in the program or one inside it."""
    return any(eqn.primitive.name == name for eqn in equations(program))


def equations(program: Jaxpr) -> Iterator[Any]:
    """The equations of a program and of those inside its containers."""
    for eqn in program.eqns:
        yield eqn
        if eqn.primitive.name in _CONTAINERS | _CUSTOM:
            for inner in inner_programs(eqn.params):
                yield from equations(inner)


def inner_programs(params: dict[str, Any]) -> list[Jaxpr]:
    """The programs among an equation's parameters."""
    found: list[Jaxpr] = []
    map_inner_programs(lambda closed: found.append(closed.jaxpr) or closed, params)
    return found


def map_inner_programs(
    fn: Callable[[ClosedJaxpr], ClosedJaxpr], params: dict[str, Any]
) -> dict[str, Any]:
    """An equation's parameters with `fn` of each of their programs."""

    def rewrite(value):
        if isinstance(value, ClosedJaxpr):
            return fn(value)
        if isinstance(value, Jaxpr):  # Newer versions of JAX have the other type alone.
            return fn(ClosedJaxpr(value, ())).jaxpr
        return tuple(map(rewrite, value)) if type(value) is tuple else value

    return {name: rewrite(value) for name, value in params.items()}


def is_container(eqn: Any) -> bool:
    """Whether the programs inside an equation may be rearranged."""
    return eqn.primitive.name in _CONTAINERS


def variables(atoms: Any) -> list[Any]:
    """The variables among `atoms`, which are no literals, once each."""
    return list(dict.fromkeys(a for a in atoms if not isinstance(a, Literal)))


def _closes_over_tracers(params: dict[str, Any]) -> bool:
    """Whether the functions among an equation's parameters may refer to a tracer."""
    queue = list(params.values())
    seen: set[int] = set()
    while queue:
        item = queue.pop()
        if isinstance(item, jax.core.Tracer) or len(seen) > _MOST_REFERENTS:
            return True
        if id(item) in seen or isinstance(item, _OPAQUE):
            continue
        seen.add(id(item))
        queue += _referents(item)
    return False


def _referents(item: Any) -> list[Any]:
    """The objects that an object refers to, a function's globals left out."""
    if isinstance(item, FunctionType):
        return [item.__closure__, item.__defaults__, item.__kwdefaults__, item.__dict__]
    if isinstance(item, functools.partial):
        return [item.func, item.args, item.keywords]
    return gc.get_referents(item)
