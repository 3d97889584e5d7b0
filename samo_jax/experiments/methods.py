"""Methods by name: a gradient combiner, and where the tasks' gradients are taken."""

from collections.abc import Callable, Sequence

import optax

import samo_jax

COMBINERS: dict[str, Callable[[], samo_jax.Solver]] = {
    "mean": samo_jax.mean,
    "mgda": samo_jax.mgda,
    "fairgrad": lambda: samo_jax.fairgrad(alpha=2.0),
}
SHARPNESS = ("plain", "global", "samo")
SINGLE_TASK = "single-task"
PLAIN_MEAN = "mean"
METHODS = (
    SINGLE_TASK,
    *(
        combiner if sharpness == "plain" else f"{combiner}+{sharpness}"
        for combiner in COMBINERS
        for sharpness in SHARPNESS
    ),
)


def make_optimizer(
    method: str, tasks: Sequence[str], *, rho: float, alpha: float, seed: int
) -> optax.GradientTransformationExtraArgs:
    """The whole Optax pipeline of a method.

    Args:
        method: one of `METHODS`.
        tasks: task names, which are also the names of the heads' parameters.
        rho: perturbation radius.
        alpha: share of the global gradient in SAMO's perturbation.
        seed: of SAMO's probes.

    Returns:
        Multi-task transformation, clipping of the shared gradient to norm 1, Adam.
    """

    def labels(params):
        return {name: name if name in tasks else "shared" for name in params}

    def shared(params):
        return {name: name not in tasks for name in params}

    return optax.chain(
        _multitask(method, len(tasks), labels, rho, alpha, seed),
        optax.masked(optax.clip_by_global_norm(1.0), shared),
        optax.adam(1e-3),
    )


def _multitask(method, num_tasks, labels, rho, alpha, seed):
    if method in (SINGLE_TASK, PLAIN_MEAN):
        # The incoming gradient of the mean loss is all they need.
        return optax.with_extra_args_support(optax.identity())
    combiner, _, sharpness = method.partition("+")
    solver = COMBINERS[combiner]()
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
