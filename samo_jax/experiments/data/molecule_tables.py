"""Tables of molecules and what was measured of them, as MoleculeNet publishes them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from samo_jax.experiments.data.csv_files import read_table
from samo_jax.experiments.data.malformed import MalformedFileError

_SMILES = "smiles"
_VALUES = {"": np.nan, "0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0}


class MoleculeTable(NamedTuple):
    """Molecules, and the classes that were measured.

    Attributes:
        smiles: N molecules in SMILES notation.
        labels: labels (N,) of each task, float32: 0, 1, or NaN where nothing was
            measured.
    """

    smiles: list[str]
    labels: dict[str, np.ndarray]


def read_molecule_table(path: Path) -> MoleculeTable:
    """The molecules of a table in CSV, which may be packed by gzip.

    The column "smiles" (in any case) has the molecules. Each column that has a 0 or a 1
    in its first measured row is a task; the others, such as names, are left out.

    Args:
        path: path of the file.

    Raises:
        MalformedFileError: the file is no such table, or a task has other values than
            0, 1 and nothing.
    """
    table = read_table(path)
    columns = {name.lower(): texts for name, texts in table.columns.items()}
    if _SMILES not in columns:
        table.need([_SMILES])
    labels = {}
    for task, texts in table.columns.items():
        if next(filter(None, texts), "") not in _VALUES or not any(texts):
            continue
        for row, text in enumerate(texts):
            if text not in _VALUES:
                raise table.wrong(row, task, "0, 1 or empty")
        labels[task] = np.array([_VALUES[text] for text in texts], np.float32)
    if not labels:
        raise MalformedFileError(
            f"{path} must have a column of 0, 1 or nothing for each task, got none"
        )
    return MoleculeTable(columns[_SMILES], labels)
