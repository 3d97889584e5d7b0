"""`modality_aware_sam`: flatness of the loss that one modality dominates."""

from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax import lax

from samo_jax._absent_tasks import select_tasks
from samo_jax._checks import ScalarOrSchedule, check_choice, check_count, check_share
from samo_jax._labels import Mask, ParamLabels, prefix_leaves
from samo_jax._named import named
from samo_jax._perturbations._ascent import steepest_ascent
from samo_jax._perturbations._base import Direction, Perturbation
from samo_jax._perturbations._directions import clean_directions
from samo_jax._problem import Problem
from samo_jax._shapley import MAX_EXACT, shapley_values
from samo_jax._task_loop import map_tasks
from samo_jax._tasks import select_leaf
from samo_jax._tree import PyTree, accumulator_dtype, safe_divide, scale_tasks

Decomposition: TypeAlias = Literal["batch", "sample", "modality"]
_NAME = "modality_aware_sam()"


class ModalityAwareSamState(NamedTuple):
    """State of `modality_aware_sam`, for K tasks and M modalities.

    Attributes:
        shapley: shape (K, M), average of the Shapley values over steps and examples,
            which starts from zero.
        contributions: shape (K, M), v of the last step, uniform before the first. The
            largest is that of the dominant modality.
    """

    shapley: jax.Array
    contributions: jax.Array


class _Context(NamedTuple):
    """Context of `modality_aware_sam`, with a leading task axis everywhere."""

    problem: Problem
    state: ModalityAwareSamState
    weights: jax.Array  # in L_d, of: l (K,), its examples (K, B) or modalities (K, M)
    clean: PyTree  # grad l(w)
    dominant: PyTree  # grad L_d(w)


