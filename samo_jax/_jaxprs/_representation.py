"""`cut_at_representation`: a loss function in two, the trunk and the tasks' heads."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import compress
from operator import not_
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from samo_jax._config import config
from samo_jax._jaxprs._heads import (
    inputs_of,
    is_inexact,
    needed_by,
    reads_of,
    run_part,
    sources,
)
from samo_jax._jaxprs._known import equations, inner_programs, unknown, variables

_MARK = "samo_jax.representation"
_CALLS = {"closed_call": "call_jaxpr", "jit": "jaxpr", "pjit": "jaxpr"}
# Operations that take a part of an array.
_TAKING = {"dynamic_slice", "gather", "slice", "split", "squeeze", "unstack"}


class Feature(NamedTuple):
    """An array with a gradient that heads read: of the trunk, or a parameter itself.

    Attributes:
        readers: the tasks whose heads read it, in order.
        parameters: the numbers of the parameters that it depends on.
        is_parameter: whether it is one.
    """

    readers: tuple[int, ...]
    parameters: tuple[int, ...]
    is_parameter: bool


class Cut(NamedTuple):
    """A loss function in two.

    Attributes:
        features: readers and sources of each feature.
        trunk: params to the features' values, and to all else that heads read.
        heads: a function for each task, from the features that its head reads, and all
            else, to its loss.
        all_heads: all features and all else to the K losses.
        is_joint: whether heads are for the most part the same operations.
    """

    features: list[Feature]
    trunk: Callable[[Any], tuple[list[jax.Array], list[Any]]]
    heads: list[Callable[[list[jax.Array], list[Any]], jax.Array]]
    all_heads: Callable[[list[jax.Array], list[Any]], list[jax.Array]]
    is_joint: bool


class _Halves(NamedTuple):
    """The equations of a program in two: those below read `links`."""

    above: list[Any]
    below: list[Any]
    links: list[Any]
    marked: set[Any]


def mark_representation(z: Any) -> Any:
    """Arrays, marked by an operation that does nothing."""
    return checkpoint_name(z, _MARK)


def cut_at_representation(
    losses_of: Callable[[Any], list[jax.Array]], params: Any
) -> Cut:
    """Cut at the marked arrays, or else at what losses have in common last.

    It makes a feature possible: K backward passes through the heads alone. Calls of
    `jax.jit` are written out; a `jax.checkpoint` with a mark inside becomes two.

    Raises:
        ValueError: if the program may not be taken apart, or nothing is found.
    """
    closed = jax.make_jaxpr(losses_of)(params)
    _check_known(closed)
    flat = _written_out(closed.jaxpr, closed.consts, *jax.tree.leaves(params))
    program, halves = flat.jaxpr, _halves(flat.jaxpr)
    of_params = sources(program)
    is_feature = [bool(of_params.get(v)) and is_inexact(v) for v in halves.links]
    features = list(compress(halves.links, is_feature))
    others = list(compress(halves.links, map(not_, is_feature)))
    tasks, eqns = range(len(program.outvars)), _by_output(program, halves)
    if len(tasks) > 1:
        _check_found(closed, program, halves, features, eqns)
    reads = [{*inputs_of(eqns[i], [program.outvars[i]])} for i in tasks]
    own = [[v for v in features if v in read] for read in reads]
    above = run_part(program, halves.above, program.invars, halves.links, flat.consts)

    def trunk(params):
        values = dict(zip(halves.links, above(*jax.tree.leaves(params)), strict=True))
        return [_as_real(values[v]) for v in features], [values[v] for v in others]

    def below(eqns, inputs, outvars):
        run = run_part(program, eqns, [*inputs, *others], outvars)
        return lambda values, others: run(*map(_as_given, inputs, values), *others)

    def head(i):
        run = below(eqns[i], own[i], [program.outvars[i]])
        return lambda features, others: run(features, others)[0]

    numbers = range(len(program.invars))
    return Cut(
        features=[
            Feature(
                readers=tuple(i for i in tasks if v in reads[i]),
                parameters=tuple(n for n in numbers if of_params[v] >> n & 1),
                is_parameter=v in {*program.invars},
            )
            for v in features
        ],
        trunk=trunk,
        heads=[head(i) for i in tasks],
        all_heads=below(halves.below, features, program.outvars),
        is_joint=_is_joint(halves, eqns),
    )


def _as_real(z: jax.Array) -> jax.Array:
    """A complex array as two real ones."""
    return jnp.stack([z.real, z.imag]) if jnp.iscomplexobj(z) else z


def _as_given(variable: Any, z: jax.Array) -> jax.Array:
    """The array as the program has it."""
    is_complex = jnp.issubdtype(variable.aval.dtype, jnp.complexfloating)
    return lax.complex(z[0], z[1]) if is_complex else z


def _check_known(closed: ClosedJaxpr) -> None:
    """Raise unless the program may be taken apart."""
    got = f"operations that are not known: {', '.join(unknown(closed))}"
    if not config.rewrite_programs:
        got = "samo_jax.config.rewrite_programs=False"
    elif not unknown(closed):
        return
    raise ValueError(
        f"`gramian_of` 'representation' takes the program of `loss_fn` apart, got {got}"
        ". Give a mask of the last shared leaves instead."
    )


def _check_found(
    closed: ClosedJaxpr,
    program: Jaxpr,
    halves: _Halves,
    features: list[Any],
    heads: list[list[Any]],
) -> None:
    """Raise unless two heads read the same array of the trunk.

    Where none is marked, they must not read parts of it alone.
    """
    if not halves.marked and any(map(_is_mark, equations(closed.jaxpr))):
        raise ValueError(
            "`representation` must mark what the heads read, got a mark "
            "inside a loop, a branch or a custom derivative. Mark its result."
        )
    passed_over = () if halves.marked else _TAKING
    reads = [
        {*reads_of(eqn for eqn in eqns if eqn.primitive.name not in passed_over)}
        for eqns in heads
    ]
    for feature in {*features} - {*program.invars}:
        if sum(feature in read for read in reads) > 1:
            return
    raise ValueError(
        "`gramian_of` 'representation' needs an array that several heads read, got "
        "losses with only parameters in common, or one array of which each takes its "
        "part. Compute it once, and mark it: "
        "`z = samo_jax.representation(trunk(params, x))`."
    )


def _halves(program: Jaxpr) -> _Halves:
    """Equations above and below; a mark has no equation below before it.

    Below is what follows marks, and what one output alone needs.
    """
    marked = {out for eqn in program.eqns if _is_mark(eqn) for out in eqn.outvars}
    leading = {*marked}
    for eqn in reversed(program.eqns):
        if not leading.isdisjoint(eqn.outvars):
            leading.update(variables(eqn.invars))
    reached = {*marked}
    above, below = [], []
    for eqn, outputs in zip(program.eqns, needed_by(program), strict=True):
        if not outputs:
            continue
        follows = not reached.isdisjoint(variables(eqn.invars))
        if follows:
            reached.update(eqn.outvars)
        is_below = (follows or len(outputs) == 1) and leading.isdisjoint(eqn.outvars)
        (below if is_below else above).append(eqn)
    return _Halves(above, below, inputs_of(below, program.outvars), marked)


def _by_output(program: Jaxpr, halves: _Halves) -> list[list[Any]]:
    """Equations below that each output needs."""
    needed = needed_by(program.replace(eqns=halves.below))
    return [
        [eqn for eqn, by in zip(halves.below, needed, strict=True) if i in by]
        for i in range(len(program.outvars))
    ]


def _is_joint(halves: _Halves, by_output: list[list[Any]]) -> bool:
    """Whether most equations below are of several outputs."""
    return sum(map(len, by_output)) > 2 * len(halves.below)


def _is_mark(eqn: Any) -> bool:
    return eqn.primitive.name == "name" and eqn.params["name"] == _MARK


def _written_out(program: Jaxpr, consts: Sequence[Any], *args: Any) -> ClosedJaxpr:
    """The program without calls, and with no mark inside what can be opened."""
    return jax.make_jaxpr(partial(_run, program, consts))(*args)


def _run(program: Jaxpr, consts: Sequence[Any], *args: Any) -> list[Any]:
    """The outputs, equation by equation."""
    values = dict(zip(program.constvars, consts, strict=True))
    values |= zip(program.invars, args, strict=True)
    used = {*reads_of(program.eqns), *variables(program.outvars)}

    def read(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in program.eqns:
        inputs, outs = variables(eqn.invars), [v for v in eqn.outvars if v in used]
        if eqn.primitive.name in _CALLS:
            inner = eqn.params[_CALLS[eqn.primitive.name]]
            found = _run(inner.jaxpr, inner.consts, *map(read, eqn.invars))
            values |= zip(eqn.outvars, found, strict=True)
        elif eqn.primitive.name == "remat2" and _has_mark(eqn):
            found = _run_checkpoint(eqn.params, *map(read, eqn.invars))
            values |= zip(eqn.outvars, found, strict=True)
        else:
            one = run_part(program, [eqn], inputs, outs)
            values |= zip(outs, one(*map(read, inputs)), strict=True)
            for out in _marked(eqn):
                values[out] = mark_representation(values[out])
    return list(map(read, program.outvars))


def _run_checkpoint(params: dict[str, Any], *args: Any) -> list[Any]:
    """The outputs of a `jax.checkpoint` as two, with the marks between them."""
    flat = _written_out(params["jaxpr"], (), *args)
    program, halves = flat.jaxpr, _halves(flat.jaxpr)
    checkpoint = partial(
        jax.checkpoint, policy=params["policy"], prevent_cse=params["prevent_cse"]
    )
    values = dict(zip(program.constvars, flat.consts, strict=True))
    values |= zip(program.invars, args, strict=True)
    made = [link for link in halves.links if link not in values]
    above = run_part(program, halves.above, program.invars, made, flat.consts)
    for link, value in zip(made, checkpoint(above)(*args), strict=True):
        is_marked = link in halves.marked
        values[link] = mark_representation(value) if is_marked else value

    def below(eqns, outputs):
        reads = inputs_of(eqns, outputs)
        run = run_part(program, eqns, reads, outputs)
        return checkpoint(run)(*(values[v] for v in reads))

    eqns = _by_output(program, halves)
    if _is_joint(halves, eqns):
        return below(halves.below, program.outvars)
    return [below(part, [v])[0] for part, v in zip(eqns, program.outvars, strict=True)]


def _has_mark(eqn: Any) -> bool:
    return any(
        any(map(_is_mark, equations(inner))) for inner in inner_programs(eqn.params)
    )


def _marked(eqn: Any) -> list[Any]:
    """The outputs of an equation that are marked at the end of a program inside it."""
    if not _has_mark(eqn):
        return []
    found = []
    for inner in inner_programs(eqn.params):
        marks = (e.outvars if _is_mark(e) else _marked(e) for e in inner.eqns)
        marked = {out for outs in marks for out in outs}
        ends = zip(inner.outvars, eqn.outvars, strict=False)
        found += [out for end, out in ends if variables([end]) and end in marked]
    return found
