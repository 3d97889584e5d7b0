"""The School data set: examination scores of 15,362 pupils of 139 schools.

Inner London Education Authority, 1985 to 1987 (Goldstein 1991), in MALSAR's file.
"""

from pathlib import Path

import numpy as np
from scipy.io import loadmat

from samo_jax.experiments.data.checked_files import (
    LARGEST_NUMBER,
    regular_file,
    short,
)
from samo_jax.experiments.data.malformed import MalformedFileError

_MAX_BYTES = 2**28
_REMEDY = "take MALSAR's school.mat"


def read_school(path: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Features (n_i, F) and scores (n_i,) of the pupils of each school, float32.

    Args:
        path: path of a MATLAB file with cells X of (n_i, F) and Y of (n_i, 1) numbers.

    Raises:
        MalformedFileError: the file is missing, or something else.
    """
    regular_file(path, _MAX_BYTES, _REMEDY)
    try:
        content = loadmat(path, variable_names=["X", "Y"])
        cells = [[*content[name].ravel()] for name in ("X", "Y")]
        features, scores = ([np.asarray(c, np.float32) for c in of] for of in cells)
    except Exception as error:  # whatever the parser meets in some bytes
        raise MalformedFileError(
            f"{path} must be a MATLAB file with cells X and Y of numbers "
            f"({short(error)}): {_REMEDY}"
        ) from error
    if len(features) != len(scores) or len(scores) < 2:
        raise MalformedFileError(
            f"{path} must have as many cells in X as in Y, two or more, got "
            f"{len(features)} and {len(scores)}: {_REMEDY}"
        )
    for number, (x, y) in enumerate(zip(features, scores, strict=True), 1):
        width = features[0].shape[-1:]
        if x.ndim != 2 or x.shape[1:] != width or y.shape != (len(x), 1):
            raise MalformedFileError(
                f"{path}: cell {number} must have shapes (n, {short(width)}) in X and "
                f"(n, 1) in Y, got {x.shape} and {y.shape}: {_REMEDY}"
            )
        if not (abs(x) < LARGEST_NUMBER).all() or not (abs(y) < LARGEST_NUMBER).all():
            raise MalformedFileError(
                f"{path}: cell {number} must have finite numbers: {_REMEDY}"
            )
    return features, [of[:, 0] for of in scores]
