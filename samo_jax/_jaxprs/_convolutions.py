"""`canonicalize_convolutions`: convolutions in loops, as a CPU runs them fast."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from samo_jax._config import config
from samo_jax._jaxprs._known import contains, is_container, is_known, map_inner_programs

# Too few, or not a multiple of four, for XLA's convolutions to load them at once.
_FEW_FEATURES = {1, 2, 3, 5, 6, 7}
# Of a window, which is unrolled.
_MOST_WEIGHTS = 64


_CONVOLUTION = lax.conv_general_dilated_p


def canonicalize_convolutions(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` with its convolutions in NHWC and HWIO order, transposed where they are not.

    XLA's CPU compiler does so itself, but only outside loops; inside, a convolution in
    another order, as all weight gradients are, takes its naive path (30 times as long).
    Those of few features, as of images, become products with patches (a third of the
    time). On other platforms, without convolutions, and where the program is not known,
    `fn` stays as it is.
    """

    def transformed(*args: Any) -> Any:
        if not config.rewrite_programs:
            return fn(*args)
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
        if not is_known(closed):
            return fn(*args)
        outputs, inputs = jax.tree.structure(shapes), jax.tree.leaves(args)
        run = jaxpr_as_fun(closed)
        if _has_convolution(closed):
            on_cpu = jaxpr_as_fun(_canonicalized(closed))
            run = partial(lax.platform_dependent, cpu=on_cpu, default=run)
        return jax.tree.unflatten(outputs, run(*inputs))

    return transformed


def _has_convolution(closed: ClosedJaxpr) -> bool:
    return contains(closed.jaxpr, _CONVOLUTION.name)


def _canonicalized(closed: ClosedJaxpr) -> ClosedJaxpr:
    """A program with its convolutions in the order of `canonicalize_convolutions`."""
    if not _has_convolution(closed):
        return closed
    evaluate = partial(_evaluate, closed.jaxpr, closed.consts)
    return jax.make_jaxpr(lambda *args: evaluate(args))(*closed.in_avals)


def _evaluate(jaxpr: Jaxpr, consts: list[Any], args: Any) -> list[Any]:
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= zip(jaxpr.invars, args, strict=True)

    def read(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        if eqn.primitive is _CONVOLUTION:
            outputs = [
                _convolve(eqn.outvars[0].aval, *map(read, eqn.invars), **eqn.params)
            ]
        else:
            if is_container(eqn):
                params = map_inner_programs(_canonicalized, eqn.params)
                eqn = eqn.replace(params=params)
            needed = [atom for atom in eqn.invars if not isinstance(atom, Literal)]
            alone = jaxpr.replace(
                constvars=needed, invars=[], outvars=eqn.outvars, eqns=[eqn]
            )
            outputs = jaxpr_as_fun(ClosedJaxpr(alone, list(map(read, needed))))()
        values |= zip(eqn.outvars, outputs, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _convolve(
    out: Any, lhs: jax.Array, rhs: jax.Array, *, dimension_numbers, **params: Any
) -> jax.Array:
    """`lax.conv_general_dilated`; `out` has the shape of the result."""
    # Specs are (batch, feature, space...) and (out, in, space...).
    lhs_spec, rhs_spec, out_spec = dimension_numbers
    weights = _transpose(rhs, (*rhs_spec[2:], rhs_spec[1], rhs_spec[0]))
    positions = [out.shape[axis] for axis in out_spec[2:]]
    if (
        lhs.shape[lhs_spec[1]] in _FEW_FEATURES
        and math.prod(weights.shape[:-2]) <= min(math.prod(positions), _MOST_WEIGHTS)
        and params["feature_group_count"] == params["batch_group_count"] == 1
        and set(params["lhs_dilation"]) <= {1}
    ):
        return _by_patches(lhs, weights, positions, lhs_spec, out_spec, **params)
    return _in_canonical_order(lhs, weights, lhs_spec, out_spec, **params)


def _by_patches(
    lhs,
    weights,
    positions,
    lhs_spec,
    out_spec,
    *,
    padding,
    window_strides,
    rhs_dilation,
    precision,
    preferred_element_type,
    **_,
):
    """All patches times all weights."""
    batch, feature, *space = lhs_spec
    config = [(0, 0, 0)] * lhs.ndim
    for axis, (low, high) in zip(space, padding, strict=True):
        config[axis] = (low, high, 0)
    lhs = lax.pad(lhs, jnp.zeros((), lhs.dtype), config)

    def met_by(place):
        """The entries of `lhs` that one place of the window meets."""
        start, limit, strides = [0] * lhs.ndim, list(lhs.shape), [1] * lhs.ndim
        for axis, index, dilation, size, stride in zip(
            space, place, rhs_dilation, positions, window_strides, strict=True
        ):
            start[axis] = index * dilation
            limit[axis] = start[axis] + (size - 1) * stride + 1
            strides[axis] = stride
        return lax.slice(lhs, start, limit, strides)

    places = itertools.product(*map(range, weights.shape[:-2]))
    patches = lax.concatenate(list(map(met_by, places)), feature)
    out = lax.dot_general(
        patches,
        weights.reshape(-1, weights.shape[-1]),
        (([feature], [0]), ([], [])),
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    kept = [axis for axis in range(lhs.ndim) if axis != feature]
    batch, *space = map(kept.index, (batch, *space))
    return _arrange(out, (batch, lhs.ndim - 1, *space), out_spec)


def _in_canonical_order(lhs, weights, lhs_spec, out_spec, **params):
    last = lhs.ndim - 1
    lhs = _transpose(lhs, (lhs_spec[0], *lhs_spec[2:], lhs_spec[1]))
    space = tuple(range(1, last))
    nhwc = (0, last, *space)
    hwio = (last, last - 1, *range(last - 1))
    out = lax.conv_general_dilated_p.bind(
        lhs,
        weights,
        dimension_numbers=lax.ConvDimensionNumbers(nhwc, hwio, nhwc),
        **params,
    )
    return _arrange(out, nhwc, out_spec)


def _transpose(x, order):
    """`lax.transpose` by itself.

    Inlined, XLA would repeat in it what makes `x`, as a relu (three to six times the
    time), and would not take it out of a loop in which `x` is always the same.
    """
    if order == tuple(range(x.ndim)):
        return x
    with set_xla_metadata(inlineable="false"):
        return jax.jit(lax.transpose, static_argnums=1)(x, order)


def _arrange(out, spec, out_spec):
    """The array with axes in the order of `out_spec` instead of `spec`."""
    return lax.transpose(out, [spec[out_spec.index(axis)] for axis in range(out.ndim)])
