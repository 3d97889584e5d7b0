"""The part of accelerator.py that runs in JAX, in a process of its own."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
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
from jax.scipy.linalg import cho_factor, cho_solve

import samo_jax

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import golden_steps

CAGRAD_C = 0.4
SOLVERS: dict[str, Callable] = {
    "mgda": samo_jax.mgda_weights,
    "fairgrad": partial(samo_jax.fairgrad_weights, alpha=2.0),
    "cagrad": partial(samo_jax.cagrad_weights, c=CAGRAD_C),
    "upgrad": samo_jax.upgrad_weights,
    "nash": partial(samo_jax.fairgrad_weights, alpha=1.0),
}
METHODS = {
    "plain": step_methods.PLAIN,
    **{
        name: step_methods.METHODS[name]
        for name in ("FairGrad", "global SAM", "SAMO", "F-MTL")
    },
    **step_methods.CHEAP_METHODS,
}
ROUNDS = 100  # of control flow
# Options of compilation where only the numbers count.
QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


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
    if shutil.which("nvidia-smi"):
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


def directions(name: str, dtype: str) -> dict[str, Any]:
    """Those recorded from TorchJD again: errors as shares of their tolerances."""
    import test_torchjd

    with jax.enable_x64(dtype == "float64"):
        errors = dict(test_torchjd.recorded_errors(name, dtype))
    tolerance = test_torchjd.TOLERANCES[name][dtype == "float32"]
    return {
        "cases": len(errors),
        "missed": [case for case, error in errors.items() if not error <= tolerance],
        "direction_error": max(errors.values()),
        "tolerance": tolerance,
    }


def solver(name: str, num_tasks: int, seconds: float, problems: int) -> dict[str, Any]:
    """Errors against float64 on the CPU, and latencies."""
    solve = partial(SOLVERS[name], return_info=True)
    gramians = np.stack([Problem(num_tasks, seed).gramian for seed in range(problems)])
    singles = gramians.astype(np.float32)

    def solve_all(gramians):
        return lax.map(solve, gramians)

    def in_float64():
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            compiled, _ = _compiled(solve_all, gramians, options=QUICKLY)
            return jax.tree.map(np.asarray, compiled(gramians)[0])

    exact = _pool.submit(in_float64)
    single = _pool.submit(_compiled, solve, singles[0])
    compiled, compile_s = _compiled(solve_all, singles)
    loop = _Repeated(compiled, jax.device_put(singles))
    alone = _Repeated(single.result()[0], jax.device_put(singles[0]))
    weights, info = jax.tree.map(np.asarray, loop())
    errors = [
        float(error(gramian, np.float64(ours), right, scale_free=name == "nash"))
        for gramian, ours, right in zip(gramians, weights, exact.result(), strict=True)
    ]
    return {
        "direction_error": max(errors),
        "converged": float(np.mean(info.converged)),
        "steps": float(np.mean(info.steps)),
        "compile_s": compile_s,
        **clock(alone, alone.wait, seconds),
        "in_loop_ms": min(clock(loop, loop.wait, seconds)["ms"]) / problems,
        "program": accelerator_host.in_program(alone.compiled.as_text()),
        "profile": accelerator_host.in_profile(alone, 10),
    }


def _cholesky(i: jax.Array, x: jax.Array) -> jax.Array:
    size = 40
    system = jnp.diag(2.0 + i + x[:size]) + jnp.outer(x[:size], x[:size])
    return x.at[:size].set(cho_solve(cho_factor(system), x[:size]))


_TURNS = [lambda x: jnp.cos(x + 1), lambda x: jnp.cos(x + 2)]
BODIES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "cosine": lambda i, x: jnp.cos(x + i),
    "lax.cond": lambda i, x: lax.cond(jnp.sum(x) > i, *_TURNS, x),
    "lax.switch": lambda i, x: lax.switch(i % 2, _TURNS, x),
    "jax.pure_callback": lambda i, x: jax.pure_callback(np.cos, x, x + i),
    "Cholesky solve": _cholesky,
}


def rounds_of(kind: str, is_open: bool, x: jax.Array) -> jax.Array:
    """`ROUNDS` of them, counted, or as long as x is finite too."""
    if not is_open:
        return lax.fori_loop(0, ROUNDS, BODIES[kind], x)

    def unfinished(carry):
        i, x = carry
        return (i < ROUNDS) & jnp.isfinite(jnp.sum(x))

    def go_on(carry):
        i, x = carry
        return i + 1, BODIES[kind](i, x)

    return lax.while_loop(unfinished, go_on, (0, x))[1]


def control_flow(kind: str, is_open: bool, seconds: float) -> dict[str, Any]:
    """Milliseconds of a round, and what the host has to do for it."""
    x = jnp.linspace(0, 1, 1024)
    compiled, _ = _compiled(partial(rounds_of, kind, is_open), x)
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


def _compiled(
    function: Callable,
    *args: Any,
    donated: tuple[int, ...] = (),
    options: dict[str, Any] | None = None,
) -> tuple[Any, float]:
    """For these arguments, and the seconds it took."""
    start = time.perf_counter()
    lowered = jax.jit(function, donate_argnums=donated).lower(*args)
    return lowered.compile(options), time.perf_counter() - start


_prepared: dict[tuple[Any, ...], Future[tuple[_Step, dict[str, Any]]]] = {}
_pool = ThreadPoolExecutor(8)


def submit(model: str, steps: list[tuple[str, Any]], small: bool) -> dict[str, Any]:
    """Start to compile (method, unroll) at once; forget all other models' steps."""
    for key in [key for key in _prepared if key[0] != model]:
        _prepared.pop(key).cancel()
    accelerator_models.make(model, small)  # kept for all of them
    for method, unroll in steps:
        key = (model, method, unroll, small)
        _prepared[key] = _pool.submit(_prepare, *key)
    return {}


