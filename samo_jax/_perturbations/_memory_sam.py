"""`memory_sam`: SAMO without probes, by each task's last gradient."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from samo_jax._absent_tasks import select_tasks
from samo_jax._checks import ScalarOrSchedule, check_share
from samo_jax._named import named
from samo_jax._perturbations._base import Direction, Perturbation
from samo_jax._perturbations._joint import Alpha, joint
from samo_jax._tree import PyTree, zeros_per_task


@named
def memory_sam(
    rho: ScalarOrSchedule = 0.05,
    alpha: Alpha = 0.5,
    *,
    decay: float = 0.0,
    dtype: DTypeLike | None = None,
    clean_pass: bool = True,
) -> Perturbation:
    """SAMO with each task's own gradient of the step before as the local part.

    `eps_i = joint_perturbation(g0, m_i)`,
    `m_i <- decay m_i + (1 - decay) grad l_i(theta + eps_i)`: no probe and no extra
    pass, for one more copy of the K gradients. Exact, but one step old and of another
    batch, where the paper's probe is current but has a cosine of `sqrt(2 / (pi n))`
    with the task's gradient. The first step is `global_sam`'s. On a step without a
    task, its m_i waits.

    Without `clean_pass`, g0 is the mean of the m_i: K forward and backward passes in
    all, where the plain combiner has one and K. Incoming updates are then not looked
    at; pass `params` in their place. The first step is then not perturbed, and nothing
    has updated batch statistics.

    Args:
        rho: radius, non-negative, or a schedule of the step.
        alpha: share of the global gradient, see `joint_sam`.
        decay: decay of the moving average m_i, in [0, 1]. 0 is the last gradient.
        dtype: dtype of the m_i. None: the parameters'; bfloat16 saves half of float32.
        clean_pass: whether g0 is the incoming updates.

    Returns:
        A `Perturbation` for `multitask`, without a key.

    Raises:
        ValueError: if `rho` is negative, or `alpha` or `decay` outside [0, 1].

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> loss_fn = lambda w: [jnp.sum(w**2), jnp.sum((w - 1) ** 2)]
        >>> tx = samo_jax.multitask(
        ...     samo_jax.mgda(), samo_jax.memory_sam(clean_pass=False), num_tasks=2
        ... )
        >>> w = jnp.array([2.0, 3.0])
        >>> state = tx.init(w)
        >>> for _ in range(3):
        ...     updates, state = tx.update(w, state, w, loss_fn=loss_fn)
        ...     w = w - 0.1 * updates
        >>> print(w)
        [1.50... 2.00...]
    """
    check_share("decay", decay, "0 is the last gradient.")

    def finish(memory, task_grads, _state, *, present):
        def average(m, g):
            new = decay * m.astype(g.dtype) + (1 - decay) * g if decay else g
            return new.astype(m.dtype)

        averages = jax.tree.map(average, memory, task_grads)
        return task_grads, select_tasks(present, averages, memory)

    local = Direction(
        lambda _problem, memory: memory,
        lambda memory, i: jax.tree.map(lambda leaf: leaf[i], memory),
        init=partial(zeros_per_task, dtype=dtype),
        finish=finish,
    )
    return joint(local, rho, alpha, None if clean_pass else _mean)


def _mean(memory: PyTree) -> PyTree:
    """The mean over tasks."""
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), memory)
