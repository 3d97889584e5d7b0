"""The part of accelerator.py that runs in JAX, in a process of its own."""

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import accelerator_host
import accelerator_models
import jax
import jax.numpy as jnp
import numpy as np
import step_methods
from accelerator_clock import times as clock
from gramians import Problem, error
from jax import lax

import samo_jax

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import golden_steps

CAGRAD_C = 0.4
SOLVERS: dict[str, Callable] = {
    "mgda": samo_jax.mgda_weights,
    "fairgrad": partial(samo_jax.fairgrad_weights, alpha=2.0),
    "cagrad": partial(samo_jax.cagrad_weights, c=CAGRAD_C),
    "upgrad": samo_jax.upgrad_weights,
    "nash": samo_jax.nash_mtl_weights,
}
METHODS = {
    "plain": step_methods.PLAIN,
    **{
        name: step_methods.METHODS[name]
        for name in ("FairGrad", "global SAM", "SAMO", "F-MTL")
    },
}
ROUNDS = 100  # of control flow


def environment() -> dict[str, Any]:
    """What is installed, and the device."""
    device = jax.devices()[0]
    found = {
        "device": device.device_kind,
        "platform": device.platform,
        "jax": jax.__version__,
        "jaxlib": jax.lib.__version__,
        "samo_jax": samo_jax.__version__,
        "python": sys.version.split()[0],
    }
    if device.platform == "gpu":
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total"]
        card = subprocess.run(
            [*query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        )
        found["card"] = card.stdout.strip()
    return found


def golden(file: str, dtype: str, precision: str | None) -> dict[str, Any]:
    """A recorded step again: its worst quantities, as shares of their tolerances."""
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision(precision):
        step = golden_steps.Golden(file, dtype)
        computed, recorded = step.computed(), step.recorded()
        errors = {
            name: golden_steps.relative_error(computed[name], value)
            for name, value in recorded.items()
        }
        shares = {name: errors[name] / float(step.tolerance(name)) for name in errors}
    worst = sorted(shares, key=lambda name: -shares[name])
    return {
        "quantities": len(errors),
        "missed": [name for name in worst if not shares[name] <= 1],
        "worst": [[name, errors[name], shares[name]] for name in worst[:5]],
    }


def solver(name: str, num_tasks: int, seconds: float, problems: int) -> dict[str, Any]:
    """Errors against float64 on the CPU, and latencies."""
    solve = partial(SOLVERS[name], return_info=True)
    gramians = np.stack([Problem(num_tasks, seed).gramian for seed in range(problems)])

    def solve_all(gramians):
        return lax.map(solve, gramians)

    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        exact, _ = jax.jit(solve_all)(gramians)
    singles = jax.device_put(gramians.astype(np.float32))
    compiled, compile_s = _compiled(solve_all, singles)
    weights, info = compiled(singles)
    errors = [
        float(error(g, np.float64(w), np.asarray(e), scale_free=name == "nash"))
        for g, w, e in zip(gramians, weights, exact, strict=True)
    ]
    loop = _Repeated(compiled, singles)
    single, _ = _compiled(solve, singles[0])
    alone = _Repeated(single, singles[0])
    return {
        "direction_error": max(errors),
        "converged": float(np.mean(info.converged)),
        "steps": float(np.mean(info.steps)),
        "compile_s": compile_s,
        **clock(alone, alone.wait, seconds),
        "in_loop_ms": min(clock(loop, loop.wait, seconds)["ms"]) / problems,
        "program": accelerator_host.in_program(single.as_text()),
        "profile": accelerator_host.in_profile(alone, 10),
    }


def _branching(kind: str, x: jax.Array) -> jax.Array:
    """`ROUNDS` rounds of `x = cos(x + i)`, one way or another."""
    turns = [lambda x: jnp.cos(x + 1), lambda x: jnp.cos(x + 2)]
    bodies: dict[str, Callable] = {
        "counted loop": lambda i, x: jnp.cos(x + i),
        "lax.cond": lambda i, x: lax.cond(jnp.sum(x) > i, *turns, x),
        "lax.switch": lambda i, x: lax.switch(i % 2, turns, x),
        "jax.pure_callback": lambda i, x: jax.pure_callback(np.cos, x, x + i),
    }
    if kind in bodies:
        return lax.fori_loop(0, ROUNDS, bodies[kind], x)

    def unfinished(carry):
        i, x = carry
        return (i < ROUNDS) & (jnp.sum(x) < jnp.inf)

    return lax.while_loop(
        unfinished, lambda carry: (carry[0] + 1, jnp.cos(carry[1] + 1)), (0, x)
    )[1]


def control_flow(kind: str, seconds: float) -> dict[str, Any]:
    """Milliseconds of a round, and what the host has to do for it."""
    x = jnp.linspace(0, 1, 1024)
    compiled, _ = _compiled(partial(_branching, kind), x)
    step = _Repeated(compiled, x)
    found = clock(step, step.wait, seconds)
    return {
        "rounds": ROUNDS,
        **found,
        "program": accelerator_host.in_program(compiled.as_text()),
        "profile": accelerator_host.in_profile(step, 5),
    }


class _Repeated:
    """A compiled function with its arguments, and its last result."""

    def __init__(self, compiled: Callable, *args: Any):
        self.compiled, self.args, self.result = compiled, args, None

    def __call__(self) -> Any:
        self.result = self.compiled(*self.args)
        return self.result

    def wait(self) -> None:
        jax.block_until_ready(self.result)


class _Step(_Repeated):
    """A compiled training step, which goes on from its last result."""

    def __call__(self) -> Any:
        *_, data = self.args
        self.result = self.compiled(*self.args)
        self.args = (*self.result, data)
        return self.result


def _compiled(function: Callable, *args: Any, **options: Any) -> tuple[Any, float]:
    """For these arguments, and the seconds it took."""
    start = time.perf_counter()
    compiled = jax.jit(function, **options).lower(*args).compile()
    return compiled, time.perf_counter() - start


_prepared: dict[tuple[Any, ...], _Step] = {}


def prepare(model: str, method: str, unroll: Any, small: bool) -> dict[str, Any]:
    """Compile a step, and warm up."""
    made = accelerator_models.make(model, small)
    step, state = step_methods.make_step(made, METHODS[method], unroll)
    args = (made.params, state, jax.device_put(made.data))
    compiled, seconds = _compiled(step, *args, donate_argnums=(0, 1))
    prepared = _prepared[model, method, unroll] = _Step(compiled, *args)
    prepared()
    prepared.wait()
    memory = compiled.memory_analysis()
    found = {
        "description": made.description,
        "compile_s": seconds,
        "program": accelerator_host.in_program(compiled.as_text()),
    }
    if memory is not None:
        found["memory_bytes"] = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
        )
        found["temporary_bytes"] = memory.temp_size_in_bytes
    return found


def _step(model: str, method: str, unroll: Any, small: bool) -> _Step:
    if (model, method, unroll) not in _prepared:
        prepare(model, method, unroll, small)
    return _prepared[model, method, unroll]


def times(
    model: str, method: str, unroll: Any, small: bool, seconds: float
) -> dict[str, Any]:
    """Of one method's step."""
    step = _step(model, method, unroll, small)
    found = clock(step, step.wait, seconds)
    params, *_ = step.args
    finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params))
    return {**found, "finite": finite}


def profile(model: str, method: str, unroll: Any, small: bool) -> dict[str, Any]:
    """Of three steps."""
    return accelerator_host.in_profile(_step(model, method, unroll, small), 3)


def drop() -> dict[str, Any]:
    """Free what the last model has needed; the most that JAX had allocated."""
    _prepared.clear()
    jax.clear_caches()
    stats = jax.devices()[0].memory_stats() or {}
    return {"peak_bytes_in_use": stats.get("peak_bytes_in_use")}
