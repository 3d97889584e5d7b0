"""`loss_program`: the cut between what several tasks compute and the head of each."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, reduce
from operator import or_
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from samo_jax._config import config
from samo_jax._jaxprs._known import contains, is_known, variables


class LossProgram(NamedTuple):
    """A loss function that has been looked into.

    Attributes:
        losses: params to the K losses. Where the program is known, heads are
            isolated: a head whose loss gets the cotangent zero sends back zero, though
            its derivatives may be NaN. (On every platform, and under `jax.vmap`; not
            for heads in one operation, such as a matrix product or a `jax.jit`.)
        is_known: whether the program may be run again in parts.
        is_linear: whether its backward passes are known to be linear in the cotangent,
            which a `jax.custom_vjp` need not be.
    """

    losses: Callable[[Any], list[jax.Array]]
    is_known: bool
    is_linear: bool


def loss_program(
    losses_of: Callable[[Any], list[jax.Array]], params: Any
) -> LossProgram:
    """Look into a function of parameters that returns the list of K losses.

    Without isolation a NaN in one head reaches every task whose gradient comes out of
    the same backward pass: zero times NaN is NaN.
    """
    unknown = LossProgram(losses_of, is_known=False, is_linear=False)
    if not config.rewrite_programs:
        return unknown
    closed = jax.make_jaxpr(losses_of)(params)
    if not is_known(closed):
        return unknown
    run = _with_isolated_heads(closed)
    return LossProgram(
        lambda params: run(*jax.tree.leaves(params)),
        is_known=True,
        is_linear=not contains(closed.jaxpr, "custom_vjp_call"),
    )


def isolated_task(
    task_loss: Callable[..., jax.Array], params: Any
) -> Callable[..., jax.Array] | None:
    """`task_loss(params, i)` that sends back zero where it gets zero; None: unknown."""
    first = jnp.arange(1)[0]
    closed = jax.make_jaxpr(task_loss)(params, first)
    if not (config.rewrite_programs and is_known(closed)):
        return None
    program = closed.jaxpr
    inputs = [*program.invars, *program.constvars]
    program = program.replace(constvars=[], invars=inputs)
    run = jaxpr_as_fun(ClosedJaxpr(program, ()))
    head = _isolate(lambda leaves, others: run(*leaves, *others)[0])

    def isolated(params, i):
        others = [jnp.asarray(i, first.dtype), *closed.consts]
        return head(jax.tree.leaves(params), others)

    return isolated


def _with_isolated_heads(closed: ClosedJaxpr) -> Callable[..., list[jax.Array]]:
    program = closed.jaxpr
    heads, common = _by_task(program)
    of_params = sources(program)
    inputs = [
        inputs_of(eqns, [loss])
        for eqns, loss in zip(heads, program.outvars, strict=True)
    ]
    links = variables([link for links in inputs for link in links])
    trunk = run_part(program, common, program.invars, links, closed.consts)

    def loss_of(values, eqns, loss, reads):
        if isinstance(loss, Literal):
            return jnp.asarray(loss.val)
        if not eqns:
            return values[loss]
        features = [v for v in reads if of_params.get(v) and is_inexact(v)]
        constants = [v for v in reads if v not in features]
        run = run_part(program, eqns, features + constants, [loss])
        head = _isolate(lambda features, constants: run(*features, *constants)[0])
        return head([values[v] for v in features], [values[v] for v in constants])

    def losses(*leaves):
        values = dict(zip(links, trunk(*leaves), strict=True))
        return list(map(partial(loss_of, values), heads, program.outvars, inputs))

    return losses


def _isolate(head: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`head(features, constants)`, which sends back zero where it gets zero."""

    def forward(features, constants):
        return jax.vjp(lambda features: head(features, constants), features)

    def backward(pullback, cotangent):
        (features,) = pullback(cotangent)
        wanted = cotangent != 0
        return jax.tree.map(lambda leaf: jnp.where(wanted, leaf, 0), features), None

    isolated = jax.custom_vjp(head)
    isolated.defvjp(forward, backward)
    return isolated


def _by_task(program: Jaxpr) -> tuple[list[list[Any]], list[Any]]:
    """Equations that one task alone needs, by task, and those of more, in order."""
    heads: list[list[Any]] = [[] for _ in program.outvars]
    common: list[Any] = []
    for eqn, tasks in zip(program.eqns, needed_by(program), strict=True):
        if tasks:
            (heads[min(tasks)] if len(tasks) == 1 else common).append(eqn)
    return heads, common


def needed_by(program: Jaxpr) -> list[set[int]]:
    """The numbers of the outputs that need each equation."""
    needed: dict[Any, set[int]] = defaultdict(set)
    for i, output in enumerate(program.outvars):
        for variable in variables([output]):
            needed[variable].add(i)
    found = []
    for eqn in reversed(program.eqns):
        outputs = set().union(*(needed[out] for out in eqn.outvars))
        for variable in variables(eqn.invars):
            needed[variable] |= outputs
        found.append(outputs)
    return found[::-1]


def inputs_of(eqns: list[Any], outputs: list[Any]) -> list[Any]:
    """The variables that equations and outputs read, and equations do not make."""
    made = {out for eqn in eqns for out in eqn.outvars}
    reads = variables([*reads_of(eqns), *outputs])
    return [variable for variable in reads if variable not in made]


def reads_of(eqns: Iterable[Any]) -> list[Any]:
    """The variables that equations read."""
    return variables(atom for eqn in eqns for atom in eqn.invars)


def run_part(
    program: Jaxpr,
    eqns: list[Any],
    invars: list[Any],
    outvars: list[Any],
    consts: Sequence[Any] | None = None,
) -> Callable[..., list[Any]]:
    """A function that runs some equations; without constants they are inputs."""
    constvars = [] if consts is None else program.constvars
    part = program.replace(
        constvars=constvars, invars=invars, eqns=eqns, outvars=outvars
    )
    return jaxpr_as_fun(ClosedJaxpr(part, consts or ()))


def sources(program: Jaxpr, known: Mapping[Any, int] | None = None) -> dict[Any, int]:
    """The inputs that each variable depends on, as bits.

    Inputs have those that are known (None: each its own).
    """
    if known is None:
        known = {variable: 1 << i for i, variable in enumerate(program.invars)}
    found = dict(known)

    def bits(atom):
        return 0 if isinstance(atom, Literal) else found.get(atom, 0)

    for eqn in program.eqns:
        inputs = list(map(bits, eqn.invars))
        outputs = [reduce(or_, inputs, 0)] * len(eqn.outvars)
        if eqn.primitive.name == "remat2":
            inner = eqn.params["jaxpr"]
            of_inner = sources(inner, dict(zip(inner.invars, inputs, strict=True)))
            outputs = [
                0 if isinstance(end, Literal) else of_inner.get(end, 0)
                for end in inner.outvars
            ]
        found |= zip(eqn.outvars, outputs, strict=True)
    return found


def is_inexact(variable: Any) -> bool:
    """Whether a variable is real or complex, and not a key or an integer."""
    return jnp.issubdtype(variable.aval.dtype, jnp.inexact)
