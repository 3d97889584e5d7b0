"""Methods by name: a gradient combiner, and where the tasks' gradients are taken."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import samo_jax
from samo_jax.experiments.benchmarks.benchmark import Benchmark, adam


class Setting(NamedTuple):
    """Arguments that some combiners need.

    Attributes:
        key: key of combiners that draw random numbers.
        steps_per_epoch: number of steps in an epoch, for combiners that count epochs.
        num_tasks: number K of tasks, for combiners with a number for each.
    """

    key: jax.Array
    steps_per_epoch: int
    num_tasks: int

    @property
    def equal(self) -> list[float]:
        """`[1 / K, ..., 1 / K]`."""
        return [1 / self.num_tasks] * self.num_tasks


class Step(NamedTuple):
    """The data that a training step can offer its combiner, beyond `loss_fn`.

    Attributes:
        params: parameters before the step.
        losses: losses of this batch at `params`.
        second_loss_fn: `loss_fn` of an independent batch.
        last_loss_fn: `loss_fn` of the last step's batch.
    """

    params: Any
    losses: Any
    second_loss_fn: samo_jax.LossFn
    last_loss_fn: samo_jax.LossFn


COMBINERS: dict[str, Callable[[Setting], samo_jax.Weighting | samo_jax.Aggregator]] = {
    # Fixed or random weights.
    "mean": lambda _: samo_jax.mean(),
    "total": lambda _: samo_jax.total(),
    # The first task counts half as much again as the last.
    "constant": lambda setting: samo_jax.constant(
        np.linspace(1.2, 0.8, setting.num_tasks) / setting.num_tasks
    ),
    "random_weights": lambda setting: samo_jax.random_weights(setting.key),
    # From the gradients.
    "mgda": lambda _: samo_jax.mgda(),
    "mgda-l2": lambda _: samo_jax.mgda("l2"),
    "mgda-loss": lambda _: samo_jax.mgda("loss"),
    "mgda-loss+": lambda _: samo_jax.mgda("loss+"),
    "log-mgda": lambda _: samo_jax.log_losses(samo_jax.mgda()),
    "smoothed-mgda": lambda _: samo_jax.smoothed(samo_jax.mgda()),
    "fairgrad": lambda _: samo_jax.fairgrad(alpha=2.0),
    "grouped-fairgrad": lambda _: samo_jax.grouped(samo_jax.fairgrad(alpha=2.0)),
    "nash_mtl": lambda _: samo_jax.nash_mtl(),
    "cagrad": lambda _: samo_jax.cagrad(c=0.4),
    "pcgrad": lambda setting: samo_jax.pcgrad(setting.key),
    "gradvac": lambda setting: samo_jax.gradvac(setting.key),
    "upgrad": lambda _: samo_jax.upgrad(),
    "dualproj": lambda _: samo_jax.dualproj(),
    "imtl_g": lambda _: samo_jax.imtl_g(),
    "aligned_mtl": lambda _: samo_jax.aligned_mtl(),
    "aligned_mtl-median": lambda _: samo_jax.aligned_mtl("median"),
    "aligned_mtl-rmse": lambda _: samo_jax.aligned_mtl("rmse"),
    "conflict_free_inverse": lambda _: samo_jax.conflict_free_inverse(),
    # No task is taken for an outlier: these two are the mean.
    "krum": lambda setting: samo_jax.krum(
        num_byzantine=0, num_selected=setting.num_tasks
    ),
    "trimmed_mean": lambda _: samo_jax.trimmed_mean(0),
    "graddrop": lambda setting: samo_jax.graddrop(setting.key),
    "moco": lambda _: samo_jax.moco(decay=0.0),  # short averages: Adam has its own
    "modo": lambda _: samo_jax.modo(),
    "sdmgrad": lambda _: samo_jax.sdmgrad(),
    "excess_mtl": lambda _: samo_jax.excess_mtl(),
    "db_mtl": lambda _: samo_jax.db_mtl(),
    "db_mtl_momentum": lambda _: samo_jax.db_mtl_momentum(decay=0.5),  # here too
    "gradnorm": lambda _: samo_jax.gradnorm(),
    # From the losses alone.
    "uncertainty": lambda _: samo_jax.uncertainty(),
    "imtl_l": lambda _: samo_jax.imtl_l(),
    "dwa": lambda setting: samo_jax.dwa(window=setting.steps_per_epoch),
    "geometric_mean": lambda _: samo_jax.geometric_mean(),
    "stch": lambda _: samo_jax.stch(mu=0.1),
    "pbi": lambda setting: samo_jax.pbi(theta=0.5, preference=setting.equal),
    "cosmos": lambda setting: samo_jax.cosmos(preference=setting.equal, lam=0.1),
    "famo": lambda _: samo_jax.famo(),
}


def _second_batch(step: Step) -> dict[str, Any]:
    return {"sample_loss_fns": [step.second_loss_fn]}


def _losses_before_and_after(step: Step) -> dict[str, Any]:
    after = step.last_loss_fn(step.params)
    return {"losses": _stack(step.losses), "losses_after": _stack(after)}


def _stack(losses: Any) -> jax.Array:
    return jnp.stack(jax.tree.leaves(losses))


EXTRA_ARGS: dict[str, Callable[[Step], dict[str, Any]]] = {
    "modo": _second_batch,
    "sdmgrad": _second_batch,
    "famo": _losses_before_and_after,
}

SHARPNESS = ("plain", "global", "samo")
SINGLE_TASK = "single-task"
PLAIN_MEAN = "mean"
ALL = "all"


def _variants(combiners: Sequence[str]) -> tuple[str, ...]:
    return tuple(
        combiner if sharpness == "plain" else f"{combiner}+{sharpness}"
        for combiner in combiners
        for sharpness in SHARPNESS
    )


METHODS = (SINGLE_TASK, *_variants(list(COMBINERS)))
DEFAULT_METHODS = (SINGLE_TASK, *_variants(["mean", "mgda", "fairgrad"]))


def split(method: str) -> tuple[str, str]:
    """The combiner's name and one of `SHARPNESS`."""
    combiner, _, sharpness = method.rpartition("+")
    return (combiner, sharpness) if sharpness in SHARPNESS else (method, "plain")


