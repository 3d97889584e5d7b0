"""`samo`: `multitask` with the joint global-local perturbation."""

import jax
import optax

from samo_jax._checks import ScalarOrSchedule
from samo_jax._combiners._types import Combiner
from samo_jax._labels import ParamLabels
from samo_jax._multitask import multitask
from samo_jax._named import named
from samo_jax._perturbations._directions import DirectionLike
from samo_jax._perturbations._joint import Alpha
from samo_jax._perturbations._joint_sam import joint_sam
from samo_jax._step._devices import AxisName
from samo_jax._step._method import GramianOf
from samo_jax._task_loop import Unroll


@named
def samo(
    combiner: Combiner,
    rho: ScalarOrSchedule = 0.05,
    *,
    alpha: Alpha = 0.5,
    mu: ScalarOrSchedule = 1e-2,
    local: DirectionLike | None = None,
    num_tasks: int,
    key: jax.Array | int | None = None,
    param_labels: ParamLabels = None,
    unroll: Unroll = None,
    axis_name: AxisName = None,
    gramian_block: int | None = None,
    diagnostics: bool = False,
    tasks_per_step: int | None = None,
    gramian_of: GramianOf = "parameters",
    weights_every: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SAMO: sharpness-aware multi-task optimisation, first in an `optax.chain`.

    `multitask(combiner, joint_sam(rho, alpha, mu), ...)`: with g0 the gradient of the
    mean loss (the incoming updates) and one forward-only SPSA estimate ghat_i per task,

    `eps_i = rho p_i / ||p_i||`, `p_i = alpha g0 + (1 - alpha) layerwise(ghat_i, g0)`,
    `d = sum_i w_i grad l_i(theta + eps_i)`, `w = combiner(Gramian)`.

    A step costs, beyond the clean pass that gives g0, 2K forward passes for the probes
    and K forward and backward passes at the perturbed points. `loss_fn` is traced 1 +
    3K times where it is unrolled, 1 + 2 + 1 times otherwise.

    The official implementation then multiplies d by K and clips its norm to 1, on
    shared leaves: chain `optax.scale` and `optax.clip_by_global_norm` under
    `optax.masked`.

    Args:
        combiner: the combiner, such as `fairgrad(alpha=2.0)` (the paper's).
        rho: radius, non-negative, a float or a schedule of the step. The official
            scripts use 1e-3 with Adam.
        alpha: share of the global gradient in [0, 1], a float or a schedule. 1 is
            global SAM and draws nothing.
        mu: step of the probes' central difference, positive, a float or a schedule.
        local: source of the local part, see `joint_sam`: None for the paper's,
            `probe(shared=True)` for 2 probing passes instead of 2K.
        num_tasks: K, the number of losses.
        key: typed PRNG key or int, required if the local part draws random numbers, as
            the paper's does. It stays constant in the state; draws fold in the step.
        param_labels: see `multitask`.
        unroll: see `multitask`.
        axis_name: see `multitask`.
        gramian_block: see `multitask`.
        diagnostics: see `multitask`.
        tasks_per_step: see `multitask`.
        gramian_of: see `multitask`; it needs `local=probe(shared=True)`.
        weights_every: see `multitask`; it needs `local=probe(shared=True)`.

    Returns:
        A `GradientTransformationExtraArgs`, see `multitask`.

    Raises:
        ValueError: see `multitask` and `joint_sam`.

    Examples:
        >>> import jax, jax.numpy as jnp, optax, samo_jax
        >>> loss_fn = lambda w: {"a": jnp.sum((w - 1) ** 2), "b": jnp.sum((w + 1) ** 2)}
        >>> tx = optax.chain(
        ...     samo_jax.samo(
        ...         samo_jax.fairgrad(), num_tasks=2, key=jax.random.key(0)
        ...     ),
        ...     optax.sgd(0.05),
        ... )
        >>> params = jnp.array([3.0, -2.0])
        >>> state = tx.init(params)
        >>> @jax.jit
        ... def train_step(params, state):
        ...     losses, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
        ...     updates, state = tx.update(grads, state, params, loss_fn=loss_fn)
        ...     return optax.apply_updates(params, updates), state
        >>> for _ in range(50):
        ...     params, state = train_step(params, state)
        >>> print(bool(jnp.all(jnp.abs(params) < 1.1)))
        True

    References:
        Ban, Subramani and Ji, `SAMO: A Lightweight Sharpness-Aware Approach for
        Multi-Task Optimization with Joint Global-Local Perturbation
        <https://arxiv.org/abs/2507.07883>`_, 2025
    """
    return multitask(
        combiner,
        joint_sam(rho, alpha, mu, local=local),
        num_tasks=num_tasks,
        key=key,
        param_labels=param_labels,
        unroll=unroll,
        axis_name=axis_name,
        gramian_block=gramian_block,
        diagnostics=diagnostics,
        tasks_per_step=tasks_per_step,
        gramian_of=gramian_of,
        weights_every=weights_every,
    )
