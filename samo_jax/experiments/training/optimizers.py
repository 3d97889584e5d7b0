"""The Optax pipeline of a method: what its text says, on a problem."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import optax
from flax.traverse_util import path_aware_map

import samo_jax
from samo_jax.experiments.problems.benchmark import Benchmark
from samo_jax.experiments.training.grammar import (
    F_MTL,
    SAMO,
    VALUES,
    Call,
    parameters,
)
from samo_jax.experiments.training.methods import Method


class Setup(NamedTuple):
    """Setup of a method: what it is told that its text does not say.

    Attributes:
        num_tasks: number K of tasks.
        steps_per_epoch: number of steps in an epoch, for combiners that count epochs.
        key: key of the perturbation's draws.
        combiner_key: key of the combiner's draws.
        arguments: arguments of perturbations, by name, where the text has none.
        param_labels: see `samo_jax.multitask`.
    """

    num_tasks: int
    steps_per_epoch: int
    key: Any
    combiner_key: Any
    arguments: Mapping[str, Any] = MappingProxyType({})
    param_labels: Any = None


FROZEN, SHARED = "frozen", "shared"
Frozen = Callable[[tuple[str, ...]], bool]
# Where the experiments' defaults are not the library's.
_DEFAULTS: dict[str, Callable[[Setup], dict[str, Any]]] = {
    "fairgrad": lambda _: {"alpha": 2.0},  # the paper's
    "cagrad": lambda _: {"c": 0.4},
    "moco": lambda _: {"decay": 0.0},  # short averages: Adam has its own
    "db_mtl_momentum": lambda _: {"decay": 0.5},  # here too
    "dwa": lambda setup: {"window": setup.steps_per_epoch},
}
# Perturbations whose alpha is the share of the global gradient.
MIXED = ("joint_sam", SAMO, "memory_sam")


def make_combiner(call: Call, setup: Setup) -> samo_jax.Weighting | samo_jax.Aggregator:
    """The combiner of a call."""
    defaults = _DEFAULTS.get(call.name, lambda _: {})(setup)
    return samo_jax.COMBINERS[call.name].make(
        setup.num_tasks, setup.combiner_key, **defaults | _arguments(call, setup)
    )


def make_perturbation(call: Call, setup: Setup) -> samo_jax.Perturbation:
    """The perturbation of a call."""
    name = "joint_sam" if call.name == SAMO else call.name
    factory = samo_jax.PERTURBATIONS[name].factory
    return factory(**filled(call, setup.arguments) | _arguments(call, setup))


def make_transformation(
    method: Method, setup: Setup
) -> optax.GradientTransformationExtraArgs:
    """The multi-task transformation of a method, without an optimiser."""
    combiner_call, call, settings = method
    if combiner_call is None or method.descends_mean_loss:
        return optax.with_extra_args_support(optax.identity())
    combiner = make_combiner(combiner_call, setup)
    shape = {"num_tasks": setup.num_tasks, "param_labels": setup.param_labels}
    if call and call.name == F_MTL:
        arguments = filled(call, setup.arguments) | _arguments(call, setup)
        return samo_jax.f_mtl(combiner, **arguments, **shape)
    perturbation = make_perturbation(call, setup) if call else None
    further = _arguments(settings, setup) if settings else {}
    return samo_jax.multitask(combiner, perturbation, key=setup.key, **shape, **further)


def filled(call: Call, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a perturbation has and its text does not set."""
    free = parameters(call.name).keys() - call.arguments.keys()
    if call.name not in MIXED:
        free.discard("alpha")
    if "local" in call.arguments:
        free.discard("mu")  # of the default probe
    return {name: value for name, value in arguments.items() if name in free}


def make_optimizer(
    method: Method,
    benchmark: Benchmark,
    seed: int,
    swept: Mapping[str, Any] = MappingProxyType({}),
) -> optax.GradientTransformationExtraArgs:
    """The whole Optax pipeline of a method on a benchmark.

    Args:
        method: method to train with.
        benchmark: benchmark whose radius, alpha and optimiser are taken.
        seed: seed of all draws.
        swept: values of rho, alpha or mu in place of the benchmark's, in the state: it
            depends on neither them nor the seed, and is compiled once.

    Returns:
        Multi-task transformation, clipping of the shared gradient, optimiser.
    """
    tasks, steps = tuple(benchmark.tasks), benchmark.steps_per_epoch
    # SAMO folds the step into the seed's own key.
    combiner_key, _ = jax.random.split(jax.random.key(seed))

    def transformation(rho=benchmark.rho, alpha=benchmark.alpha, mu=1e-2):
        arguments = {"rho": rho, "alpha": alpha, "mu": mu}
        labels = partial(task_labels, tasks, frozen=benchmark.frozen)
        setup = Setup(len(tasks), steps, seed, combiner_key, arguments, labels)
        return make_transformation(method, setup)

    fixed = {"rho", "alpha", "mu"} - swept.keys()
    inject = optax.inject_hyperparams(transformation, static_args=fixed)

    def shared(params):
        return {name: name not in tasks for name in params}

    clip = benchmark.clip_norm
    return optax.chain(
        inject(**swept) if swept else transformation(),
        *([optax.masked(optax.clip_by_global_norm(clip), shared)] if clip else []),
        _trained_only(
            benchmark.optimizer(benchmark.learning_rate, steps, benchmark.epochs),
            benchmark.frozen,
        ),
    )


def task_labels(
    tasks: tuple[str, ...], params: Any, frozen: Frozen | None = None
) -> dict[str, Any]:
    """The label of each parameter.

    Heads' is their task, of what is not trained "frozen", of all others "shared".
    """

    def label(path: Any, _: Any) -> str:
        if frozen and frozen(path):
            return FROZEN
        return path[0] if path[0] in tasks else SHARED

    return dict(path_aware_map(label, params))


def _trained_only(
    optimizer: optax.GradientTransformation, frozen: Frozen | None
) -> optax.GradientTransformation:
    """The optimiser, without a state and without weight decay of what is frozen."""
    if frozen is None:
        return optimizer

    def kind(path: Any, _: Any) -> str:
        return FROZEN if frozen(path) else "trained"

    return optax.partition(
        {FROZEN: optax.set_to_zero(), "trained": optimizer},
        partial(path_aware_map, kind),
    )


def _arguments(call: Call, setup: Setup) -> dict[str, Any]:
    """The arguments that a text sets, made."""
    return {
        name: _made(value, setup) if isinstance(value, Call) else value
        for name, value in call.arguments.items()
    }


def _made(call: Call, setup: Setup) -> Any:
    """The combiner, perturbation, direction or value that an argument says."""
    if call.name in VALUES:
        return VALUES[call.name]
    if call.name in samo_jax.COMBINERS:
        return make_combiner(call, setup)
    if call.name in samo_jax.PERTURBATIONS:
        return make_perturbation(call, setup._replace(arguments={}))
    return samo_jax.probe(**_arguments(call, setup))
