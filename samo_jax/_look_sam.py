"""`look_sam`: a sharpness-aware step now and then, and its memory in between."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from samo_jax._checks import ScalarOrSchedule, check_count, check_nonnegative, resolve
from samo_jax._labels import (
    INFER,
    SHARED,
    ParamLabels,
    label_leaves,
    only_trained,
    zeros_where_frozen,
)
from samo_jax._named import named
from samo_jax._perturbations._radius import scale_to_radius
from samo_jax._tree import (
    PyTree,
    as_floats,
    group_products,
    safe_divide,
    scale_leaves,
    select,
    tree_norm,
    zero_unless,
    zeros_like_params,
)


class LookSamState(NamedTuple):
    """State of `look_sam`.

    Attributes:
        step: shape (), int32, updates done so far.
        orthogonal: direction v like the parameters, float32 (float64 under x64), of
            norm one (at first zero).
        inner_state: state of the wrapped transformation.
    """

    step: jax.Array
    orthogonal: PyTree
    inner_state: Any


@named
def look_sam(
    inner: optax.GradientTransformationExtraArgs,
    every: int = 10,
    alpha: ScalarOrSchedule = 0.7,
    *,
    start: int = 0,
    num_tasks: int = 1,
    param_labels: ParamLabels = None,
) -> optax.GradientTransformationExtraArgs:
    """LookSAM: run a sharpness-aware transformation every few steps only.

    At step t = start, start + every, ...: the inner direction d, of whose part
    orthogonal to the incoming gradient g the direction is kept,
    `v = u / ||u||`, `u = d - (<d, g> / ||g||^2) g`. At other steps:
    `g + alpha ||g|| v`, at no cost beyond the clean pass. alpha = 0 is sharpness-aware
    training every n steps; every = 1 the inner transformation.

    With `single_task(sam(rho))` it is the paper's. Around `samo` or `multitask` it also
    reuses what the combiner changed, of which the steps in between see nothing else.
    Under `jax.shard_map`, average the incoming updates first. A step in between whose
    incoming gradient is not finite is skipped (d = 0), and v stays.

    Args:
        inner: `single_task(...)`, `multitask(...)`, `samo(...)`, ...
        every: steps from one use of `inner` to the next, positive.
        alpha: weight of the memory, non-negative, or a schedule of the step.
        start: first step of `inner`; before, g is passed on.
        num_tasks: number K of losses, as given to `inner`.
        param_labels: labels as given to `inner`: on a head, where the incoming gradient
            is that of the *mean* loss, g is K times it.

    Returns:
        A `GradientTransformationExtraArgs` with the arguments of `inner`. Costs one
        float32 copy of the parameters.

    Raises:
        ValueError: if `every` is not a positive int, `start` not a non-negative one, or
            `alpha` negative.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> tx = samo_jax.look_sam(samo_jax.single_task(samo_jax.sam(1.0)), every=2)
        >>> loss_fn = lambda w: w[0] ** 2 / 2 + w[1] ** 2
        >>> params = jnp.array([3.0, 2.0])
        >>> grads, state = jnp.array([3.0, 4.0]), tx.init(params)
        >>> for _ in range(2):
        ...     updates, state = tx.update(grads, state, params, loss_fn=loss_fn)
        ...     print(updates)
        [3.6 5.6]
        [0.20... 6.10...]

    References:
        Liu, Mai, Chen, Hsieh and You, `Towards Efficient and Scalable Sharpness-Aware
        Minimization <https://arxiv.org/abs/2203.02714>`_, 2022
    """
    check_count("every", every, "1 is `inner` at each step.")
    check_count("start", start, "0 starts with `inner`.", least=0)
    check_nonnegative("alpha", alpha, "0 keeps no memory.")
    if not isinstance(inner, optax.GradientTransformation):
        raise ValueError(
            f"`inner` must be a transformation, got {inner!r}. Wrap a perturbation: "
            "`samo_jax.single_task(samo_jax.sam())`."
        )
    inner = optax.with_extra_args_support(inner)

    def labels_of(params):
        labels = label_leaves(params, param_labels)
        if INFER in jax.tree.leaves(labels):
            raise ValueError(
                "`param_labels` cannot be inferred by look_sam(), got 'infer'. Infer "
                "them first: `param_labels=samo_jax.infer_labels(loss_fn, params)`."
            )
        return labels

    def init(params):
        trained = only_trained(params, labels_of(params))
        return LookSamState(
            jnp.zeros((), jnp.int32), zeros_like_params(trained), inner.init(params)
        )

    def update(updates, state, params=None, **extra_args):
        step = state.step
        like = updates if params is None else params
        labels = labels_of(like)
        trained = only_trained(updates, labels)
        g = scale_leaves(
            trained,
            lambda _, label: 1 if label == SHARED else num_tasks,
            only_trained(labels, labels),
        )
        length = tree_norm(g)
        finite = jnp.isfinite(length)

        def look():
            d, inner_state = inner.update(
                updates, state.inner_state, params, **extra_args
            )
            d = only_trained(d, labels)
            floats = as_floats(d)
            one_group = jax.tree.map(lambda _: SHARED, g)
            product = group_products(g, floats, one_group)[SHARED]
            share = safe_divide(product, length**2)
            rest = jax.tree.map(lambda d, g: d - share * g, floats, g)
            # What is skipped, or has no gradient to compare with, teaches nothing.
            seen = finite & (tree_norm(floats) > 0)
            v = select(seen, scale_to_radius(rest, 1.0), state.orthogonal)
            return d, v, inner_state

        def reuse():
            weight = resolve("alpha", alpha, step) * length
            d = jax.tree.map(
                lambda g, v, update: zero_unless(finite, g + weight * v).astype(
                    update.dtype
                ),
                *(g, state.orthogonal, trained),
            )
            return d, state.orthogonal, state.inner_state

        looks = (step >= start) & ((step - start) % every == 0)
        d, orthogonal, inner_state = lax.cond(looks, look, reuse)
        step = jnp.asarray(optax.safe_increment(step))
        state = LookSamState(step, orthogonal, inner_state)
        return zeros_where_frozen(d, like), state

    return optax.GradientTransformationExtraArgs(init, update)
