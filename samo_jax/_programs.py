"""Programs (jaxprs) taken apart."""

from collections.abc import Iterable
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun


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
