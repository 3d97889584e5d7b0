"""Convolutions inside loops, in the form in which a CPU runs them fast."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun


def canonical_convolutions(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` with its convolutions in NHWC and HWIO order, transposed where they are not.

    XLA's CPU compiler does so itself, but only outside loops; inside, a convolution in
    another order, as all weight gradients are, takes its naive path (30 times as long).
    On other platforms, and without convolutions, `fn` stays as it is.
    """

    def transformed(*args: Any) -> Any:
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
        inputs, run = jax.tree.leaves(args), jaxpr_as_fun(closed)
        if _has_convolution(closed.jaxpr):
            leaves = lax.platform_dependent(
                *inputs,
                cpu=lambda *inputs: _evaluate(closed.jaxpr, closed.consts, inputs),
                default=run,
            )
        else:
            leaves = run(*inputs)
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return transformed


def _evaluate(jaxpr: Jaxpr, consts: list[Any], args: Any) -> list[Any]:
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= zip(jaxpr.invars, args, strict=True)

    def read(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        if eqn.primitive is lax.conv_general_dilated_p:
            outputs = [_convolve(*map(read, eqn.invars), **eqn.params)]
        else:
            needed = [atom for atom in eqn.invars if not isinstance(atom, Literal)]
            params = {name: _rewrite(value) for name, value in eqn.params.items()}
            alone = jaxpr.replace(
                constvars=needed,
                invars=[],
                outvars=eqn.outvars,
                eqns=[eqn.replace(params=params)],
            )
            outputs = jaxpr_as_fun(ClosedJaxpr(alone, list(map(read, needed))))()
        values |= zip(eqn.outvars, outputs, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _rewrite(value: Any) -> Any:
    """The inner programs of an equation's parameter, rewritten too."""
    if type(value) is tuple:
        return tuple(map(_rewrite, value))
    if isinstance(value, Jaxpr):
        return _rewrite(ClosedJaxpr(value, ())).jaxpr
    if isinstance(value, ClosedJaxpr) and _has_convolution(value.jaxpr):
        evaluate = partial(_evaluate, value.jaxpr, value.consts)
        return jax.make_jaxpr(lambda *args: evaluate(args))(*value.in_avals)
    return value


def _has_convolution(jaxpr: Jaxpr) -> bool:
    return any(
        eqn.primitive is lax.conv_general_dilated_p
        or any(map(_has_convolution, _inner(eqn.params)))
        for eqn in jaxpr.eqns
    )


def _inner(params: dict[str, Any]) -> list[Jaxpr]:
    programs = (ClosedJaxpr, Jaxpr)
    values = jax.tree.leaves(
        list(params.values()), is_leaf=lambda x: isinstance(x, programs)
    )
    return [
        value.jaxpr if isinstance(value, ClosedJaxpr) else value
        for value in values
        if isinstance(value, programs)
    ]


def _convolve(lhs: jax.Array, rhs: jax.Array, *, dimension_numbers, **params: Any):
    lhs_spec, rhs_spec, out_spec = dimension_numbers
    last = lhs.ndim - 1
    # Specs are (batch, feature, space...) and (out, in, space...).
    lhs = lax.transpose(lhs, (lhs_spec[0], *lhs_spec[2:], lhs_spec[1]))
    rhs = lax.transpose(rhs, (*rhs_spec[2:], rhs_spec[1], rhs_spec[0]))
    space = tuple(range(1, last))
    nhwc = (0, last, *space)
    hwio = (last, last - 1, *range(last - 1))
    out = lax.conv_general_dilated_p.bind(
        lhs,
        rhs,
        dimension_numbers=lax.ConvDimensionNumbers(nhwc, hwio, nhwc),
        **params,
    )
    order = (out_spec[0], *out_spec[2:], out_spec[1])
    return lax.transpose(out, tuple(order.index(axis) for axis in range(out.ndim)))
