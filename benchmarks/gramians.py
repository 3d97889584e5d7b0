"""Gramians of conflicting gradients, and how far weights are from the right ones."""

import numpy as np

Weights = np.ndarray


class Problem:
    """Conflicting gradients with log-normal norms, and their Gramian."""

    def __init__(self, num_tasks: int, seed: int):
        """Draw the gradients."""
        rng = np.random.default_rng([num_tasks, seed])
        size = max(2 * num_tasks, 50)
        # One component is shared, with either sign.
        signs = rng.choice([-0.5, 0.5], size=(num_tasks, 1))
        rows = rng.normal(size=(num_tasks, size)) + signs * rng.normal(size=size)
        self.jacobian = np.exp(rng.normal(size=(num_tasks, 1))) * rows
        self.gramian = self.jacobian @ self.jacobian.T
        self.single = self.gramian.astype(np.float32)


def error(
    gramian: np.ndarray, w: Weights, exact: Weights, scale_free: bool = False
) -> float:
    """Relative error of the direction, `||J'(w - w*)|| / ||J'w*||`."""
    if scale_free:
        w = w * np.sqrt(exact @ gramian @ exact / (w @ gramian @ w))
    gap = w - exact
    return np.sqrt(max(gap @ gramian @ gap, 0) / (exact @ gramian @ exact))
