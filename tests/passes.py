"""Passes of a step, counted in the compiled program."""

import functools

import jax
import jax.numpy as jnp

import samo_jax

NUM_TASKS, WIDTH, BATCH, DEPTH = 4, 64, 512, 2
FORWARD = 2 * BATCH * WIDTH**2 * DEPTH
# The first layer's input needs no gradient.
BACKWARD = (2 - 1 / DEPTH) * FORWARD


def loss_fn(params, x):
    """A trunk of layers, and heads that cost next to nothing."""
    hidden = x
    for layer in params["trunk"]:
        hidden = jnp.tanh(hidden @ layer)
    return jnp.mean(jnp.square(hidden @ params["heads"] - 1), axis=0)


def flops(function, *args):
    """The operations of a compiled function."""
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


def operations(tx, clean_pass, forward, backward):
    """Those of a step with the clean pass or without, relative to so many passes'."""
    params = {
        "trunk": [jnp.eye(WIDTH)] * DEPTH,
        "heads": jnp.ones((WIDTH, NUM_TASKS)),
    }

    def step(params, state, x):
        losses = functools.partial(loss_fn, x=x)
        grads = params
        if clean_pass:
            grads = samo_jax.mean_value_and_grad(losses)(params)[1]
        return tx.update(grads, state, params, loss_fn=losses)

    counted = flops(step, params, tx.init(params), jnp.ones((BATCH, WIDTH)))
    return counted / (forward * FORWARD + backward * BACKWARD)
