"""QM9's split into training, validation and test molecules."""

from pathlib import Path

import numpy as np

from samo_jax.experiments.data.checked_files import regular_file, short
from samo_jax.experiments.data.malformed import MalformedFileError
from samo_jax.experiments.data.molecules import (
    GraphRegression,
    Labels,
    Molecules,
    graph_regression,
)

NUM_EVAL = 10_000
_MAX_BYTES = 2**26
_REMEDY = "take LibMTL's random_split, as a NumPy file"


def read_permutation(path: Path, count: int) -> np.ndarray:
    """A permutation of the numbers below a count.

    Args:
        path: path of a NumPy file, .npy, or .npz with an array "permutation".
        count: number of molecules.

    Raises:
        MalformedFileError: the file is missing, or something else.
    """
    regular_file(path, _MAX_BYTES, _REMEDY)
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            is_array = isinstance(content, np.ndarray)
            order = content if is_array else content["permutation"]
    except Exception as error:  # whatever the parser meets in some bytes
        raise MalformedFileError(
            f"{path} must be a NumPy array ({short(error)}): {_REMEDY}"
        ) from error
    if order.shape != (count,) or not np.array_equal(np.sort(order), np.arange(count)):
        raise MalformedFileError(
            f"{path} must be a permutation of the numbers from 0 to {count - 1}, got "
            f"an array of shape {order.shape}: {_REMEDY}"
        )
    return order.astype(int)


def qm9_parts(
    molecules: Molecules,
    labels: Labels,
    order: np.ndarray,
    most: int | None = None,
) -> GraphRegression:
    """The molecules in parts, with mean and deviation of the training labels.

    The first 10,000 of the order are for test, as many for validation, and the rest
    for training, 110,831 of all; of fewer, shares of the same size. (Nash-MTL and SAMO
    take mean and deviation over all molecules.)

    Args:
        molecules: all N molecules.
        labels: labels (N,) of each target.
        order: permutation of the numbers of the molecules.
        most: number of molecules to take: as many of each part as its share. None: all.

    Raises:
        ValueError: there are fewer than three molecules, or a target does not vary,
            so that it cannot be standardised.
    """
    count = len(order)
    if count < 3:
        raise ValueError(
            f"QM9 must have three or more molecules, got {count}: download it again"
        )
    eval_count = max(1, min(NUM_EVAL, NUM_EVAL * count // 130_831))
    share = 1.0 if most is None else min(1.0, most / count)

    def part(rows: np.ndarray) -> tuple[Molecules, Labels]:
        rows = rows[: max(1, round(share * len(rows)))]
        return (
            Molecules(*(array[rows] for array in molecules)),
            {target: values[rows] for target, values in labels.items()},
        )

    test, validation, train = map(part, np.split(order, [eval_count, 2 * eval_count]))
    return graph_regression(train, validation, test)
