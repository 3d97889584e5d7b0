"""`Perturbation` and `Direction`: where each task looks for its worst case."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from samo_jax._absent_tasks import names_present
from samo_jax._named import repr_of
from samo_jax._problem import Problem
from samo_jax._tree import PyTree


class Perturbation(NamedTuple):
    """A sharpness method, as pure functions.

    Attributes:
        prepare: `prepare(problem, state) -> context`, once per step.
        perturb: `perturb(context, i) -> eps_i` like `params`, in the loop over tasks;
            `i` may be traced. Leaves of other tasks' heads are ignored.
        init: `init(params, num_tasks) -> state`, a pytree of fixed shapes and dtypes.
        finish: `finish(context, task_grads, state, *, present) -> (task_grads, state)`,
            once per step, with the K gradients at the perturbed points (leading task
            axis). `present`, shape (K,), bool, may be left out of the signature: absent
            tasks' gradients are zero before, and again after. None: the gradients are
            left alone, and so is the state.
        needs_key: whether `prepare` draws random numbers.
        clean_gradients: `clean_gradients(context) -> task_grads`, the K gradients at
            theta, where the method has them and a combiner wants them (`f_mtl`).
        loss: `loss(problem, context, point, i)`, the scalar of task i whose gradient at
            the perturbed point is taken. None: that of `loss_fn`.
        shared_perturbations: `shared_perturbations(context) -> (eps, index)`, where the
            tasks have fewer than K perturbations: a list of pytrees like `params` with
            all tasks' heads, and which of them is each task's, int, shape (K,), or ()
            for all. They cost a forward pass each instead of one per task, and with a
            `Weighting` that needs no Gramian a backward pass each. None: one per task,
            by `perturb`.
        name: the call that made it, which is its `repr`.
    """

    prepare: Callable[[Problem, Any], Any]
    perturb: Callable[[Any, int | jax.Array], PyTree]
    init: Callable[[PyTree, int], Any] = lambda _params, _num_tasks: ()
    finish: Callable[..., tuple[PyTree, Any]] | None = None
    needs_key: bool = False
    clean_gradients: Callable[[Any], PyTree | None] = lambda _context: None
    loss: Callable[[Problem, Any, PyTree, Any], jax.Array] | None = None
    shared_perturbations: Callable[[Any], tuple[Sequence[PyTree], jax.Array]] | None = (
        None
    )
    name: str = ""

    def __repr__(self) -> str:
        return repr_of(self)


class Direction(NamedTuple):
    """An ascent direction before it gets its length: a part of perturbations.

    `sam(direction=...)` makes a perturbation of it, `joint_sam(local=...)` a part of
    one. The attributes are those of `Perturbation`, but that `perturb` and
    `shared_perturbations` give ascent directions p_i, whose lengths do not matter, in
    place of eps_i.
    """

    prepare: Callable[[Problem, Any], Any]
    perturb: Callable[[Any, int | jax.Array], PyTree]
    init: Callable[[PyTree, int], Any] = lambda _params, _num_tasks: ()
    finish: Callable[..., tuple[PyTree, Any]] | None = None
    needs_key: bool = False
    clean_gradients: Callable[[Any], PyTree | None] = lambda _context: None
    loss: Callable[[Problem, Any, PyTree, Any], jax.Array] | None = None
    shared_perturbations: Callable[[Any], tuple[Sequence[PyTree], jax.Array]] | None = (
        None
    )
    name: str = ""

    def __repr__(self) -> str:
        return repr_of(self)


def check_perturbation(perturbation: Any) -> None:
    """Raise unless it is a `Perturbation`."""
    if isinstance(perturbation, Direction):
        raise ValueError(
            "`perturbation` must be a samo_jax.Perturbation or None, got a Direction, "
            f"{perturbation!r}, which has no length. Give it one by "
            "`samo_jax.sam(rho, direction=...)`."
        )
    if not isinstance(perturbation, Perturbation):
        raise ValueError(
            f"`perturbation` must be a samo_jax.Perturbation or None, got "
            f"{perturbation!r}. Call the factory: `samo_jax.global_sam(rho=0.05)`."
        )


class Wrapped(NamedTuple):
    """Context of a perturbation that is made of a direction.

    Attributes:
        problem: the problem of this step.
        inner: context of the direction.
    """

    problem: Problem
    inner: Any


def same_for_all_tasks(
    prepare: Callable[[Problem, Any], Any], p: Callable[[Any], PyTree], **others: Any
) -> Direction:
    """A direction `p(context)` that is the same for every task."""
    return Direction(
        prepare,
        lambda context, _task: p(context),
        shared_perturbations=lambda context: ([p(context)], jnp.array(0, jnp.int32)),
        **others,
    )


def wrap_direction(inner: Direction) -> Direction:
    """`inner` as a part of what has a context with the field `inner`.

    What is left for the other to replace is `prepare`, `perturb` and
    `shared_perturbations`.
    """

    def finish(wrapped, task_grads, state, *, present):
        return finish_of(inner)(wrapped.inner, task_grads, state, present=present)

    def loss(inner_loss, problem, wrapped, *rest):
        return inner_loss(problem, wrapped.inner, *rest)

    return inner._replace(
        finish=inner.finish and finish,
        clean_gradients=lambda wrapped: inner.clean_gradients(wrapped.inner),
        loss=inner.loss and partial(loss, inner.loss),
        name="",
    )


UNPERTURBED = Perturbation(
    *same_for_all_tasks(
        lambda problem, _state: problem.params,
        lambda params: jax.tree.map(jnp.zeros_like, params),
    )
)


def finish_of(
    perturbation: Perturbation | Direction,
) -> Callable[..., tuple[PyTree, Any]]:
    """`Perturbation.finish`, called with `present` whether it names it or not."""
    finish = cast(Callable, perturbation.finish)
    if names_present(finish):
        return finish

    def finish_all(context, task_grads, state, *, present):
        del present
        return finish(context, task_grads, state)

    return finish_all
