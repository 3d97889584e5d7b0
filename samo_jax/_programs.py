"""Programs (jaxprs) taken apart."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun


def traced(
    fn: Callable[..., Any], *args: Any
) -> tuple[ClosedJaxpr, Callable[[list[Any]], Any]]:
    """The program of `fn`, and what makes its outputs those of `fn`."""
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    return closed, partial(jax.tree.unflatten, jax.tree.structure(shapes))


def variables(atoms: Iterable[Any]) -> list[Any]:
    """Those of `atoms` that are no literals, once each."""
    return list(dict.fromkeys(a for a in atoms if not isinstance(a, Literal)))


def varying(program: Jaxpr) -> set[Any]:
    """The variables that depend on the program's inputs."""
    found = {*program.invars}
    for eqn in program.eqns:
        if not found.isdisjoint(variables(eqn.invars)):
            found.update(eqn.outvars)
    return found


def precomputed(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The program after all that does not depend on its inputs, which is done here."""
    program = closed.jaxpr
    inner = varying(program)
    now = [eqn for eqn in program.eqns if inner.isdisjoint(eqn.outvars)]
    later = [eqn for eqn in program.eqns if not inner.isdisjoint(eqn.outvars)]
    reads = [atom for eqn in later for atom in eqn.invars]
    links = [v for v in variables([*reads, *program.outvars]) if v not in inner]
    start = program.replace(invars=[], eqns=now, outvars=links)
    consts = jaxpr_as_fun(ClosedJaxpr(start, closed.consts))()
    return ClosedJaxpr(program.replace(constvars=links, eqns=later), consts)


def widened(closed: ClosedJaxpr, turns: int) -> ClosedJaxpr:
    """The program with so many turns of its loops (scans) one after another in one."""
    eqns = [
        eqn.replace(params=eqn.params | {"unroll": turns})
        if eqn.primitive is lax.scan_p
        else eqn
        for eqn in closed.eqns
    ]
    return ClosedJaxpr(closed.jaxpr.replace(eqns=eqns), closed.consts)
