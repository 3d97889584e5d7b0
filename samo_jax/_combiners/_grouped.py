"""Per-layer and per-group combination: the weights differ between parameter groups."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import keystr

from samo_jax._gramian import combine, gramian
from samo_jax._solvers import Combiner, Solver
from samo_jax._solvers._arguments import uniform_weights
from samo_jax._solvers._base import solver_update
from samo_jax._tasks import prefix_leaves
from samo_jax._tree import PyTree


class GroupedState(NamedTuple):
    """State of `grouped`.

    Attributes:
        weights: by group, shape (K,), of the last update (first: uniform).
        solver_states: for each distinct solver, the states of its groups (in sorted
            order), stacked.
    """

    weights: dict[str, jax.Array]
    solver_states: list[Any]


def grouped(
    solver: Solver | Mapping[str, Solver],
    groups: Any | Callable[[PyTree], Any] = None,
) -> Combiner:
    """One solver per group of shared parameters: a Gramian, and weights, for each.

    `d_b = sum_i w_i^b g_i^b` with `w^b = solver(J_b J_b')` on every group b. With
    `groups=None` each leaf is a group: per-layer combination. The groups of one solver
    are solved together, as one batch; a solver that draws random numbers draws the same
    for all its groups.

    Args:
        solver: the `Solver` of every group, each with its own state, or a mapping from
            groups to solvers.
        groups: like `param_labels`, a pytree prefix of the parameters, or a function of
            the shared ones (None stands where a head was), that names the group of each
            leaf. None: each leaf by its path.

    Returns:
        A `Combiner`. The weights that `multitask` reports are the groups' mean;
        `GroupedState.weights` has each group's.

    Raises:
        ValueError: if `solver` is neither a `Solver` nor a mapping to solvers; in
            `init`, if `groups` does not fit the parameters or names a group without a
            solver.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> combiner = samo_jax.grouped(samo_jax.mgda())
        >>> params = {"first": jnp.zeros(2), "last": jnp.zeros(2)}
        >>> task_grads = {"first": jnp.eye(2), "last": jnp.diag(jnp.array([2.0, 1.0]))}
        >>> direction, weights, state = combiner.update(
        ...     task_grads, combiner.init(params, 2), losses=jnp.ones(2)
        ... )
        >>> print(weights, direction["last"])
        [0.35 0.65] [0.4 0.8]
    """
    solvers = list(solver.values()) if isinstance(solver, Mapping) else [solver]
    for each in solvers:
        if not isinstance(each, Solver):
            raise ValueError(
                "`solver` must be a samo_jax.Solver or a mapping from groups to them, "
                f"got {each!r}. Call the factory: `samo_jax.mgda()`."
            )

    def by_solver(names: set[str]) -> dict[Solver, list[str]]:
        found: dict[Solver, list[str]] = {}
        for name in sorted(names):
            if isinstance(solver, Mapping) and name not in solver:
                raise ValueError(
                    f"`groups` names the group {name!r}, for which `solver` has none: "
                    f"got {', '.join(map(repr, solver))}."
                )
            chosen = solver[name] if isinstance(solver, Mapping) else solver
            found.setdefault(chosen, []).append(name)
        return found

    def init(params, num_tasks):
        names = set(jax.tree.leaves(_label_groups(params, groups)))

        def stacked(count):
            return lambda leaf: jnp.stack([leaf] * count)

        return GroupedState(
            {name: uniform_weights(num_tasks) for name in names},
            [
                jax.tree.map(stacked(len(members)), each.init(num_tasks))
                for each, members in by_solver(names).items()
            ],
        )

    def update(task_grads, state, *, losses, present=None, **extra_args):
        labels = _label_groups(jax.tree.map(lambda leaf: leaf[0], task_grads), groups)
        leaves = jax.tree.leaves(task_grads)
        members: dict[str, list[jax.Array]] = {}
        for leaf, name in zip(leaves, jax.tree.leaves(labels), strict=True):
            members.setdefault(name, []).append(leaf)

        weights, states = {}, []
        clusters = by_solver(set(members)).items()
        for (each, names), old in zip(clusters, state.solver_states, strict=True):
            update_one = partial(
                solver_update(each), losses=losses, present=present, **extra_args
            )
            products = jnp.stack([gramian(members[name]) for name in names])
            rows, new = jax.vmap(update_one)(products, old)
            weights |= dict(zip(names, rows, strict=True))
            states.append(new)

        direction = jax.tree.map(
            lambda name, leaf: combine(weights[name], leaf), labels, task_grads
        )
        rows = list(weights.values()) or [uniform_weights(len(losses), present)]
        average = jnp.mean(jnp.stack(rows), axis=0)
        return direction, average, GroupedState(weights, states)

    return Combiner(init, update)


def _label_groups(params, groups):
    if groups is None:
        return jax.tree.map_with_path(
            lambda path, _: keystr(path, simple=True, separator="/"), params
        )
    return prefix_leaves(params, groups, "groups")
