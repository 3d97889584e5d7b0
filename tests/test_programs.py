"""Programs taken apart: nothing is done twice, nothing is lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxpr_as_fun

from samo_jax._programs import precomputed, widened


def test_only_what_depends_on_the_inputs_is_left():
    c = jnp.arange(3.0)

    def fn(x, y):
        return jnp.cos(c) * x, jnp.sin(y), jnp.exp(c), 2.0, x

    args = jnp.array(0.3), c + 1

    def all_at_once(*args):
        closed = precomputed(jax.make_jaxpr(fn)(*args))
        assert {"cos", "exp"}.isdisjoint(eqn.primitive.name for eqn in closed.eqns)
        return jaxpr_as_fun(closed)(*args)

    for run in (all_at_once, jax.jit(all_at_once)):
        for found, expected in zip(run(*args), fn(*args), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("turns", [1, 2, 3, 9])
def test_loops_of_fewer_longer_turns_give_the_same(turns):
    def fn(xs):
        return lax.scan(lambda total, x: (total + x, total * x), 0.0, xs)

    xs = jnp.arange(7.0)
    closed = widened(jax.make_jaxpr(fn)(xs), turns)
    assert [eqn.params["unroll"] for eqn in closed.eqns] == [turns]
    for found, expected in zip(jaxpr_as_fun(closed)(xs), fn(xs), strict=True):
        np.testing.assert_array_equal(found, expected)
