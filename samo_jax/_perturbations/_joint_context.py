"""`JointContext`: what perturbations between two directions know in one step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from samo_jax._labels import SHARED
from samo_jax._perturbations._base import Direction
from samo_jax._problem import Problem
from samo_jax._tree import PyTree


class JointContext(NamedTuple):
    """Context of a perturbation between the global gradient and a local direction.

    Attributes:
        problem: the problem of this step.
        inner: context of the local direction.
        mean_grad: mean gradient g0.
        moments: moments of the adaptive alpha, if there is one.
    """

    problem: Problem
    inner: Any
    mean_grad: PyTree
    moments: jax.Array | None = None

    def on_shared_leaves(self, ghat: PyTree) -> PyTree:
        """The local direction on shared leaves, g0 on heads."""
        return jax.tree.map(
            lambda label, local, g: local if label == SHARED else g,
            self.problem.labels,
            ghat,
            self.mean_grad,
        )


def prepare_joint(
    local: Direction, anchor: Callable[[Any], PyTree] | None
) -> Callable[[Problem, Any], JointContext]:
    """`prepare` with g0 from the local context, or (None) the incoming updates."""

    def prepare(problem, state):
        context = local.prepare(problem, state)
        g0 = problem.mean_grad if anchor is None else anchor(context)
        return JointContext(problem, context, g0)

    return prepare