def _prepare(
    model: str, method: str, unroll: Any, small: bool
) -> tuple[_Step, dict[str, Any]]:
    made = accelerator_models.make(model, small)
    step, state = step_methods.make_step(made, METHODS[method], unroll)
    # Donated, hence copied.
    params = jax.tree.map(jnp.copy, made.params)
    args = (params, state, jax.device_put(made.data))
    compiled, seconds = _compiled(step, *args, donated=(0, 1))
    found = {
        "description": made.description,
        "compile_s": seconds,
        "program": accelerator_host.in_program(compiled.as_text()),
    }
    memory = compiled.memory_analysis()
    if memory is not None:
        found["memory_bytes"] = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
        )
    return _Step(compiled, *args), found


def _step(
    model: str, method: str, unroll: Any, small: bool, seconds: float | None = None
) -> tuple[_Step, dict[str, Any]]:
    """Wait at most so many seconds until it is compiled."""
    key = (model, method, unroll, small)
    if key not in _prepared:
        submit(model, [(method, unroll)], small)
    return _prepared[key].result(seconds)


def prepare(
    model: str, method: str, unroll: Any, small: bool, seconds: float
) -> dict[str, Any]:
    """A compiled step, after its first call."""
    step, found = _step(model, method, unroll, small, seconds)
    step()
    step.wait()
    return found


def times(
    model: str, method: str, unroll: Any, small: bool, seconds: float
) -> dict[str, Any]:
    """Of one method's step."""
    step, _ = _step(model, method, unroll, small)
    found = clock(step, step.wait, seconds)
    params, *_ = step.args
    finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params))
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return {**found, "finite": finite, "peak_bytes_so_far": peak}


def profile(model: str, method: str, unroll: Any, small: bool) -> dict[str, Any]:
    """Of three steps."""
    step, _ = _step(model, method, unroll, small)
    return accelerator_host.in_profile(step, 3)
