"""`report`: what happened in a step."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from samo_jax._combiners.solvers._solve_info import SolveInfo
from samo_jax._diagnostics import gradient_cosines
from samo_jax._state import Diagnostics, MultitaskState
from samo_jax._tasks import task_names
from samo_jax._tree import PyTree, safe_divide


def report(state: PyTree, tasks: Sequence[str] | PyTree) -> dict[str, jax.Array]:
    """Named numbers of the last step, for any logger; works under `jax.jit`.

    | name | value |
    | --- | --- |
    | `weight/left` | weight of the task, 0 where it was absent |
    | `skipped/left` | number of updates without the task |
    | `loss/left` | loss that the combiner got, NaN where absent |
    | `norm/left` | norm of the gradient's shared leaves, 0 where absent |
    | `cosine/left-right` | cosine of two such gradients, 0 where one is zero |
    | `conflict_rate` | share of conflicts among pairs of gradients that are not zero |
    | `solver/converged`, `/steps`, `/residual` | of the combiner's solves, the worst |

    Losses are there with `diagnostics=True`, see `multitask`; norms, cosines and
    conflicts where it has a Gramian; `solver` where the combiner solves (`fairgrad`).

    Args:
        state: state of `multitask`, `samo`, `f_mtl`, `single_task`, `look_sam` or
            `combine_gradients`, or of a whole chain with one of them.
        tasks: the losses, a pytree of K scalars, or the K names in task order (JAX
            sorts the keys of a dict).

    Returns:
        A dict of scalars.

    Raises:
        ValueError: if there is not one `MultitaskState` in the state, or `tasks` are
            not K.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> loss_fn = lambda w: {"left": jnp.sum((w - 1) ** 2), "right": jnp.sum(w**2)}
        >>> tx = samo_jax.multitask(samo_jax.mgda(), num_tasks=2, diagnostics=True)
        >>> w = jnp.array([3.0, 0.0])
        >>> losses, grads = samo_jax.mean_value_and_grad(loss_fn)(w)
        >>> _, state = tx.update(grads, tx.init(w), w, loss_fn=loss_fn)
        >>> found = samo_jax.report(state, losses)
        >>> print(found["loss/left"], found["norm/right"], found["conflict_rate"])
        5.0 6.0 0.0
    """
    # An `nnx.Optimizer` has variables in place of arrays.
    state = jax.tree.map(
        jnp.asarray,
        _find_state(state),
        is_leaf=lambda node: hasattr(node, "__jax_array__"),
    )
    names = _names(tasks, len(state.weights))
    found = _by_task("weight", names, state.weights)
    found |= _by_task("skipped", names, state.skipped)
    if state.diagnostics is not None:
        found |= _of_diagnostics(names, state.diagnostics)
    return found | _of_solves(state.combiner_state)


def _of_diagnostics(
    names: tuple[str, ...], diagnostics: Diagnostics
) -> dict[str, jax.Array]:
    found = _by_task("loss", names, diagnostics.losses)
    gramian = diagnostics.gramian
    if gramian is None:
        return found
    norms = jnp.sqrt(jnp.diagonal(gramian))
    cosines = gradient_cosines(gramian)
    found |= _by_task("norm", names, norms)
    for i, name in enumerate(names):
        for j in range(i + 1, len(names)):
            found[f"cosine/{name}-{names[j]}"] = cosines[i, j]
    count = jnp.sum(norms > 0)
    conflicts = jnp.sum(gramian < 0).astype(gramian.dtype)
    return found | {"conflict_rate": safe_divide(conflicts, count * (count - 1))}


def _of_solves(combiner_state: Any) -> dict[str, jax.Array]:
    """The worst of each number of `SolveInfo`, over all solves of a step."""
    solves = _nodes(combiner_state, SolveInfo)
    if not solves:
        return {}

    def worst(field, of):
        return of(jnp.stack([of(jnp.asarray(getattr(x, field))) for x in solves]))

    return {
        "solver/converged": worst("converged", jnp.all),
        "solver/steps": worst("steps", jnp.max),
        "solver/residual": worst("residual", jnp.max),
    }


def _by_task(
    quantity: str, names: tuple[str, ...], values: jax.Array
) -> dict[str, jax.Array]:
    return {f"{quantity}/{name}": values[i] for i, name in enumerate(names)}


def _find_state(state: PyTree) -> MultitaskState:
    found = _nodes(state, MultitaskState)
    if len(found) != 1:
        raise ValueError(
            "`state` must hold one MultitaskState (of `multitask`, `samo`, "
            f"`combine_gradients`, ...), got {len(found)} in {type(state).__name__}. "
            "Pass the state of the chain, or of one transformation in it."
        )
    return found[0]


def _nodes(tree: PyTree, kind: type) -> list[Any]:
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]


def _names(tasks: Any, num_tasks: int) -> tuple[str, ...]:
    is_sequence = isinstance(tasks, Sequence) and not isinstance(tasks, str)
    if not (is_sequence and all(isinstance(name, str) for name in tasks)):
        return task_names(tasks, num_tasks, "tasks")
    if len(tasks) != num_tasks or len(set(tasks)) != num_tasks:
        raise ValueError(
            f"`tasks` must be {num_tasks} different names, got {tasks!r}. Pass the "
            "losses, or their names in task order."
        )
    return tuple(tasks)
