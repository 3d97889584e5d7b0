"""MultiDigits: two overlaid handwritten digits, one task each."""

from typing import Literal, NamedTuple

import numpy as np
from sklearn.datasets import load_digits

TASKS = ("left", "right")
Split = Literal["test", "validation"]


class Pairs(NamedTuple):
    """Images and the digit of each task.

    Attributes:
        images: shape (N, 12, 12, 1), float32 in [0, 1].
        labels: shape (N,) ints for each of `TASKS`.
    """

    images: np.ndarray
    labels: dict[str, np.ndarray]


def multi_digits(
    split: Split = "test", *, num_train: int = 2000, num_eval: int = 3000
) -> tuple[Pairs, Pairs]:
    """Training and evaluation pairs, made from scikit-learn's 1,797 8x8 digits.

    Each image is a 12x12 canvas with one digit top-left, one bottom-right, overlapping
    in the 4x4 middle, where the brighter pixel wins. No digit is in both sets. The
    pairs are always the same.

    Args:
        split: "test" pairs 1,200 digits for training, the other 597 for evaluation;
            "validation", for tuning, takes both from the 1,200 (1,000 and 200).
        num_train: number of training pairs.
        num_eval: number of evaluation pairs.

    Returns:
        `(train, evaluation)`.
    """
    pixels, digits = load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 8, 8) / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    train, evaluation = {
        "test": (order[:1200], order[1200:]),
        "validation": (order[:1000], order[1000:1200]),
    }[split]

    def pair(indices: np.ndarray, count: int, seed: int) -> Pairs:
        left, right = np.random.default_rng(seed).choice(indices, (2, count))
        canvas = np.zeros((count, 12, 12, 1), np.float32)
        canvas[:, :8, :8, 0] = images[left]
        overlap = canvas[:, 4:, 4:, 0]
        overlap[:] = np.maximum(overlap, images[right])
        return Pairs(canvas, {"left": digits[left], "right": digits[right]})

    return pair(train, num_train, seed=1), pair(evaluation, num_eval, seed=2)
