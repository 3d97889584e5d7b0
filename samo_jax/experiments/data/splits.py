"""Splits of examples into training, validation and test parts: 80, 10 and 10 %."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

_TRAIN, _BEFORE_TEST = 0.8, 0.9


class Parts(NamedTuple):
    """Numbers of the examples of each part.

    Attributes:
        train: numbers of the training examples.
        validation: numbers of the validation examples.
        test: numbers of the test examples.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def of(self, split: Literal["test", "validation"]) -> np.ndarray:
        """The numbers of the examples to evaluate on."""
        return self.test if split == "test" else self.validation


def random_split(count: int, seed: int = 0) -> Parts:
    """Parts at random, always the same for a seed.

    >>> [len(part) for part in random_split(50)]
    [40, 5, 5]
    """
    order = np.random.default_rng(seed).permutation(count)
    ends = [int(_TRAIN * count), int(_BEFORE_TEST * count)]
    return Parts(*np.split(order, ends))


def split_of_groups(groups: Sequence[Sequence[int]]) -> Parts:
    """Parts of whole groups, each in the first part that has room for it.

    The groups come in order, the large ones first. So the test part has what is rare:
    molecules unlike those of the training part, as DeepChem's `ScaffoldSplitter` does.

    >>> [part.tolist() for part in split_of_groups([[*range(8)], [9], [8]])]
    [[0, 1, 2, 3, 4, 5, 6, 7], [9], [8]]
    """
    count = sum(map(len, groups))
    train: list[int] = []
    validation: list[int] = []
    test: list[int] = []
    for group in groups:
        if len(train) + len(group) <= _TRAIN * count:
            train.extend(group)
        elif len(train) + len(validation) + len(group) <= _BEFORE_TEST * count:
            validation.extend(group)
        else:
            test.extend(group)
    return Parts(*(np.array(part, int) for part in (train, validation, test)))