def select(name: str) -> tuple[str, ...]:
    """The methods of a name: itself, or for "all", "all+samo", ... every combiner's.

    Raises:
        ValueError: if there is none.
    """
    if name in METHODS:
        return (name,)
    if name in _variants([ALL]):
        return tuple(name.replace(ALL, combiner, 1) for combiner in COMBINERS)
    raise ValueError(name)


def extra_args(method: str) -> Callable[[Step], dict[str, Any]]:
    """The arguments of a method's `update` beyond `loss_fn`, by the step."""
    combiner, _ = split(method)
    return EXTRA_ARGS.get(combiner, lambda _: {})


def needs_second_batch(method: str) -> bool:
    """Whether a method looks at an independent batch, too."""
    combiner, _ = split(method)
    return EXTRA_ARGS.get(combiner) is _second_batch


def make_optimizer(
    method: str,
    tasks: Sequence[str],
    *,
    rho: float,
    alpha: float,
    seed: int,
    steps_per_epoch: int,
    learning_rate: float = 1e-3,
    optimizer: Callable[[float, int], optax.GradientTransformation] = adam,
) -> optax.GradientTransformationExtraArgs:
    """The whole Optax pipeline of a method.

    Args:
        method: one of `METHODS`.
        tasks: task names, which are also the names of the heads' parameters.
        rho: perturbation radius.
        alpha: share of the global gradient in SAMO's perturbation.
        seed: seed of SAMO's probes and of the combiner's draws.
        steps_per_epoch: number of updates in an epoch.
        learning_rate: learning rate of the optimiser.
        optimizer: function of the learning rate and `steps_per_epoch`.

    Returns:
        Multi-task transformation, clipping of the shared gradient to norm 1, optimiser.
    """

    def labels(params):
        return {name: name if name in tasks else "shared" for name in params}

    def shared(params):
        return {name: name not in tasks for name in params}

    # SAMO folds the step into the seed's own key.
    combiner_key, _ = jax.random.split(jax.random.key(seed))
    setting = Setting(combiner_key, steps_per_epoch, len(tasks))
    return optax.chain(
        _multitask(method, setting, len(tasks), labels, rho, alpha, seed),
        optax.masked(optax.clip_by_global_norm(1.0), shared),
        optimizer(learning_rate, steps_per_epoch),
    )


def benchmark_optimizer(
    benchmark: Benchmark, method: str, seed: int
) -> optax.GradientTransformationExtraArgs:
    """The pipeline with a benchmark's settings."""
    return make_optimizer(
        method,
        tuple(benchmark.tasks),
        rho=benchmark.rho,
        alpha=benchmark.alpha,
        seed=seed,
        steps_per_epoch=benchmark.steps_per_epoch,
        learning_rate=benchmark.learning_rate,
        optimizer=benchmark.optimizer,
    )


def _multitask(method, setting, num_tasks, labels, rho, alpha, seed):
    if method in (SINGLE_TASK, PLAIN_MEAN):
        # The incoming gradient of the mean loss is all they need.
        return optax.with_extra_args_support(optax.identity())
    combiner, sharpness = split(method)
    solver = COMBINERS[combiner](setting)
    if sharpness == "samo":
        return samo_jax.samo(
            solver,
            rho,
            alpha=alpha,
            num_tasks=num_tasks,
            key=seed,
            param_labels=labels,
        )
    return samo_jax.multitask(
        solver,
        samo_jax.global_sam(rho) if sharpness == "global" else None,
        num_tasks=num_tasks,
        param_labels=labels,
    )
