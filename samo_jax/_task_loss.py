"""The loss of one task in a loop over tasks, which runs the head of that task alone."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from samo_jax._programs import variables, varying
from samo_jax._tasks import LossFn, Unroll, is_chunked, loss_leaves, select_loss
from samo_jax._tree import PyTree


class Split(NamedTuple):
    """A loss function in two parts.

    Attributes:
        losses: params to all K losses, as `loss_fn` computes them.
        trunk: params to the links: floating-point arrays that depend on them, and
            other arrays. All that two tasks or more need is computed here.
        tail: `tail(*links, i)`, the loss of task i, where no other head is run. (Not on
            GPUs, whose host would wait for the branch: there they all are.)
    """

    losses: Callable[[PyTree], list[jax.Array]]
    trunk: Callable[[PyTree], tuple[list[jax.Array], list[jax.Array]]]
    tail: Callable[[Sequence[jax.Array], Sequence[jax.Array], jax.Array], jax.Array]


def task_loss(
    loss_fn: LossFn, params: PyTree, i: int | jax.Array, unroll: Unroll
) -> jax.Array:
    """The loss of task i; `unroll` is that of the loop over tasks around it."""
    if isinstance(i, int) or is_chunked(unroll):
        return select_loss(loss_fn(params), i)
    split = split_tasks(loss_fn, params)
    return split.tail(*split.trunk(params), i)


def split_tasks(loss_fn: LossFn, params: PyTree) -> Split:
    """Cut a loss function where the ways of the tasks part.

    A part under `jax.jit`, `jax.checkpoint` or a loop is not cut.
    """
    closed = jax.make_jaxpr(lambda params: loss_leaves(loss_fn(params)))(params)
    program = closed.jaxpr
    own, common = _by_task(program)

    reads = [atom for eqns in own for eqn in eqns for atom in eqn.invars]
    made_by_tails = {out for eqns in own for eqn in eqns for out in eqn.outvars}
    links = variables([*reads, *program.outvars])
    links = [link for link in links if link not in made_by_tails]
    of_params = varying(program)
    floats = [
        link
        for link in links
        if link in of_params and jnp.issubdtype(link.aval.dtype, jnp.floating)
    ]
    others = [link for link in links if link not in floats]

    start = program.replace(eqns=common, outvars=floats + others)
    run_start = jaxpr_as_fun(ClosedJaxpr(start, closed.consts))
    dtype = jnp.result_type(*(loss.aval.dtype for loss in program.outvars))

    def loss_of(eqns, loss):
        part = program.replace(
            constvars=[], invars=floats + others, eqns=eqns, outvars=[loss]
        )
        run = jaxpr_as_fun(ClosedJaxpr(part, ()))
        return lambda *links: run(*links)[0].astype(dtype)

    tails = list(map(loss_of, own, program.outvars))

    def losses(params):
        return jaxpr_as_fun(closed)(*jax.tree.leaves(params))

    def trunk(params):
        links = run_start(*jax.tree.leaves(params))
        return links[: len(floats)], links[len(floats) :]

    def tail(floats, others, i):
        def run_all(i, *links):
            return jnp.stack([loss(*links) for loss in tails])[i]

        return lax.platform_dependent(
            i,
            *floats,
            *others,
            cpu=lambda i, *links: lax.switch(i, tails, *links),
            default=run_all,
        )

    return Split(losses, trunk, tail)


def _by_task(program: Any) -> tuple[list[list[Any]], list[Any]]:
    """Equations that one task alone needs, by task, and those of more, in order."""
    needed_by: dict[Any, set[int]] = defaultdict(set)
    for task, loss in enumerate(program.outvars):
        for variable in variables([loss]):
            needed_by[variable].add(task)
    own: list[list[Any]] = [[] for _ in program.outvars]
    common = []
    for eqn in reversed(program.eqns):
        tasks = set().union(*(needed_by[out] for out in eqn.outvars))
        if eqn.effects:
            tasks = set(range(len(own)))
        for variable in variables(eqn.invars):
            needed_by[variable] |= tasks
        if len(tasks) == 1 and not eqn.effects:
            own[min(tasks)].insert(0, eqn)
        elif tasks:
            common.insert(0, eqn)
    return own, common