@named
def modality_aware_sam(
    rho: ScalarOrSchedule = 0.05,
    *,
    num_modalities: int,
    decompose: Decomposition = "batch",
    encoders: ParamLabels = None,
    decay: float = 0.0,
    mask: Mask = None,
) -> Perturbation:
    """Modality-Aware SAM: only what the dominant modality contributes is made flat.

    `l = L_d + L_s`, of which the dominant part is perturbed and the rest is not:

    `grad L_d(w + eps) + grad L_s(w)`, `eps = rho grad L_d(w) / ||grad L_d(w)||`.

    The contributions are the Shapley values phi of the modalities,
    `v = max(phi, 0) / sum_m max(phi_m, 0)` (uniform where none is positive), constants
    in all gradients; the dominant modality is d = argmax v, at a tie the first.

    - "batch", the paper's: `L_d = v_d l`. Then eps is SAM's, and the gradient
      `v_d grad l(w + eps) + (1 - v_d) grad l(w)`.
    - "sample": `L_d = mean_b v_{b,d(b)} l_b`, with the contributions and the dominant
      modality of each example b.
    - "modality": `L_d = v_d l_d`, with one loss l_m a modality, such as that of its own
      head, or of its share `shapley_values(logits, ...)` of the logits.

    `update` needs `modality_fn(params, present)`, the value that is shared out, the
    higher the better: the accuracy on the batch (the paper's), minus the loss, ... It
    is a scalar, or shape (B,), one value an example; "sample" needs the latter. Where
    `present`, shape (M,), bool, is False the inputs are to be replaced, say by zeros;
    see `shapley_values`. For K tasks, a pytree of K such values in task order.

    "sample" and "modality" also need `loss_parts_fn(params)`: the losses l_b, shape
    (B,), or l_m, shape (M,), as they are trained (for K tasks, K of them). `loss_fn`
    stays what is minimised: L_s is `loss_fn` minus L_d.

    A step costs, beyond the clean pass, 2^M forward passes and, for every task, a pass
    at the perturbed point; one more at w with "sample" and "modality", and another for
    K > 1 tasks, whose own clean gradients the incoming updates do not tell. With one
    task they are the clean gradient, and must come unscaled.

    The paper leaves open how modalities are masked, what becomes of contributions that
    are negative or tied, and which norm eps has: the above are this library's answers.

    Args:
        rho: radius, non-negative, or a schedule of the step. 0 is plain training.
        num_modalities: number M of modalities. Beyond 6, phi is sampled, which takes a
            `key`.
        decompose: "batch", "sample" or "modality", see above.
        encoders: perturb the dominant modality's encoder alone. A pytree prefix of
            ints, or a function of the parameters that returns one: m at the leaves of
            modality m's encoder, -1 at those of none. None: perturb all leaves.
        decay: decay of an average of phi over steps, in [0, 1], against the noise of a
            batch's accuracy. "sample" takes each example's own phi, and the average
            only for `encoders`.
        mask: leaves that are perturbed, see `sam`.

    Returns:
        A `Perturbation` for `multitask` and `single_task`. Its state has the
        contributions: `optax.tree.get(state, "contributions")`.

    Raises:
        ValueError: if `rho` is negative, `decay` not in [0, 1], `decompose` none of the
            above; in `update`, if an argument is missing or of a wrong shape.

    Examples:
        >>> import jax, jax.numpy as jnp, optax, samo_jax
        >>> x, y = jnp.array([[2.0, 1.0], [1.0, -1.0]]), jnp.array([3.0, 1.0])
        >>> def loss_fn(w, present=jnp.array([True, True])):
        ...     return jnp.mean((jnp.where(present, x, 0) @ w - y) ** 2)
        >>> tx = samo_jax.single_task(
        ...     samo_jax.modality_aware_sam(0.1, num_modalities=2)
        ... )
        >>> w = jnp.array([0.5, 0.2])
        >>> updates, state = tx.update(
        ...     jax.grad(loss_fn)(w), tx.init(w), w, loss_fn=loss_fn,
        ...     modality_fn=lambda w, present: -loss_fn(w, present),
        ... )
        >>> print(updates, optax.tree.get(state, "contributions"))
        [-4.75... -1.23...] [[0.90... 0.09...]]

    References:
        Nowdeh, Ji, Ma and Afghah, `Modality-Aware SAM: Sharpness-Aware-Minimization
        Driven Gradient Modulation for Harmonized Multimodal Learning
        <https://arxiv.org/abs/2510.24919>`_, 2025
    """
    check_choice("decompose", decompose, get_args(Decomposition))
    check_count("num_modalities", num_modalities, "It is M of `modality_fn`.")
    check_share("decay", decay, "0 takes the batch as it is.")

    def init(params, num_tasks):
        del params
        zeros = jnp.zeros((num_tasks, num_modalities), accumulator_dtype())
        return ModalityAwareSamState(zeros, _contributions(zeros))

    def prepare(problem, state):
        if problem.sample_loss_fns:
            raise ValueError(
                f"`sample_loss_fns` must be empty with {_NAME}, whose clean gradients "
                "are those of one batch. Choose another combiner or perturbation."
            )
        phi = _shapley_values(problem, num_modalities)
        example_phi = phi.reshape(*state.shapley.shape, -1)
        average = decay * state.shapley + (1 - decay) * jnp.mean(example_phi, axis=-1)
        v = _contributions(average)
        clean = _clean_gradients(problem)
        if decompose == "batch":
            weights = jnp.max(v, axis=1)
            dominant = _scale(clean, weights)
        else:
            weights = (
                _example_weights(_contributions(example_phi))
                if decompose == "sample"
                else _modality_weights(v)
            )
            dominant = _dominant_gradients(problem, weights)
        state = ModalityAwareSamState(average, v)
        return _Context(problem, state, weights, clean, dominant)

    def perturb(context, i):
        p = jax.tree.map(lambda leaf: leaf[i], context.dominant)
        if encoders is None:
            return p
        labels = prefix_leaves(context.problem.params, encoders, "encoders")
        _check_encoders(labels, num_modalities)
        d = jnp.argmax(context.state.contributions[i])
        return jax.tree.map(lambda leaf, m: jnp.where(d == m, leaf, 0), p, labels)

    def loss(problem, context, point, i):
        return _dominant_loss(problem, context.weights, point, i)

    def finish(context, task_grads, state, *, present):
        sharp = task_grads
        if decompose == "batch":
            sharp = _scale(task_grads, context.weights)

        def modulate(grad, *terms):
            terms = (term.astype(accumulator_dtype()) for term in terms)
            sharp, dominant, clean = terms
            return (clean + (sharp - dominant)).astype(grad.dtype)

        modulated = jax.tree.map(
            modulate, task_grads, sharp, context.dominant, context.clean
        )
        return modulated, select_tasks(present, context.state, state)

    direction = Direction(
        prepare,
        perturb,
        init=init,
        finish=finish,
        needs_key=num_modalities > MAX_EXACT,
        clean_gradients=lambda context: context.clean,
        loss=None if decompose == "batch" else loss,
    )
    return steepest_ascent(direction, rho, mask=mask)


