"""`grouped`: weights that differ between layers or groups of parameters."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import keystr

from samo_jax._combiners._types import (
    Aggregator,
    Weighting,
    check_weighting,
    weighting_update,
)
from samo_jax._gramian import combine, gramian
from samo_jax._labels import ParamLabels, prefix_leaves
from samo_jax._named import named
from samo_jax._tasks import count_tasks, uniform_weights


class GroupedState(NamedTuple):
    """State of `grouped`.

    Attributes:
        weights: weights of the last update by group, shape (K,) (first: uniform).
        weighting_states: states of the groups (in sorted order), stacked for each
            distinct weighting.
    """

    weights: dict[str, jax.Array]
    weighting_states: list[Any]


@named
def grouped(
    weighting: Weighting | Mapping[str, Weighting],
    groups: ParamLabels = None,
) -> Aggregator:
    """One weighting per group of shared parameters: a Gramian, and weights, for each.

    `d_b = sum_i w_i^b g_i^b` with `w^b = weighting(J_b J_b')` on every group b. With
    `groups=None` each leaf is a group: per-layer combination. The groups of one
    weighting are solved together, as one batch; a weighting that draws random numbers
    draws the same for all its groups.

    Args:
        weighting: the `Weighting` of every group, each with its own state, or a mapping
            from groups to weightings.
        groups: name of each leaf's group: as `param_labels`, a pytree prefix of the
            parameters, or a function of the shared ones (None stands where a head was).
            None: each leaf by its path.

    Returns:
        An `Aggregator`. The weights that `multitask` reports are the groups' mean;
        `GroupedState.weights` has each group's.

    Raises:
        ValueError: if `weighting` is neither a `Weighting` nor a mapping to weightings;
            in `init`, if `groups` does not fit the parameters or names a group without
            a weighting.

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
    weightings = (
        list(weighting.values()) if isinstance(weighting, Mapping) else [weighting]
    )
    for each in weightings:
        check_weighting("weighting", each)

    def by_weighting(names: set[str]) -> dict[Weighting, list[str]]:
        found: dict[Weighting, list[str]] = {}
        for name in sorted(names):
            if isinstance(weighting, Mapping) and name not in weighting:
                raise ValueError(
                    f"`groups` names the group {name!r}, which `weighting` lacks: "
                    f"got {', '.join(map(repr, weighting))}."
                )
            chosen = weighting[name] if isinstance(weighting, Mapping) else weighting
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
                for each, members in by_weighting(names).items()
            ],
        )

    def update(task_grads, state, *, losses=None, present=None, **extra_args):
        labels = _label_groups(jax.tree.map(lambda leaf: leaf[0], task_grads), groups)
        leaves = jax.tree.leaves(task_grads)
        members: dict[str, list[jax.Array]] = {}
        for leaf, name in zip(leaves, jax.tree.leaves(labels), strict=True):
            members.setdefault(name, []).append(leaf)

        if losses is not None:
            extra_args["losses"] = losses
        weights, states = {}, []
        clusters = by_weighting(set(members)).items()
        for (each, names), old in zip(clusters, state.weighting_states, strict=True):
            update_one = partial(weighting_update(each), present=present, **extra_args)
            products = jnp.stack([gramian(members[name]) for name in names])
            rows, new = jax.vmap(update_one)(products, old)
            weights |= dict(zip(names, rows, strict=True))
            states.append(new)

        direction = jax.tree.map(
            lambda name, leaf: combine(weights[name], leaf), labels, task_grads
        )
        rows = list(weights.values()) or [
            uniform_weights(count_tasks(losses, present), present)
        ]
        average = jnp.mean(jnp.stack(rows), axis=0)
        return direction, average, GroupedState(weights, states)

    return Aggregator(init, update)


def _label_groups(params, groups):
    if groups is None:
        return jax.tree.map_with_path(
            lambda path, _: keystr(path, simple=True, separator="/"), params
        )
    return prefix_leaves(params, groups, "groups")