def _contributions(phi: jax.Array) -> jax.Array:
    """`v = max(phi, 0) / sum_m max(phi_m, 0)` on axis 1; uniform where none is > 0."""
    positive = jnp.maximum(phi, 0)
    total = jnp.sum(positive, axis=1, keepdims=True)
    return jnp.where(total > 0, safe_divide(positive, total), 1 / phi.shape[1])


def _shapley_values(problem: Problem, num_modalities: int) -> jax.Array:
    """phi, shape (K, M) or (K, M, B); zero where it is not finite."""
    modality_fn = problem.required("modality_fn", _NAME)

    def values(present):
        values = modality_fn(problem.params, present)
        return [
            _of_task(values, i, problem, "modality_fn")
            for i in range(len(problem.tasks))
        ]

    phi = shapley_values(values, num_modalities, key=problem.key)
    phi = lax.stop_gradient(jnp.stack(phi))
    return jnp.where(jnp.isfinite(phi), phi, 0)


def _clean_gradients(problem: Problem) -> PyTree:
    """The tasks' gradients, with a leading task axis; of one, the incoming updates."""
    if len(problem.tasks) == 1:
        return jax.tree.map(lambda leaf: leaf[None], problem.mean_grad)
    return clean_directions("local").prepare(problem, ())


def _example_weights(v: jax.Array) -> jax.Array:
    """Weights of l_b in `L_d = mean_b v_{b,d(b)} l_b`, shape (K, B)."""
    return jnp.max(v, axis=1) / v.shape[2]


def _modality_weights(v: jax.Array) -> jax.Array:
    """Weights of l_m in `L_d = v_d l_d`, shape (K, M)."""
    d = jnp.argmax(v, axis=1)
    return v * jax.nn.one_hot(d, v.shape[1], dtype=v.dtype)


def _dominant_gradients(problem: Problem, weights: jax.Array) -> PyTree:
    """Gradients of L_d(w), with a leading task axis."""

    def gradient(i):
        return jax.grad(lambda w: _dominant_loss(problem, weights, w, i))(
            problem.params
        )

    return map_tasks(gradient, len(problem.tasks), problem.unroll)


def _scale(task_grads: PyTree, weights: jax.Array) -> PyTree:
    """Each task's gradient, times its weight."""
    return jax.tree.map(lambda leaf: scale_tasks(leaf, weights), task_grads)


def _dominant_loss(
    problem: Problem, weights: jax.Array, point: PyTree, i: int | jax.Array
) -> jax.Array:
    """L_d of task i, a weighted sum of the parts of its loss."""
    loss_parts = problem.required("loss_parts_fn", _NAME)(point)
    parts = _of_task(loss_parts, i, problem, "loss_parts_fn")
    if parts.shape != weights.shape[1:]:
        raise ValueError(
            f"`loss_parts_fn` must return losses of shape {weights.shape[1:]} for each "
            f"task, got {parts.shape}: one for every value of `modality_fn` with "
            '"sample", one a modality with "modality".'
        )
    return jnp.sum(weights[i] * parts.astype(weights.dtype))


def _of_task(
    tree: PyTree, i: int | jax.Array, problem: Problem, argument: str
) -> jax.Array:
    """The array of task i, of a pytree of K arrays."""
    leaves = jax.tree.leaves(tree)
    if len(leaves) != len(problem.tasks):
        raise ValueError(
            f"`{argument}` must return {len(problem.tasks)} arrays, one for each loss "
            f"of `loss_fn`; got {len(leaves)}."
        )
    return select_leaf(leaves, i)


def _check_encoders(labels: Any, num_modalities: int) -> None:
    """Raise if a label is neither -1 nor a modality."""
    unknown = set(jax.tree.leaves(labels)) - set(range(-1, num_modalities))
    if unknown:
        raise ValueError(
            f"`encoders` must label every leaf with a modality, 0 to "
            f"{num_modalities - 1}, or -1; got {', '.join(map(repr, unknown))}."
        )
